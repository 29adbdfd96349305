"""What the `containers:` list says, entry by entry, and what AMS adds to its own containers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from dagster_amoro.config.models import Configuration
from dagster_amoro.config.settings import AmsSettings, HighAvailability
from dagster_amoro.config.sources import RawConfig, kind_of, show
from dagster_amoro.config.values import parse_text
from dagster_amoro.core.container_settings import (
    CALL_PROPERTIES,
    ContainerSettings,
    parse_limit,
)

_AMORO: Final = "org.apache.amoro."  # how the class names of Amoro's own containers begin
_URI: Final = "ams-optimizing-uri"


def read_containers(raw: RawConfig, entries: object) -> Mapping[str, ContainerSettings]:
    """The containers by name; a later entry of the same name replaces the earlier one."""
    if entries is not None and not isinstance(entries, list):
        raw.reject_in_file("containers", kind_of(entries), "a list of maps")
        entries = None
    found = (_container(raw, f"containers[{n}]", each) for n, each in enumerate(entries or ()))
    return MappingProxyType({container.name: container for container in found})


def _container(raw: RawConfig, place: str, entry: object) -> ContainerSettings:
    if not isinstance(entry, dict):
        raw.reject_in_file(place, kind_of(entry), "a map with name, container-impl and properties")
        return ContainerSettings(name="", implementation="", properties={})
    implementation = _required(raw, place, entry, "container-impl")
    name = _required(raw, place, entry, "name")
    lists = not implementation.startswith(_AMORO)
    properties = read_properties(raw, place, entry.get("properties", {}), lists=lists)
    for key in (each for each in CALL_PROPERTIES if each in properties):
        try:
            parse_limit(key, properties[key])
        except ValueError as flaw:
            found = show(key, properties[key])
            raw.reject_in_file(f"{place}.properties.{key}", found, str(flaw))
    return ContainerSettings(name=name, implementation=implementation, properties=properties)


def _required(raw: RawConfig, place: str, entry: Mapping[object, object], key: str) -> str:
    value = entry.get(key)
    if isinstance(value, str) and value.strip():
        return value
    found = show(key, value) if key in entry else "left out"
    raw.reject_in_file(f"{place}.{key}", found, "a text that is not empty")
    return ""


def read_properties(raw: RawConfig, place: str, given: object, *, lists: bool) -> Mapping[str, str]:
    """An entry's properties; a null among them counts as left out, as it does for AMS."""
    if not isinstance(given, dict):
        raw.reject_in_file(f"{place}.properties", kind_of(given), "a map, or to leave it out")
        return {}
    accepts = "a text, a number, true or false" + (", or a list of those" if lists else "")
    texts: dict[str, str] = {}
    for key, value in given.items():
        try:
            if lists and isinstance(value, list):
                items = [parse_text(each) for each in value]
                text = json.dumps(items, ensure_ascii=False, separators=(",", ":"))
                texts[parse_text(key)] = text
            elif value is not None:
                texts[parse_text(key)] = parse_text(value)
        except ValueError:
            raw.reject_in_file(f"{place}.properties.{key}", kind_of(value), accepts)
    return MappingProxyType(texts)


def add_ams_properties(
    raw: RawConfig,
    config: Configuration,
    ams: AmsSettings,
    containers: Mapping[str, ContainerSettings],
    environ: Mapping[str, str],
) -> Mapping[str, ContainerSettings]:
    """The containers, those of Amoro with the properties that AMS gives them when it starts.

    AMS does so in `AmoroServiceContainer`. With high availability by database it would give them
    the address of a ZooKeeper that is not there, so they have to bring one that is of use.
    """
    above = raw.source.parent.parent if raw.source.parent.name == "conf" else ""
    # Where Amoro may be installed: our own key first, then what AMS looks at, in its order.
    home = config.ams.home or environ.get("ARCTIC_HOME") or environ.get("AMORO_HOME") or str(above)
    always = {"ams-home": home} if home else {}
    defaults = {
        _URI: _optimizing_uri(ams),
        "master-slave-mode-enabled": "true" if config.ha.use_master_slave_mode else "",
        "ams-version": config.ams.version,
    }
    missing = {key: value for key, value in defaults.items() if value}

    def extended(container: ContainerSettings) -> ContainerSettings:
        if not container.implementation.startswith(_AMORO):
            return container
        properties = {**missing, **container.properties, **always}
        if _URI not in properties:
            raw.reject_in_file(
                f"the property {_URI} of container {container.name!r}",
                "left out, though ams.ha.type is database",
                "thrift://host:port, where optimizers reach the leader of AMS",
            )
        return replace(container, properties=MappingProxyType(properties))

    return MappingProxyType({name: extended(each) for name, each in containers.items()})


def _optimizing_uri(ams: AmsSettings) -> str:
    match ams.high_availability:
        case HighAvailability.ZOOKEEPER:
            return f"zookeeper://{ams.zookeeper_address}/{ams.cluster_name}"
        case HighAvailability.DATABASE:
            return ""
    host = f"[{ams.host}]" if ":" in ams.host else ams.host
    return f"thrift://{host}:{ams.thrift_port}"
