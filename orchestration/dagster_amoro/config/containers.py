"""What the `containers:` list says, entry by entry."""

import json
from collections.abc import Mapping
from types import MappingProxyType

from dagster_amoro.config.ams import AMORO
from dagster_amoro.config.raw import RawConfig, kind_of, show
from dagster_amoro.config.settings import ContainerSettings
from dagster_amoro.config.values import parse_text


def read_containers(raw: RawConfig, entries: object) -> Mapping[str, ContainerSettings]:
    """The containers by name; a later entry of the same name replaces the earlier one."""
    if entries is not None and not isinstance(entries, list):
        raw.reject_in_file("containers", kind_of(entries), "a list of maps")
        entries = None
    found = (_container(raw, f"containers[{n}]", each) for n, each in enumerate(entries or ()))
    return MappingProxyType({container.name: container for container in found})


def _container(raw: RawConfig, place: str, entry: object) -> ContainerSettings:
    if not isinstance(entry, dict):
        accepts = "a map with name, container-impl and properties"
        raw.reject_in_file(place, kind_of(entry), accepts)
        return ContainerSettings(name="", implementation="", properties={})
    implementation = _required(raw, place, entry, "container-impl")
    lists = not implementation.startswith(AMORO)
    return ContainerSettings(
        name=_required(raw, place, entry, "name"),
        implementation=implementation,
        properties=_properties(raw, f"{place}.properties", entry, lists=lists),
    )


def _required(raw: RawConfig, place: str, entry: Mapping[object, object], key: str) -> str:
    value = entry.get(key)
    if isinstance(value, str) and value.strip():
        return value
    found = show(key, value) if key in entry else "left out"
    raw.reject_in_file(f"{place}.{key}", found, "a text that is not empty")
    return ""


def _properties(
    raw: RawConfig, place: str, entry: Mapping[object, object], *, lists: bool
) -> Mapping[str, str]:
    """An entry's properties; a null among them counts as left out, as it does for AMS."""
    given = entry.get("properties", {})
    if not isinstance(given, dict):
        raw.reject_in_file(place, kind_of(given), "a map, or to leave it out")
        return {}
    texts: dict[str, str] = {}
    for key, value in given.items():
        try:
            if value is not None:
                texts[parse_text(key)] = _property_text(value, lists=lists)
        except ValueError:
            accepts = "a text, a number, true or false" + (", or a list of those" if lists else "")
            raw.reject_in_file(f"{place}.{key}", kind_of(value), accepts)
    return MappingProxyType(texts)


def _property_text(value: object, *, lists: bool) -> str:
    if lists and isinstance(value, list):
        texts = [parse_text(each) for each in value]
        return json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    return parse_text(value)
