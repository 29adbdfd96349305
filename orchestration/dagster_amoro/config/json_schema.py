"""Which keys may stand in a section? As JSON Schema, for editors and for `dg check yaml`."""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final

from dagster_amoro.config.models import GROUP, SETTINGS, Setting

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
