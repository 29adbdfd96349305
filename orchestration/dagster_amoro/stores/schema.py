"""The ledger's tables: incidents, events, and what keeps several keepers and operators in step."""

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.types import TypeDecorator

from dagster_amoro.core.model import Incident, ScaleUp, ScaleUpState, State
from dagster_amoro.core.pauses import Scope
from dagster_amoro.stores.database import is_mysql, on_mysql

metadata: Final = sa.MetaData()


def _one_of(names: type[StrEnum]) -> sa.Enum:
    """A member's value as a text; a LookupError where this version knows none of that value."""
    values = [*map(str, names)]
    return sa.Enum(names, values_callable=lambda _: values, length=20, native_enum=False)


class UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC in Python, UTC without a zone in the database, to the microsecond."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """MySQL drops the fraction of a second unless told otherwise."""
        return on_mysql(dialect, "DATETIME", fsp=6) or self.impl_instance

    def process_bind_param(self, value: datetime | None, _dialect: sa.Dialect) -> datetime | None:
        """Refuses naive times: nobody could say which hour they mean."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; times in the ledger are aware UTC")
        return value.astimezone(UTC).replace(tzinfo=None)

    def result_processor(self, dialect: sa.Dialect, _coltype: object) -> Any:  # noqa: ANN401
        """Adds the zone that the column does not hold; in one call, as a tick reads thousands."""
        if dialect.name == "sqlite":  # which has texts
            return lambda text: text and datetime.fromisoformat(f"{text}+00:00")
        return lambda value: value and value.replace(tzinfo=UTC)


def _decoded(name: Any) -> str | None:  # noqa: ANN401 - as the driver has it
    return name.decode() if isinstance(name, bytes) else name


class Name(TypeDecorator[str]):
    """A name of up to 100 characters, exactly: for MySQL, "a" and "a " differ only as bytes."""

    impl = sa.String(100)
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """Four bytes for a character."""
        return on_mysql(dialect, "VARBINARY", length=400) or self.impl_instance

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> Any:  # noqa: ANN401
        """Bytes for MySQL."""
        return value.encode() if value is not None and is_mysql(dialect) else value

    def result_processor(self, dialect: sa.Dialect, _coltype: object) -> Any:  # noqa: ANN401
        """The name again; nothing is called where it is a text already: a tick reads thousands."""
        return _decoded if is_mysql(dialect) else None


class AnyText(TypeDecorator[str]):
    """A text of any length and origin, such as an error's.

    What no database stores is written as an escape: NUL, and half of a character pair.
    """

    impl = sa.Text
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        """MySQL's own TEXT ends at 64 KiB."""
        return on_mysql(dialect, "LONGTEXT") or self.impl_instance

    def process_bind_param(self, value: str | None, _dialect: sa.Dialect) -> str | None:
        """A text that can be stored."""
        if value is None:
            return None
        return value.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


_Number: Final = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers only INTEGER

