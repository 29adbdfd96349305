"""What does one evaluation of `audit_sensor` leave to the next?"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from dagster_amoro_audit.windows import NO_INCIDENTS, Counts


class Told(NamedTuple):
    """What was told last of one check."""

    answer: str  # of the finding
    at: float  # in s since 1970


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Kept by Dagster with the sensor, as a text."""

    told: Mapping[str, Told] = field(default_factory=dict)  # by the name of a check
    events: str | None = None  # Dagster's cursor after the newest report of orphan_sensor
    pending: tuple[str, ...] = ()  # partitions of which something was reported since
    counts: Counts = NO_INCIDENTS  # those of the last refresh that was requested
    refreshed: float = 0.0  # when that was, in s since 1970
    is_stale: bool = True  # whether the page of the fleet does not show what was told since


def dump(memory: Memory) -> str:
    """The text of a memory."""
    return json.dumps(asdict(memory))


def load(text: str | None) -> Memory:
    """The memory in a text; a new one where it makes no sense: then all is told once more."""
    try:
        values: Any = json.loads(text or "{}")
        events = values.get("events")
        return Memory(
            told={n: Told(str(a), float(at)) for n, (a, at) in values.get("told", {}).items()},
            events=None if events is None else str(events),
            pending=tuple(map(str, values.get("pending", ()))),
            counts=Counts(*map(int, values.get("counts", NO_INCIDENTS))),
            refreshed=float(values.get("refreshed", 0)),
            is_stale=bool(values.get("is_stale", True)),
        )
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return Memory()
