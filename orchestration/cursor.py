"""What does one tick of the sensor leave to the next?"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from orchestration.keeping.continuity import Watch


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Kept by Dagster with the sensor, as a text."""

    event: int = 0  # the newest event of the ledger that was reported as an asset event
    watch: Watch = field(default_factory=Watch)
    turn: str | None = None  # the group that the last wave of restarts served last


def parse_cursor(text: str | None) -> Cursor:
    """The cursor in a text; a new one where there is none or where it makes no sense.

    Nothing but time is lost with it: asset events are reported once more, and AMS's optimizers
    are got to know anew.
    """
    try:
        values: Any = json.loads(text or "{}")
        if isinstance(values, int):  # as the first version of the sensor wrote it
            return Cursor(event=values)
        since = values.get("settling_since")
        watch = Watch(
            witnesses=tuple(map(str, values.get("witnesses", ()))),
            was_away=bool(values.get("was_away")),
            settling_since=datetime.fromisoformat(since) if since else None,
        )
        turn = values.get("turn")
        return Cursor(
            event=int(values.get("event", 0)), watch=watch, turn=None if turn is None else str(turn)
        )
    except (ValueError, TypeError, AttributeError, RecursionError):
        return Cursor()


def dump_cursor(cursor: Cursor) -> str:
    """The text of a cursor; what is empty is left out."""
    watch = cursor.watch
    since = watch.settling_since.isoformat() if watch.settling_since else None
    values = {
        "event": cursor.event,
        "witnesses": list(watch.witnesses),
        "was_away": watch.was_away,
        "settling_since": since,
        "turn": cursor.turn,
    }
    return json.dumps({key: value for key, value in values.items() if value})