incident: Final = sa.Table(
    "keeper_incident",
    metadata,
    sa.Column("incident_id", _Number, primary_key=True, autoincrement=True),
    sa.Column("resource_id", Name, nullable=False),
    sa.Column("group_name", Name, nullable=False),
    sa.Column("container_name", Name, nullable=False),
    sa.Column("thread_count", sa.Integer, nullable=False),
    sa.Column("state", _one_of(State), nullable=False),
    sa.Column("detected_at", UtcDateTime, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("attempted_at", UtcDateTime),
    sa.Column("attempt_ends_at", UtcDateTime),
    sa.Column("dispatches", sa.Integer, nullable=False),
    sa.Column("claimed_by", sa.String(100)),
    sa.Column("claimed_until", UtcDateTime),
    sa.Column("note", AnyText),
    sa.Column("last_error", AnyText),
    sa.Column("closed_at", UtcDateTime),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("prior_attempts", sa.Integer, nullable=False, server_default="0"),
    sa.Column("operator_request", sa.String(20)),
    sa.Column("newest_start", sa.String(40)),
    sa.Column("fence", sa.BigInteger),
    sa.Column("dry_run", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("setbacks", sa.Integer, nullable=False, server_default="0"),
    sa.Column("unused_dispatches", sa.Integer, nullable=False, server_default="0"),
    sa.Column("is_attempting", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("interrupted", sa.Integer, nullable=False, server_default="0"),
    sa.Column("doubted", AnyText),
    sa.Column("cause", sa.String(60)),
    sa.Column("death", AnyText),
    # The resource's id while the incident is open, NULL afterwards: at most one is open, and no
    # database needs a partial index for it.
    sa.Column("open_resource_id", Name, unique=True),
    sa.Index("keeper_incident_group", "group_name", "incident_id"),
    sa.Index("keeper_incident_claim", "claimed_by"),
    sa.Index("keeper_incident_detected", "detected_at"),
    # What is open has no such time: found as quickly, and by its group, whatever is past.
    sa.Index("keeper_incident_closed", "closed_at", "group_name"),
    sa.Index("keeper_incident_resource", "resource_id", "incident_id"),
    sa.Index("keeper_incident_state", "state", "dry_run", "incident_id"),
    sqlite_autoincrement=True,  # a number is never used again
)
IS_OPEN: Final = incident.c.closed_at.is_(None)
"""Every database finds these by their index; "is not NULL" of another one it may not."""
INCIDENTS: Final = sa.select(*(incident.c[name] for name in Incident._fields))
event: Final = sa.Table(
    "keeper_event",
    metadata,
    sa.Column("event_id", _Number, primary_key=True, autoincrement=True),
    sa.Column("incident_id", _Number),  # NULL: it is the story of a group, or of everything
    sa.Column("group_name", Name),  # NULL: it concerns every group
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("at", UtcDateTime, nullable=False),
    sa.Column("message", AnyText, nullable=False),
    sa.Column("attempt", sa.Integer),
    sa.Column("run_id", sa.String(100)),
    sa.Column("details", AnyText, nullable=False),  # a JSON object
    sa.Index("keeper_event_incident", "incident_id"),
    sa.Index("keeper_event_group", "group_name", "event_id"),
    sqlite_autoincrement=True,
)
removed_row: Final = sa.Table(
    "keeper_removed_row",
    metadata,
    sa.Column("removal_id", _Number, primary_key=True, autoincrement=True),
    sa.Column("incident_id", _Number, nullable=False),
    sa.Column("kept_at", UtcDateTime, nullable=False),
    sa.Column("content", AnyText, nullable=False),  # a JSON object: the columns as stored
    sa.Index("keeper_removed_row_incident", "incident_id", "removal_id"),
    sqlite_autoincrement=True,
)
"""Whole resource rows, secrets included: apart from the events, which are shown to people.

The rows of what was removed, and of what was started, since somebody else may remove that.
"""
pause: Final = sa.Table(
    "keeper_pause",
    metadata,
    sa.Column("pause_id", _Number, primary_key=True, autoincrement=True),
    sa.Column("scope", _one_of(Scope), nullable=False),
    sa.Column("name", Name, nullable=False),  # of the group or resource; empty: everything
    sa.Column("reason", AnyText, nullable=False),
    sa.Column("author", AnyText, nullable=False),
    sa.Column("paused_at", UtcDateTime, nullable=False),
    sa.Column("until", UtcDateTime),  # NULL: until somebody resumes
    sqlite_autoincrement=True,
)
"""What operators paused and did not resume; those whose time is over stay until then."""
scale_up: Final = sa.Table(
    "keeper_scale_up",
    metadata,
    sa.Column("group_name", Name, primary_key=True),
    sa.Column("dry_run", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("min_parallelism", sa.Integer, nullable=False),
    sa.Column("rounds", sa.Integer, nullable=False),
    sa.Column("resource_id", Name, nullable=False),
    sa.Column("threads", sa.Integer, nullable=False),
    sa.Column("state", _one_of(ScaleUpState), nullable=False),
    sa.Column("claimed_by", sa.String(100)),
    sa.Column("claimed_until", UtcDateTime),
    sa.Column("next_at", UtcDateTime),
    sa.Column("last_error", AnyText),
    sa.Column("fence", sa.BigInteger),
    sa.Column("version", sa.Integer, nullable=False),
)
"""Per group below its min-parallelism: the rounds in which a new resource was to be started.

Those of dry runs are apart: where nothing was started, nothing has failed.
"""
SCALE_UPS: Final = sa.select(*(scale_up.c[name] for name in ScaleUp._fields))
look: Final = sa.Table(
    "keeper_look",
    metadata,
    sa.Column("group_name", Name, primary_key=True),
    sa.Column("newest_start", sa.String(40), nullable=False),
    sa.Column("surplus", sa.Integer, nullable=False),
)
"""Per group with a min-parallelism that an AMS keeps: what the last completed tick saw of it."""
ledger: Final = sa.Table(
    "keeper_ledger",
    metadata,
    sa.Column("identity", sa.String(32), primary_key=True),
    sa.Column("settled", sa.String(10)),  # the last day (`YYYY-MM-DD`, UTC) in `day`; NULL: none
    sa.Column("surveyed_at", UtcDateTime),  # of the last tick that completed a survey; NULL: none
)
"""One row: what tells this ledger from every other, written when the tables are created.

And what there is once: up to when it is summed up, and when the fleet was looked at last.
"""
lease: Final = sa.Table(
    "keeper_lease",
    metadata,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("holder", sa.String(200), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),  # one more with each new holder
    sa.Column("acquired_at", UtcDateTime, nullable=False),  # times of the database's clock
    sa.Column("expires_at", UtcDateTime, nullable=False),
)
"""Which of several deployments acts."""
OUTCOMES: Final = (
    "self_recovered",
    "recovered_first",
    "recovered_later",
    "given_up",
    "released",
    "superseded",
)
"""The numbers of incidents that a day has, by how they ended on it."""
COUNTS: Final = (*OUTCOMES, "attempts")  # the latter: of those incidents, all together
day: Final = sa.Table(
    "keeper_day",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),  # UTC, `YYYY-MM-DD`; empty: all days
    sa.Column("group_name", Name, primary_key=True),
    sa.Column("container_name", Name, primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS),
    sa.Column("missing_seconds", sa.Double, nullable=False),  # in which any thread was missing
    sa.Column("missing_thread_seconds", sa.Double, nullable=False),
    # A JSON object: how many of those that recovered took how long, see the audit's `settling`.
    sa.Column("recovery", AnyText, nullable=False),
    # A JSON object: by why workers died, how many ended how; what is 0 is left out.
    sa.Column("causes", AnyText, nullable=False),
)
"""Sums of the incidents of days that are over: they stay when the incidents are deleted.

A day is written once, and added to the sum of all days in the same transaction.
"""
capacity: Final = sa.Table(
    "keeper_capacity",
    metadata,
    sa.Column("group_name", Name, primary_key=True),
    sa.Column("first_at", UtcDateTime, nullable=False),  # when anything was known of it first
    sa.Column("noted_at", UtcDateTime),  # of the last day's end, when ticks noted it last
    sa.Column("wanted", sa.Integer),  # threads that were wanted then
    sa.Column("thread_seconds", sa.Double, nullable=False),  # wanted from the first until then
)
"""Per group: the threads that were wanted from its beginning to the end of the last settled day."""
