"""What does a group say about itself: how many threads must it have, and who sizes it?

Read as AMS reads it (its `DynamicAllocationConfig`): a min-parallelism that makes no sense asks
for nothing, and dynamic allocation whose settings do not hold is off.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from dagster_amoro.core.errors import PropertiesError
from dagster_amoro.core.formatting import duration
from dagster_amoro.core.policy import TickSettings
from dagster_amoro.core.properties import parse_properties
from dagster_amoro_worker.durations import JAVA_BLANKS, UNITS, nanoseconds

_HEARTBEAT: Final = "heart-beat-interval"  # of resources, in ms; Amoro's optimizers have 10 s
MIN_PARALLELISM: Final = "min-parallelism"
"""How many threads a group has at least; deprecated in Amoro, and still what most groups have."""
_ENABLED: Final = "dynamic-allocation.enabled"
_MOST_THREADS: Final = 1024
_SHORTEST_IDLE: Final = UNITS["s"] * 30
_SPANS: Final = {
    "dynamic-allocation.scheduler-backlog-timeout": "1min",
    "dynamic-allocation.sustained-backlog-timeout": "30s",
    "dynamic-allocation.executor-idle-timeout": "5min",
    "dynamic-allocation.scale-down-cooldown": "1min",
    "dynamic-allocation.drain-timeout": "15min",
}
_INT_MAX: Final = 2**31 - 1
_INTEGER: Final = re.compile(r"([+-]?)0*(\d{1,10})")  # with the digits of any script, as in Java
_MILLISECONDS: Final = re.compile(r"[+-]?0*[0-9]{1,15}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """A row of `resource_group`."""

    name: str
    container_name: str | None
    properties: str | None  # JSON text as stored


def min_parallelism(group: Group) -> int | None:
    """The threads that the group must have at least; never negative.

    None: nobody asked for a min-parallelism, or the properties cannot be read. A value that is
    no number of threads is 0: AMS starts nothing for it.
    """
    text = _floor_text(_given(group, MIN_PARALLELISM))
    if text is None:
        return None
    try:
        return max(0, _integer(text.strip(JAVA_BLANKS)))
    except ValueError:
        return 0


def is_dynamic(group: Group) -> bool:
    """Whether AMS sizes the group by its load: dynamic allocation is on, readable, and holds."""
    given = _given(group, _ENABLED)
    if given.get(_ENABLED, "").lower() != "true" or group.container_name == "external":
        return False
    try:
        return _sizes_hold(given) and _spans_hold(given)
    except ValueError:
        return False


def absence_obstacle(name: str | None, settings: TickSettings) -> str | None:
    """Why the orphans of a group without a row are not to be restarted; None: they are.

    AMS lets a group be dropped while its resources stay, and refuses their optimizers from then on
    (apache/amoro #4320). Where there is no AMS, no group is asked for.
    """
    if settings.ams_heartbeat_timeout is None:
        return None
    what = f"its group {name} is not in resource_group" if name else "it has no group"
    return f"{what}, so that AMS would refuse its registration"


def group_obstacle(group: Group | None, settings: TickSettings) -> str | None:
    """Why the orphans of a group are not to be restarted; None: they are."""
    if group is None or group.name in settings.dynamic_groups or not is_dynamic(group):
        return None
    return (
        "its group is under dynamic allocation, and is sized by that alone "
        f"(keeper.groups.{group.name}.dynamic-allocation: restart would change it)"
    )


def heartbeat_obstacle(properties: Mapping[str, str], settings: TickSettings) -> str | None:
    """Why AMS would refuse an optimizer with these properties of its resource; None: it would not.

    AMS refuses an interval that is not below its timeout, older versions drop such an optimizer
    between two heartbeats (apache/amoro #1810). An interval that is no number ends an optimizer.
    """
    timeout, text = settings.ams_heartbeat_timeout, properties.get(_HEARTBEAT, "10000")
    if timeout is None:
        return None
    if not _MILLISECONDS.fullmatch(text):
        return f"its {_HEARTBEAT} is no number of milliseconds; with that an optimizer ends at once"
    interval = timedelta(milliseconds=int(text))
    if interval < timeout:
        return None
    return (
        f"its {_HEARTBEAT}, {duration(interval)}, is not below the heart-beat-timeout of AMS, "
        f"{duration(timeout)}, so that AMS would refuse its registration"
    )


def _given(group: Group, word: str) -> dict[str, str]:
    """The properties; empty if they do not have the word, or cannot be read."""
    text = group.properties
    # Few groups have such a key and all are asked at each tick; a search is cheaper than parsing.
    # A key spelled with \u002d goes unseen, but AMS escapes no such characters.
    if not isinstance(text, str) or word not in text:
        return {}
    try:
        return parse_properties(text)
    except PropertiesError:
        return {}


def _floor_text(given: Mapping[str, str]) -> str | None:
    return given.get(f"dynamic-allocation.{MIN_PARALLELISM}", given.get(MIN_PARALLELISM))


def _sizes_hold(given: Mapping[str, str]) -> bool:
    floor_text = _floor_text(given)
    least = 0 if floor_text is None else _integer(floor_text.strip(JAVA_BLANKS))
    most = _integer(given.get("dynamic-allocation.max-parallelism", ""))  # it is required
    unit = _integer(given.get("dynamic-allocation.executor-parallelism", "1"))
    if not (0 <= least <= most <= _MOST_THREADS and 1 <= unit <= most):
        return False
    return -(-least // unit) * unit <= most  # the min-parallelism is reached in whole executors


def _spans_hold(given: Mapping[str, str]) -> bool:
    spans = [nanoseconds(given.get(key, default)) for key, default in _SPANS.items()]
    _, sustained, idle, _, _ = spans
    whole = UNITS["ms"]  # AMS compares these two without what is finer
    return min(spans) > 0 and idle >= _SHORTEST_IDLE and sustained // whole * 2 <= idle // whole


def _integer(text: str) -> int:
    """What Java's `Integer.parseInt` reads; it trims nothing."""
    match = _INTEGER.fullmatch(text)
    number = int(match[1] + match[2]) if match else _INT_MAX + 1
    if not -_INT_MAX - 1 <= number <= _INT_MAX or max(text) > "\uffff":
        raise ValueError("no integer of Java")
    return number
