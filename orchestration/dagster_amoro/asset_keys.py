"""What the audit's assets and partitions are called."""

from hashlib import sha256
from typing import Final
from urllib.parse import quote, unquote

import dagster as dg

RESOURCES: Final = dg.AssetKey(["amoro", "resource"])
OPTIMIZERS: Final = dg.AssetKey(["amoro", "optimizer"])
EVENTS: Final = dg.AssetKey("orphan_events")
HISTORY: Final = dg.AssetKey("orphan_history")
GROUPS: Final = dg.DynamicPartitionsDefinition(name="optimizer_group")
AUDIT: Final = "audit"  # the asset group

_NAMELESS: Final = "%"  # no name is quoted to this
_UNSAFE: Final = {"%", "/", "\\", "|", *(chr(code) for code in (*range(32), 127))}
_LONGEST_FOLDER: Final = 120  # bytes; file systems take 255
_CUT: Final = "%-"  # before the hash of a name that was cut; a `%` in a key has digits after it


def partition_key(group_name: str) -> str:
    """The partition of a group: its name, with what Dagster or a file system takes amiss quoted.

    Percent-quoted are control characters, slashes, `|`, `%` itself and dots that could mean a
    folder (or Dagster's `...` for ranges), so that names stay distinct and harmless.
    """
    if not group_name:
        return _NAMELESS
    quoted = "".join(quote(c, safe="") if c in _UNSAFE else c for c in group_name)
    quoted = quoted.replace("..", "%2E%2E")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def group_name(key: str) -> str:
    """The group of a partition."""
    return "" if key == _NAMELESS else unquote(key)


def folder_name(key: str) -> str:
    """The folder of a partition: its key, where that is short and no part of a URL's syntax.

    A key that is too long for a file system is cut and told apart by a hash. A `::` would chain
    two URLs in fsspec.
    """
    name = key.replace("::", "%3A%3A")
    if len(name.encode()) <= _LONGEST_FOLDER:
        return name
    digest = f"{_CUT}{sha256(name.encode()).hexdigest()[:32]}"
    return name.encode()[: _LONGEST_FOLDER - len(digest)].decode(errors="ignore") + digest
