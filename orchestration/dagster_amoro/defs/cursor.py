"""What does one tick of the sensor leave to the next?"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from secrets import token_hex
from typing import Any, Final

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.messages import ACTS

Number = int | float | str
"""What a tick says of itself under one name; a word where it is not counted."""
Numbers = Mapping[str, Number]

_TOKEN: Final = re.compile("[0-9a-f]{16}")
_MOST_EVENTS: Final = 2**63 - 1  # what a database counts up to


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """Kept by Dagster with the sensor, as a text."""

    event: int = 0  # the newest event of the ledger that was reported as an asset event
    # The ledger that has it, and when it happened. None: an older version wrote the cursor.
    ledger: str | None = None
    event_at: datetime | None = None
    # Where more groups have news than one tick tells: the event up to which they are told, and the
    # group that was told last, in the order of their names. 0: all were told.
    until: int = 0
    told_group: str = ""
    detector: AmsRestartDetector = field(default_factory=AmsRestartDetector)
    last_served_group: str | None = None  # the group that the last batch of restarts served last
    abstentions: int = 0  # ticks in a row that concluded nothing
    # When the fleet was looked after last, by this deployment or by the one that it watches.
    completed_at: datetime | None = None
    reported: Numbers = field(default_factory=dict)  # of itself, when it last did
    # Ends the run keys of the next tick. Another one as soon as a tick has requested runs: Dagster
    # keeps the cursor of a tick together with its requests, or neither.
    token: str | None = None


def parse_cursor(text: str | None) -> Cursor:
    """The cursor in a text; a new one where there is none or where it makes no sense.

    Nothing but time is lost with it: events are reported once more, and optimizers met anew.
    """
    try:
        values: Any = json.loads(text or "{}")
        if isinstance(values, int):  # as the first version of the sensor wrote it
            values = {"event": values}
        last_served, ledger = values.get("last_served_group"), values.get("ledger")
        reported = values.get("reported", {}).items()
        return Cursor(
            event=_number(values.get("event", 0)),
            ledger=None if ledger is None else str(ledger),
            event_at=_moment(values.get("event_at")),
            until=_number(values.get("until", 0)),
            told_group=str(values.get("told_group", "")),
            detector=AmsRestartDetector(
                sample_tokens=tuple(map(str, values.get("sample_tokens", ()))),
                was_away=bool(values.get("was_away")),
                settling_since=_moment(values.get("settling_since")),
            ),
            last_served_group=None if last_served is None else str(last_served),
            abstentions=_number(values.get("abstentions", 0)),
            completed_at=_moment(values.get("completed_at")),
            reported={name: value for name, value in reported if isinstance(value, Number)},
            token=_token(values.get("token")),
        )
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return Cursor()


def dump_cursor(cursor: Cursor) -> str:
    """The text of a cursor; what is empty is left out.

    It begins with what the tick saw: of each tick the sensor's page shows some twenty characters.
    """
    values = {"saw": _saw(cursor.reported), **asdict(cursor)}
    values |= values.pop("detector")
    filled = {key: value for key, value in values.items() if value}
    return json.dumps(filled, default=datetime.isoformat)


def _saw(reported: Numbers) -> str:
    """As in "2 of 40 orphaned"; who acts, where nothing was looked at; empty: nobody knows."""
    if not {"orphans", "resources"} <= reported.keys():
        return str(reported.get(ACTS, ""))
    return f"{reported['orphans']} of {reported['resources']} orphaned"


def new_token() -> str:
    """A token that no cursor had before: 16 hexadecimal digits."""
    return token_hex(8)


def _token(value: Any) -> str | None:  # noqa: ANN401 - any value of JSON
    if value is None:
        return None
    if not _TOKEN.fullmatch(value):  # a run key has no room for anything else
        raise ValueError("no token")
    return str(value)


def _number(value: Any) -> int:  # noqa: ANN401 - any value of JSON
    number = int(value)
    if not 0 <= number <= _MOST_EVENTS:
        raise ValueError("no number of events")
    return number


def _moment(text: Any) -> datetime | None:  # noqa: ANN401 - any value of JSON
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:  # it could not be compared
        raise ValueError("a time without a zone")
    return moment
