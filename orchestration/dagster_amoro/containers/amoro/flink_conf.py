"""Which options is Flink given, what does its own configuration say, and how large is a size?"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.errors import StartFailedError

PREFIX: Final = "flink-conf."  # of the properties that are options of Flink

_MEBIBYTE: Final = 1 << 20  # bytes
_LABELS: Final = (
    ("bytes", ("", "b", "bytes")),
    ("kb", ("k", "kb", "kibibytes")),
    ("mb", ("m", "mb", "mebibytes")),
    ("gb", ("g", "gb", "gibibytes")),
    ("tb", ("t", "tb", "tebibytes")),
)  # each 1024 times the one before
_FACTORS: Final = {name: 1024**power for power, (_, names) in enumerate(_LABELS) for name in names}
_SIZE: Final = re.compile(r"[\0- ]*([0-9]+)[\0- ]*([a-z]*)[\0- ]*", re.IGNORECASE | re.ASCII)
_SIZE_0_7: Final = re.compile(r"([0-9]+)([mg]?)", re.ASCII)
_LARGEST: Final = 2**63 - 1  # bytes
_logger: Final = logging.getLogger(__name__)


def read_conf(folder: Path, ams_version: AmsVersion) -> dict[str, str]:
    """The settings in Flink's conf folder by their dotted names; none where it cannot be read.

    AMS too goes on without them. 0.7 knows flink-conf.yaml alone; later, config.yaml comes first.
    The older file is YAML to AMS 0.7 and 0.8, and lines of `key: value` to Flink and AMS since.
    """
    standard, legacy = folder / "config.yaml", folder / "flink-conf.yaml"  # the former since 1.19
    try:
        if ams_version > AmsVersion.V0_7 and standard.exists():
            return flattened(_mapping(standard.read_text(encoding="utf-8")))
        text = legacy.read_text(encoding="utf-8")
        return parse_lines(text) if ams_version >= AmsVersion.V0_9_0 else flattened(_mapping(text))
    except FileNotFoundError:
        return {}
    except (OSError, TypeError, ValueError, RecursionError, yaml.YAMLError) as error:
        # An error of YAML would show the line it stands in, which may hold a secret.
        _logger.warning(
            "Flink's configuration in %s counts as empty: %s", folder, type(error).__name__
        )
        return {}


def with_sizes(
    options: Mapping[str, str],
    resource: Mapping[str, str],
    conf: Mapping[str, str],
    ams_version: AmsVersion,
) -> dict[str, str]:
    """The options with the memory sizes of Flink's two processes as AMS states them.

    A property of the resource counts first, and Flink's own configuration last; AMS 0.7 has other
    names, units and forms. AMS counts whole MiB, and states `0 bytes` where that makes none; here
    such an option is left out, since Flink would not start with it. A StartFailedError says that a
    size cannot be read.
    """
    found, is_old = dict(options), ams_version is AmsVersion.V0_7
    for process in ("jobmanager", "taskmanager"):
        key = f"{process}.memory.process.size"
        first = f"{process}.memory" if is_old else key
        places = {
            f"property {first!r} of the resource": resource.get(first),
            f"property {PREFIX + key!r}": found.pop(key, None),
            f"{key!r} in Flink's configuration": conf.get(key),
        }
        if size := _size(places, is_old=is_old):
            found[key] = size
    return found


def flattened(conf: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings by their dotted names; lists as YAML text, and without those left empty."""
    found: dict[str, str] = {}
    for key, value in conf.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}.")
        elif text := value if isinstance(value, str) else _as_yaml(value):
            found[f"{prefix}{key}"] = text
    return found


def parse_lines(text: str) -> dict[str, str]:
    """The settings of an older Flink's file: `key: value`, and `#` begins a comment anywhere."""
    pairs = (line.partition("#")[0].strip().partition(": ") for line in text.splitlines())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    return {key: value for key, value in found.items() if key and value}


def _size(places: Mapping[str, str | None], *, is_old: bool) -> str:
    """The size that is stated first, as AMS writes it; empty if it is not a MiB."""
    stated = ((place, text) for place, text in places.items() if text is not None)
    place, text = next(stated, ("", ""))
    try:
        size = (parse_size_0_7 if is_old else parse_size)(text) // _MEBIBYTE if text else 0
    except ValueError as error:
        raise StartFailedError(f"{place}: {error}") from None
    if not size:
        return ""
    return f"{size}m" if is_old else print_size(size * _MEBIBYTE)


def _mapping(text: str) -> Mapping[str, Any]:
    """The document, its scalars as they are written: `8081`, `true`, `1600m`."""
    document = yaml.load(text, Loader=yaml.BaseLoader)  # noqa: S506 - builds nothing but texts
    if not isinstance(document, Mapping | None):
        raise TypeError("not a mapping")
    return document or {}


def _as_yaml(value: object) -> str:
    dumped = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return dumped.strip()


def parse_size(text: str) -> int:
    """A size in bytes, as AMS's MemorySize reads it: `1024`, `1600m`, `1 GB`, `2 gibibytes`.

    Units count by 1024; a bare number is in bytes. A ValueError says that it is no size, or one
    that does not fit into 63 bits.
    """
    return _in_bytes(text, _SIZE.fullmatch(text), "", "no size; one is like 1600m or 1 gb")


def parse_size_0_7(text: str) -> int:
    """The same as AMS 0.7 reads those of Flink: `1024` and `1024m` are MiB, `1g` is a GiB."""
    match = _SIZE_0_7.fullmatch(re.sub(r"\s", "", text).lower())
    return _in_bytes(text, match, "m", "no size that AMS 0.7 knows; one is like 1600, 1600m or 1g")


def _in_bytes(text: str, match: re.Match[str] | None, unit: str, problem: str) -> int:
    factor = _FACTORS.get(match[2].lower() or unit) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is {problem}")
    size: int = int(match[1]) * factor
    if size > _LARGEST:
        raise ValueError(f"{text!r} is too large for a size")
    return size


def print_size(size: int) -> str:
    """The bytes as AMS's MemorySize writes them: whole, in the largest unit that allows it.

    That of whole tebibytes is bytes again, as AMS has it.
    """
    power = next((power for power in range(5) if size % 1024**power), 1)
    label, _ = _LABELS[power - 1]
    return f"{size // 1024 ** (power - 1)} {label}"
