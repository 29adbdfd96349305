"""How large is a size that a property states as text, and how does AMS write it?"""

import re
from typing import Final

MEBIBYTE: Final = 1 << 20  # bytes

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
