"""Which of several deployments acts? The one that holds the lease, by the database's clock.

Every change of the holder has a number of its own, the fence. Whoever is about to act shows its
fence in the transaction that says so: a process that slept while another deployment took over, or
through the end of its lease, is refused there.
"""

from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from dagster_amoro.core.corrections import LONGEST_CLAIM
from dagster_amoro.core.errors import LeaseLostError
from dagster_amoro.stores.database import insert_unless_there, utc_now
from dagster_amoro.stores.schema import lease

_NAME: Final = "keeper"  # there is one lease; its name makes it one row
_NEVER: Final = datetime(2000, 1, 1, tzinfo=UTC)


class Lease(NamedTuple):
    """Who acts, and until when unless it renews."""

    holder: str  # the name of a deployment; empty: nobody yet
    fence: int  # one more with each new holder
    expires_at: datetime  # by the database's clock, aware UTC


_NOBODY: Final = Lease("", 0, _NEVER)


def acquire(connection: sa.Connection, holder: str, lease_time: timedelta) -> tuple[Lease, Lease]:
    """Takes the lease if it is free, or renews it; in a transaction that writes.

    Returns the lease as it was before, and as it is now: `holder`'s, or still the other's.
    """
    before, now = _read(connection, exclusively=True)
    if not before.fence:  # there was none ever; somebody else may be about to make it, too
        row = {"name": _NAME, "acquired_at": _NEVER, **_NOBODY._asdict()}
        insert_unless_there(connection, lease, row)
        before, now = _read(connection, exclusively=True)
    if before.holder != holder and before.expires_at > now + lease_time + LONGEST_CLAIM:
        # It was given while the database's clock was wrong; its holder, if it lives, renews it.
        before = before._replace(expires_at=now + lease_time)
        _write(connection, expires_at=before.expires_at)
    if before.holder != holder and now < before.expires_at:
        return before, before
    is_new = before.holder != holder
    after = Lease(holder, before.fence + is_new, now + lease_time)
    values = {**after._asdict(), **({"acquired_at": now} if is_new else {})}
    _write(connection, **values)
    return before, after


def in_force(connection: sa.Connection) -> int | None:
    """The fence of the lease that somebody holds at this moment; None: nobody does."""
    held = sa.select(lease.c.fence).where(lease.c.name == _NAME, lease.c.expires_at > utc_now())
    fence: int | None = connection.scalar(held)
    return fence


def _write(connection: sa.Connection, **values: Any) -> None:  # noqa: ANN401 - of the columns
    connection.execute(sa.update(lease).where(lease.c.name == _NAME).values(values))


def ensure(connection: sa.Connection, fence: int) -> None:
    """A LeaseLostError unless this fence's lease is in force, up to the end of the transaction."""
    current, now = _read(connection, exclusively=False)
    if current.fence != fence:
        raise LeaseLostError(f"the lease was taken over: {current.holder or 'nobody'} acts now")
    if current.expires_at <= now:
        raise LeaseLostError(f"the lease ran out at {current.expires_at:%Y-%m-%d %H:%M:%S} UTC")


def _read(connection: sa.Connection, *, exclusively: bool) -> tuple[Lease, datetime]:
    """The lease, which nobody changes before this transaction ends, and the database's time."""
    query = sa.select(*(lease.c[name] for name in Lease._fields)).where(lease.c.name == _NAME)
    row = connection.execute(query.with_for_update(read=not exclusively)).one_or_none()
    now = connection.scalars(sa.select(utc_now())).one().replace(tzinfo=UTC)
    return Lease._make(row) if row else _NOBODY, now
