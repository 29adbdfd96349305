"""Which keys may stand in a section? As JSON Schema, for editors and for `dg check yaml`."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from dagster_amoro.config.models import GROUP, SETTINGS, Setting
from dagster_amoro.core.groups import MIN_PARALLELISM

JsonSchema = dict[str, Any]
_SCALARS: Final = ["string", "number", "boolean", "null"]
_LISTS: Final = {"ams.shade.sensitive-keywords"}

CONTAINERS: Final[JsonSchema] = {
    "type": ["array", "null"],
    "description": "How workers are started: a name, a class and its properties.",
    "items": {
        "type": "object",
        "required": ["name", "container-impl"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string"},
            "container-impl": {
                "type": "string",
                "description": "A class as package.module.Class, or one of Amoro's; without a dot, "
                "the name of a container that a package has installed.",
            },
            "properties": {
                "type": ["object", "null"],
                "additionalProperties": {"type": [*_SCALARS, "array"]},
            },
        },
    },
}
"""The section `containers`."""


_PROPERTIES: Final[JsonSchema] = {
    "type": ["object", "null"],
    "additionalProperties": {"type": _SCALARS},
}
_NUMBER: Final[JsonSchema] = {"type": ["integer", "string", "null"]}
_OF_WORKERS: Final[JsonSchema] = {
    "container": {"type": ["string", "null"], "description": "The name of an entry of containers."},
    "threads": {**_NUMBER, "description": "At least 1. Default: 1."},
    "memory": {**_NUMBER, "description": "In MiB. Default: 0, which says nothing."},
    "properties": _PROPERTIES,
}
_WORKER: Final[JsonSchema] = {
    "type": ["object", "string", "number"],
    "description": "Its id, or what differs from the other workers of its group.",
    "required": ["id"],
    "additionalProperties": False,
    "properties": {"id": {"type": ["string", "number"]}, **_OF_WORKERS},
}
_GROUP: Final[JsonSchema] = {
    "type": "object",
    "required": ["name", "container"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": ["string", "number"]},
        "workers": {
            "type": ["array", "integer", "string", "null"],
            "description": "How many, or a list of ids, or of maps with an id.",
            "items": _WORKER,
        },
        MIN_PARALLELISM: {**_NUMBER, "description": "The threads that it has at least."},
        **_OF_WORKERS,
    },
}
FLEET: Final[JsonSchema] = {
    "type": ["object", "null"],
    "description": "Which workers there are to be, as `dagster-amoro apply` makes them.",
    "additionalProperties": False,
    "properties": {"groups": {"type": ["array", "null"], "items": _GROUP}},
}
"""The section `fleet`."""


def section_schema(name: str) -> JsonSchema:
    """The section `ams` or `keeper`, its keys nested, dotted, or partly so; no others."""
    found = {each.key.removeprefix(f"{name}."): each for each in SETTINGS if _is_in(each, name)}
    return {**_map_of(found), "description": f"The section `{name}` of config.yaml."}


def _is_in(setting: Setting, section: str) -> bool:
    return setting.key.startswith(f"{section}.")


def _map_of(settings: Mapping[str, Setting]) -> JsonSchema:
    """A map with these settings by the rest of their keys; a group's name may be anything."""
    below: defaultdict[str, dict[str, Setting]] = defaultdict(dict)
    properties: JsonSchema = {}
    for key, setting in settings.items():
        parts = key.split(".")
        properties[key] = _value_of(setting)
        for length in range(1, len(parts)):
            below[".".join(parts[:length])][".".join(parts[length:])] = setting
    properties |= {key: _map_of(rest) for key, rest in below.items()}
    fixed = {key: each for key, each in properties.items() if GROUP not in key}
    of_groups = {_pattern(key): each for key, each in properties.items() if GROUP in key}
    made = {"type": ["object", "null"], "properties": fixed, "additionalProperties": False}
    return {**made, "patternProperties": of_groups} if of_groups else made


def _pattern(key: str) -> str:
    return f"^{re.escape(key).replace(re.escape(GROUP), '.+')}$"


def _value_of(setting: Setting) -> JsonSchema:
    kinds = [*_SCALARS, "array"] if setting.key in _LISTS else _SCALARS
    default = f" Default: {setting.default}." if setting.default else ""
    return {"type": kinds, "description": f"Accepted is {setting.reader.accepts}.{default}"}
