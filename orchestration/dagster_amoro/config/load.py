"""How the configuration is read: file, then environment, then the schema, then the rules."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from dagster_amoro.config.models import (
    GROUP,
    AmsConfig,
    Configuration,
    HighAvailabilityConfig,
    settings_of,
)
from dagster_amoro.config.repeats import repetitions
from dagster_amoro.config.rules import Lists, build_settings, is_attached
from dagster_amoro.config.settings import HighAvailability, Settings
from dagster_amoro.config.sources import RawConfig, documented, group_of, kind_of
from dagster_amoro.config.values import InvalidValueError, decode
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.core.texts import Shown, harmless

CONF_DIR_VARIABLE: Final = "AMORO_CONF_DIR"
_FILE_NAME: Final = "config.yaml"
_BUNDLED: Final = Path(__file__).parent / "standalone"


def load_settings(
    conf_dir: Path | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    sections: Mapping[str, object] | None = None,
    source: Path | None = None,
) -> Settings:
    """The settings from `<conf_dir>/config.yaml`, the environment, and what is given inline.

    Args:
        conf_dir: The folder of config.yaml. None: there is no file where sections are given; else
            `$AMORO_CONF_DIR`, and if that is not set, the configuration that comes with the
            package.
        environ: The environment. None: the one of this process.
        sections: `ams`, `keeper`, `containers` and `fleet` as they stand in config.yaml. What they
            say wins over the environment, and that over the file; a container replaces that of its
            name, a fleet the other one. Other than there, a key of `ams` that is not known is
            refused.
        source: Where the sections stand, as errors name it. Without a file, relative paths start at
            its folder. None: in the working directory.

    Raises:
        ConfigError: Something cannot be used; it says everything that is wrong, a line each.
    """
    environ = os.environ if environ is None else environ
    inline = Path(source or "settings").absolute()
    document: Mapping[object, object] = {}
    if sections and conf_dir is None:
        raw = RawConfig(inline)
    else:
        folder = conf_dir or environ.get(CONF_DIR_VARIABLE) or _BUNDLED
        raw = RawConfig(Path(folder).absolute() / _FILE_NAME)
        document, said_twice = _read(raw.source)
        raw.warnings += [f"{raw.source}: {each}." for each in said_twice]
    raw.add_section("ams", document.get("ams"))
    raw.add_section("keeper", document.get("keeper"))
    raw.add_environment(environ)
    raw.add_inline(RawConfig(inline), sections or {})
    raw.reject_unknown()
    given = sections or {}
    containers = _containers(document.get("containers"), given.get("containers"))
    lists = Lists(containers, given.get("fleet", document.get("fleet")))
    settings = build_settings(raw, _configuration(raw), lists, environ)
    if raw.problems:
        raise ConfigError(Shown("\n".join(map(harmless, raw.problems))))
    return settings


def _containers(of_file: object, inline: object) -> object:
    """The containers of both; an inline one replaces that of its name."""
    if not inline:
        return of_file
    if not isinstance(inline, list) or not isinstance(of_file, list):
        return inline
    names = [each.get("name") for each in inline if isinstance(each, dict)]
    replaced = [each for each in of_file if isinstance(each, dict) and each.get("name") in names]
    return [*(each for each in of_file if each not in replaced), *inline]


def _read(source: Path) -> tuple[Mapping[object, object], list[str]]:
    """What the file says, and a sentence for each thing that it says twice."""
    try:
        data = source.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{source}: cannot be read ({error.strerror}); accepted is a readable file "
            f"{_FILE_NAME} in the folder that ${CONF_DIR_VARIABLE} names"
        ) from error
    try:
        document, said_twice = _parsed(data)
    except Exception as error:  # noqa: BLE001 - PyYAML's, and Python's for scalars like 2024-13-45
        document, said_twice, flaw = None, [], f"is not YAML{_place(error)}"
    else:
        flaw = f"holds {kind_of(document)}"
    if not isinstance(document, dict):  # raised here, so that no text of the file is chained to it
        raise ConfigError(f"{source}: {flaw}; accepted is a map with ams, containers and keeper")
    return document, said_twice


def _parsed(data: bytes) -> tuple[object, list[str]]:
    loader = yaml.SafeLoader(data)
    try:
        node = loader.get_single_node()
        said_twice = list(repetitions(node))
        return loader.construct_document(node) if node else None, said_twice
    finally:
        loader.dispose()


def _place(error: Exception) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    mark = error.problem_mark
    # What stands in quotes there comes from the file, and may be part of a password.
    problem = re.sub(r"(['\"]).*\1", "***", error.problem or "")
    return f" (line {mark.line + 1}, column {mark.column + 1}: {problem})"


def _configuration(raw: RawConfig) -> Configuration:
    """What was given, as the schema has it; a value that is not accepted is its key's default.

    It is rejected only if something depends on it.
    """
    values = raw.values()
    config, flaws = _validated(values)
    raw.encoded = _encoded(config)
    if raw.encoded:
        undecoded = {}
        for key in raw.encoded & values.keys():
            try:
                values[key] = decode(values.pop(key), config.shade.identifier)
            except InvalidValueError as flaw:
                undecoded[key] = str(flaw)
        config, flaws = _validated(values)
        flaws |= undecoded
    unused = set(_unused_keys(raw, config))
    for key, why in flaws.items():
        if key not in unused:
            raw.reject(key, why)
    return config


def _encoded(config: Configuration) -> frozenset[str]:
    """The keys that are encoded, in the file and the environment; none without a server."""
    if not config.database.type.is_server or config.shade.identifier == "default":
        return frozenset()
    encodable = {"ams.database.url", "ams.database.username", "ams.database.password"}
    return frozenset(encodable & {f"ams.{key}" for key in config.shade.sensitive_keywords})


def _validated(values: Mapping[str, object]) -> tuple[Configuration, dict[str, str]]:
    """The configuration without the values that are not accepted, and why they are not, by key.

    A reason is empty where what is accepted says enough.
    """
    try:
        return Configuration.model_validate(_by_section(values)), {}
    except ValidationError as error:
        flaws = {_key_at(*each["loc"]): each["ctx"].get("why", "") for each in error.errors()}
    accepted = {key: value for key, value in values.items() if key not in flaws}
    return Configuration.model_validate(_by_section(accepted)), flaws


def _by_section(values: Mapping[str, object]) -> dict[str, Any]:
    groups: defaultdict[str, dict[str, object]] = defaultdict(dict)
    for key, value in values.items():
        if name := group_of(key):
            groups[name][documented(key)] = value
    return {**dict.fromkeys(Configuration.model_fields, values), "groups": groups}


def _key_at(_section: object, name: object, *key: object) -> str:
    return str((name, *key)[-1]).replace(GROUP, str(name))  # a group's name stands before its key


def _unused_keys(raw: RawConfig, config: Configuration) -> Iterator[str]:
    """The keys on which nothing depends, given what the others say: they may say anything."""
    ha, url = config.ha, config.database.url
    if not config.database.type.is_server:
        yield "ams.shade.identifier"
    if not config.database.type.is_server or config.shade.identifier == "default":
        yield "ams.shade.sensitive-keywords"
    if not is_attached(config):
        for section in (AmsConfig, HighAvailabilityConfig):
            yield from (setting.key for setting in settings_of(section))
    if ha.enabled or raw.has("keeper.server-expose-host"):
        yield "ams.server-expose-host"
    if ha.enabled:
        yield "keeper.server-expose-host"
    else:
        yield "ams.ha.type"
    if not ha.enabled or ha.type is HighAvailability.DATABASE:
        yield "ams.ha.zookeeper-address"
    if url is None or url.username or config.stores.database_username:
        yield from raw.encoded & {"ams.database.username"}
    if url is None or url.password or config.stores.database_password:
        yield from raw.encoded & {"ams.database.password"}
