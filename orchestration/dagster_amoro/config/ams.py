"""Where the running AMS is reached, and what it adds to the properties of its containers."""

import dataclasses
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from dagster_amoro.config.keys import (
    AMS_HOME,
    AMS_VERSION,
    CLUSTER_NAME,
    EXPOSE_HOST,
    HA_ENABLED,
    HA_TYPE,
    HTTP_PORT,
    KEEPER_HOST,
    MASTER_SLAVE,
    THRIFT_PORT,
    ZOOKEEPER_ADDRESS,
)
from dagster_amoro.config.raw import RawConfig
from dagster_amoro.config.settings import AmsSettings, ContainerSettings, HighAvailability
from dagster_amoro.core.ams_version import parse_version

AMORO: Final = "org.apache.amoro."  # how the class names of Amoro's own containers begin
_URI: Final = "ams-optimizing-uri"


def read_ams(raw: RawConfig) -> AmsSettings:
    """What the configuration says about AMS; checked only as far as it is going to be used."""
    kind = raw.get(HA_TYPE) if raw.get(HA_ENABLED) else HighAvailability.NONE
    zookeeper = kind is HighAvailability.ZOOKEEPER
    version = raw.get(AMS_VERSION)
    return AmsSettings(
        host="" if kind is not HighAvailability.NONE else _host(raw),
        thrift_port=raw.get(THRIFT_PORT),
        http_port=raw.get(HTTP_PORT),
        high_availability=kind,
        cluster_name=raw.get(CLUSTER_NAME),
        zookeeper_address=_zookeeper(raw) if zookeeper else "",
        dialect=parse_version(version) if version else None,
    )


def _host(raw: RawConfig) -> str:
    setting = KEEPER_HOST if raw.has(KEEPER_HOST) else EXPOSE_HOST
    host = raw.get(setting)
    if not host:
        raw.reject(setting)
    return host


def _zookeeper(raw: RawConfig) -> str:
    address = raw.get(ZOOKEEPER_ADDRESS)
    if not address:
        raw.reject(ZOOKEEPER_ADDRESS, f"though {HA_ENABLED.key} is true and {HA_TYPE.key} zk")
    return address


def add_ams_properties(
    raw: RawConfig,
    ams: AmsSettings,
    containers: Mapping[str, ContainerSettings],
    environ: Mapping[str, str],
) -> Mapping[str, ContainerSettings]:
    """The containers, those of Amoro with the properties that AMS gives them when it starts.

    AMS does so in `AmoroServiceContainer`. With high availability by database it would give them
    the address of a ZooKeeper that is not there, so they have to bring one that is of use.
    """
    overruling, missing = _overruling(raw, environ), _missing(raw, ams)
    return MappingProxyType(
        {
            name: _extended(raw, each, {**missing, **each.properties, **overruling})
            if each.implementation.startswith(AMORO)
            else each
            for name, each in containers.items()
        }
    )


def _overruling(raw: RawConfig, environ: Mapping[str, str]) -> dict[str, str]:
    home = next(_homes(raw, environ), None)
    return {"ams-home": home} if home else {}


def _homes(raw: RawConfig, environ: Mapping[str, str]) -> Iterator[str]:
    """Where Amoro may be installed, in AMS's order after our own key."""
    yield from filter(
        None, (raw.get(AMS_HOME), environ.get("ARCTIC_HOME"), environ.get("AMORO_HOME"))
    )
    if (folder := raw.source.parent).name == "conf":
        yield str(folder.parent)


def _missing(raw: RawConfig, ams: AmsSettings) -> dict[str, str]:
    given = {
        _URI: _optimizing_uri(ams),
        "master-slave-mode-enabled": "true" if raw.get(MASTER_SLAVE) else "",
        "ams-version": raw.get(AMS_VERSION),
    }
    return {key: value for key, value in given.items() if value}


def _optimizing_uri(ams: AmsSettings) -> str:
    match ams.high_availability:
        case HighAvailability.ZOOKEEPER:
            return f"zookeeper://{ams.zookeeper_address}/{ams.cluster_name}"
        case HighAvailability.DATABASE:
            return ""
    host = f"[{ams.host}]" if ":" in ams.host else ams.host
    return f"thrift://{host}:{ams.thrift_port}"


def _extended(
    raw: RawConfig, container: ContainerSettings, properties: Mapping[str, str]
) -> ContainerSettings:
    if _URI not in properties:
        raw.reject_in_file(
            f"the property {_URI} of container {container.name!r}",
            f"left out, though {HA_TYPE.key} is database",
            "thrift://host:port, where optimizers reach the leader of AMS",
        )
    return dataclasses.replace(container, properties=MappingProxyType(dict(properties)))
