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
from dagster_amoro.config.draft import Draft, kind_of
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
    draft = Draft(_source(conf_dir, environ))
    document = _read(draft.source)
    draft.add_section("ams", document.get("ams"))
    draft.add_section("keeper", document.get("keeper"))
    draft.add_environment(environ)
    draft.reject_unknown()
    set_decoders(draft)
    for setting in SETTINGS:  # whether it is going to be used or not, with few exceptions
        if not setting.when_needed and setting.key not in draft.decoders:
            draft.get(setting)
    settings = _settings(draft, document.get("containers"), environ)
    if draft.problems:
        raise ConfigError("\n".join(draft.problems))
    return settings


def _source(conf_dir: Path | None, environ: Mapping[str, str]) -> Path:
    folder = conf_dir or environ.get(CONF_DIR_VARIABLE) or _BUNDLED
    return Path(folder).absolute() / _FILE_NAME


def _settings(draft: Draft, containers: object, environ: Mapping[str, str]) -> Settings:
    registry = _registry(draft)
    attached = registry is RegistryMode.ATTACHED and draft.get(DATABASE_TYPE).is_server
    ams = read_ams(draft) if attached else None
    found = read_containers(draft, containers)
    database_url = read_database(draft, environ)
    return Settings(
        source=draft.source,
        database_url=database_url,
        ledger_url=read_ledger(draft, database_url),
        registry=registry,
        ams=ams,
        restart=read_restart(draft),
        guards=read_guards(draft),
        mode=draft.get(MODE),
        dynamic_groups=read_dynamic_groups(draft),
        max_keeping_attempts=draft.get(MAX_KEEPING_ATTEMPTS),
        lease_time=read_lease_time(draft),
        deployment=read_deployment(draft),
        check_interval=draft.get(CHECK_INTERVAL),
        heartbeat_timeout=draft.get(HEARTBEAT_TIMEOUT),
        max_restarts_per_run=draft.get(MAX_RESTARTS),
        claim_timeout=draft.get(CLAIM_TIMEOUT),
        audit=_audit(draft),
        containers=add_ams_properties(draft, ams, found, environ) if ams else found,
        warnings=tuple(draft.warnings),
    )


def _audit(draft: Draft) -> AuditSettings:
    storage = draft.get(AUDIT_STORAGE)
    if storage and "://" not in storage:
        storage = str(draft.source.parent / storage)
    return AuditSettings(
        storage=storage or None,
        retention=draft.get(AUDIT_RETENTION),
        least_success=draft.get(ALERT_SUCCESS),
        flapping=draft.get(ALERT_FLAPPING),
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


def _registry(draft: Draft) -> RegistryMode:
    kind, mode = draft.get(DATABASE_TYPE), draft.get(REGISTRY)
    embedded = kind is DatabaseType.SQLITE
    if embedded and mode is RegistryMode.ATTACHED:
        why = f"with {DATABASE_TYPE.key} sqlite, an unreachable combination: AMS has no SQLite"
        draft.reject(REGISTRY, why)
    return mode or (RegistryMode.STANDALONE if embedded else RegistryMode.ATTACHED)
