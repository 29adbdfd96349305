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

    Units count by 1024; a bare number is in bytes.

    Raises:
        ValueError: It is no size, or one that does not fit into 63 bits.
    """
    match = _SIZE.fullmatch(text)
    factor = _FACTORS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise ValueError(f"{text!r} is no size; one is like 1600m or 1 gb")
    return _fitting(text, int(match[1]) * factor)


def parse_size_0_7(text: str) -> int:
    """A size in bytes, as AMS 0.7 reads those of Flink: `1024` and `1024m` are MiB, `1g` is a GiB.

    Raises:
        ValueError: It is no such size, or one that does not fit into 63 bits.
    """
    match = _SIZE_0_7.fullmatch(re.sub(r"\s", "", text).lower())
    if match is None:
        raise ValueError(f"{text!r} is no size that AMS 0.7 knows; one is like 1600, 1600m or 1g")
    return _fitting(text, int(match[1]) * _FACTORS[match[2] or "m"])


def print_size(size: int) -> str:
    """The bytes as AMS's MemorySize writes them: whole, in the largest unit that allows it.

    That of whole tebibytes is bytes again, as AMS has it.
    """
    power = next((power for power in range(5) if size % 1024**power), 1)
    label, _ = _LABELS[power - 1]
    return f"{size // 1024 ** (power - 1)} {label}"


def _fitting(text: str, size: int) -> int:
    if size > _LARGEST:
        raise ValueError(f"{text!r} is too large for a size")
    return size
