"""What the audit's assets and partitions are called."""

from typing import Final
from urllib.parse import quote, unquote

import dagster as dg

EVENTS: Final = dg.AssetKey("orphan_events")
HISTORY: Final = dg.AssetKey("orphan_history")
GROUPS: Final = dg.DynamicPartitionsDefinition(name="optimizer_group")

_NAMELESS: Final = "%"  # no name is quoted to this
_UNSAFE: Final = {"%", "/", "\\", "|", *(chr(code) for code in (*range(32), 127))}


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
