"""How the configuration is read: file, then environment, then checks, then settings."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import yaml

from dagster_amoro.config.ams import add_ams_properties, read_ams
from dagster_amoro.config.containers import read_containers
from dagster_amoro.config.databases import read_database, read_ledger
from dagster_amoro.config.keys import (
    ALERT_FLAPPING,
    ALERT_SUCCESS,
    AUDIT_RETENTION,
    AUDIT_STORAGE,
    CHECK_INTERVAL,
    CLAIM_TIMEOUT,
    DATABASE_TYPE,
    HEARTBEAT_TIMEOUT,
    MAX_KEEPING_ATTEMPTS,
    MAX_RESTARTS,
    MODE,
    REGISTRY,
    SETTINGS,
)
from dagster_amoro.config.limits import (
    read_deployment,
    read_dynamic_groups,
    read_guards,
    read_lease_time,
    read_restart,
)
from dagster_amoro.config.raw import RawConfig, kind_of
from dagster_amoro.config.settings import AuditSettings, DatabaseType, RegistryMode, Settings
from dagster_amoro.config.shade import set_decoders
from dagster_amoro.core.errors import ConfigError

CONF_DIR_VARIABLE: Final = "AMORO_CONF_DIR"
_FILE_NAME: Final = "config.yaml"
_BUNDLED: Final = Path(__file__).parent / "standalone"


def load_settings(
    conf_dir: Path | None = None, environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings from `<conf_dir>/config.yaml` and the environment.

    Args:
        conf_dir: The folder of config.yaml. None: `$AMORO_CONF_DIR`, and if that is not set, the
            configuration that comes with the package.
        environ: The environment. None: the one of this process.

    Raises:
        ConfigError: Something cannot be used; it says everything that is wrong, a line each.
    """
    environ = os.environ if environ is None else environ
    raw = RawConfig(_source(conf_dir, environ))
    document = _read(raw.source)
    raw.add_section("ams", document.get("ams"))
    raw.add_section("keeper", document.get("keeper"))
    raw.add_environment(environ)
    raw.reject_unknown()
    set_decoders(raw)
    for setting in SETTINGS:  # whether it is going to be used or not, with few exceptions
        if not setting.when_needed and setting.key not in raw.decoders:
            raw.get(setting)
    settings = _settings(raw, document.get("containers"), environ)
    if raw.problems:
        raise ConfigError("\n".join(raw.problems))
    return settings


def _source(conf_dir: Path | None, environ: Mapping[str, str]) -> Path:
    folder = conf_dir or environ.get(CONF_DIR_VARIABLE) or _BUNDLED
    return Path(folder).absolute() / _FILE_NAME


def _settings(raw: RawConfig, containers: object, environ: Mapping[str, str]) -> Settings:
    registry = _registry(raw)
    attached = registry is RegistryMode.ATTACHED and raw.get(DATABASE_TYPE).is_server
    ams = read_ams(raw) if attached else None
    found = read_containers(raw, containers)
    database_url = read_database(raw, environ)
    return Settings(
        source=raw.source,
        database_url=database_url,
        ledger_url=read_ledger(raw, database_url),
        registry=registry,
        ams=ams,
        restart=read_restart(raw),
        limits=read_guards(raw),
        mode=raw.get(MODE),
        dynamic_groups=read_dynamic_groups(raw),
        max_keeping_attempts=raw.get(MAX_KEEPING_ATTEMPTS),
        lease_time=read_lease_time(raw),
        deployment=read_deployment(raw),
        check_interval=raw.get(CHECK_INTERVAL),
        heartbeat_timeout=raw.get(HEARTBEAT_TIMEOUT),
        max_restarts_per_run=raw.get(MAX_RESTARTS),
        claim_timeout=raw.get(CLAIM_TIMEOUT),
        audit=_audit(raw),
        containers=add_ams_properties(raw, ams, found, environ) if ams else found,
        warnings=tuple(raw.warnings),
    )


def _audit(raw: RawConfig) -> AuditSettings:
    storage = raw.get(AUDIT_STORAGE)
    if storage and "://" not in storage:
        storage = str(raw.source.parent / storage)
    return AuditSettings(
        storage=storage or None,
        retention=raw.get(AUDIT_RETENTION),
        least_success=raw.get(ALERT_SUCCESS),
        flapping=raw.get(ALERT_FLAPPING),
    )


# What PyYAML raises: its own errors, and Python's for scalars such as `2024-13-45`.
_NOT_YAML: Final = (
    yaml.YAMLError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


def _read(source: Path) -> Mapping[object, object]:
    try:
        data = source.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{source}: cannot be read ({error.strerror}); accepted is a readable file "
            f"{_FILE_NAME} in the folder that ${CONF_DIR_VARIABLE} names"
        ) from error
    try:
        document: object = yaml.safe_load(data)
    except _NOT_YAML as error:
        document, flaw = None, f"is not YAML{_place(error)}"
    else:
        flaw = f"holds {kind_of(document)}"
    if not isinstance(document, dict):  # raised here, so that no text of the file is chained to it
        raise ConfigError(f"{source}: {flaw}; accepted is a map with ams, containers and keeper")
    return document


def _place(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    mark = error.problem_mark
    # What stands in quotes there comes from the file, and may be part of a password.
    problem = re.sub(r"(['\"]).*\1", "***", error.problem or "")
    return f" (line {mark.line + 1}, column {mark.column + 1}: {problem})"


def _registry(raw: RawConfig) -> RegistryMode:
    kind, mode = raw.get(DATABASE_TYPE), raw.get(REGISTRY)
    embedded = kind is DatabaseType.SQLITE
    if embedded and mode is RegistryMode.ATTACHED:
        why = f"with {DATABASE_TYPE.key} sqlite, an unreachable combination: AMS has no SQLite"
        raw.reject(REGISTRY, why)
    return mode or (RegistryMode.STANDALONE if embedded else RegistryMode.ATTACHED)
