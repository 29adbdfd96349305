"""The ledger: our own tables, with incidents and the append-only events of their stories.

`audit_queries` has what only the audit asks of it, and `migrations` its schema.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, Final, NamedTuple

import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.looks import Look
from dagster_amoro.core.model import Event, EventKind, Incident, ScaleUp, State, Transition
from dagster_amoro.core.pauses import Pause, Target
from dagster_amoro.core.post_mortem import PostMortem, tells_more
from dagster_amoro.core.texts import harmless_json, shown
from dagster_amoro.stores import bulk, leases, schema
from dagster_amoro.stores.batching import Batches
from dagster_amoro.stores.database import Database, insert_unless_there, utc_now
from dagster_amoro.stores.migrations import migrate
from dagster_amoro.stores.schema import INCIDENTS, IS_OPEN, event, incident

# The resource's row went with the incident.
_REMOVALS: Final = (State.EXHAUSTED, State.SUPERSEDED)
_REMOVED: Final = incident.c.state.in_(_REMOVALS)
_NEWEST_REMOVED: Final = 1_000  # incidents of each such outcome among which the newest are told
_CAUSELESS: Final = (IS_OPEN, incident.c.cause.is_(None), incident.c.attempts == 0)
MOST_COUNTED: Final = 100_000
"""Events that are counted at once, the newest; of what is before them nobody waits for the sum."""
UNCOUNTED: Final = "uncounted"
"""Among the kinds of a group's events: there are more, before those that are counted."""


class EventMark(NamedTuple):
    """Of which ledger an event is, and which one of those that ever had its number there."""

    ledger: str  # its identity
    at: datetime | None  # when the event happened; None: there is none


class LedgerTransaction:
    """One transaction on the ledger: everything applied through it is committed together."""

    def __init__(self, connection: sa.Connection, *, dry_run: bool = False) -> None:
        """Used through `Ledger.transaction`."""
        self.connection = connection
        self._dry_run = dry_run

    def apply(
        self, transitions: Iterable[Transition], goes_on: Callable[[], bool] = lambda: True
    ) -> list[Incident | None]:
        """Takes each step whose expected state still holds, with its event.

        Returns for each the incident as it now stands, or None where the race was lost: somebody
        else moved it first, and nothing was written for it. A step is written for certain, or not
        at all; asked before every thousand of them, but for the first, `goes_on` ends it there, and
        the list is shorter then.
        """
        results: list[Incident | None] = []
        for steps in _apart(transitions):
            if results and not goes_on():
                break
            results += self._take(steps)
        return results

    def add_pause(self, pause: Pause) -> None:
        """Pauses a target; an earlier pause of this target ends."""
        self.end_pause(pause.target)
        values = asdict(pause)
        values |= values.pop("target")
        bulk.insert(self.connection, schema.pause, [values])

    def end_pause(self, target: Target) -> bool:
        """Ends the pause of a target; False: it was not paused."""
        chosen = (schema.pause.c.scope == target.scope, schema.pause.c.name == target.name)
        return self._found(sa.delete(schema.pause).where(*chosen))

    def move_scale_up(self, before: ScaleUp | None, after: ScaleUp) -> bool:
        """Takes a step of a group's scale-up; `before` is None where the group had none.

        False: somebody else moved it first; nothing was written.
        """
        values = after._asdict() | {"dry_run": int(self._dry_run)}
        if before is None:
            return insert_unless_there(self.connection, schema.scale_up, values)
        return self._found(sa.update(schema.scale_up).where(*self._as(before)).values(values))

    def forget_scale_up(self, scale_up: ScaleUp) -> bool:
        """Forgets a group's scale-up; False: somebody else moved it first, and it stays."""
        return self._found(sa.delete(schema.scale_up).where(*self._as(scale_up)))

    def move_look(self, before: Look | None, after: Look) -> None:
        """Notes what was seen of a group; nothing where another tick has noted it meanwhile.

        `before` is None where nothing was known of the group.
        """
        if before is None:
            insert_unless_there(self.connection, schema.look, after._asdict())
        else:
            update = sa.update(schema.look).where(*_same_look(before))
            self.connection.execute(update.values(after._asdict()))

    def forget_look(self, look: Look) -> None:
        """Forgets what was seen of a group, unless another tick has noted something meanwhile."""
        self.connection.execute(sa.delete(schema.look).where(*_same_look(look)))

    def note_survey(self, at: datetime) -> None:
        """Notes when a tick has completed its survey of the fleet."""
        self.connection.execute(sa.update(schema.ledger).values(surveyed_at=at))

    def add_event(
        self, event: Event, incident: Incident | None = None, *, group_name: str | None = None
    ) -> None:
        """Adds an event that moves no incident.

        It belongs to the story of an incident; or concerns a group; or, with neither, every group.
        """
        of = (incident.incident_id, incident.group_name) if incident else (None, group_name)
        self._add_events([(*of, event)])

    def _as(self, read: ScaleUp) -> list[sa.ColumnElement[bool]]:
        """Chooses a scale-up where it is still as it was read."""
        columns = schema.scale_up.c
        names = ("group_name", "resource_id", "version")
        same = [columns[name] == getattr(read, name) for name in names]
        return [*same, columns.dry_run == int(self._dry_run)]

    def _found(self, statement: sa.Update | sa.Delete) -> bool:
        return self.connection.execute(statement).rowcount > 0

    def _add_events(self, events: Iterable[tuple[int | None, str | None, Event]]) -> None:
        prefix = "dry run, nothing is done: " if self._dry_run else ""
        mark = {"dry_run": True} if self._dry_run else {}
        rows = [
            {
                "incident_id": incident_id,
                "group_name": group_name,
                "kind": str(new.kind),
                "at": new.at,
                "message": str(shown(f"{prefix}{new.message}")),
                "attempt": new.attempt,
                "run_id": new.run_id,
                "details": harmless_json({**new.details, **mark}),
            }
            for incident_id, group_name, new in events
        ]
        bulk.insert(self.connection, event, rows)

    def _take(self, steps: Sequence[Transition]) -> list[Incident | None]:
        """Takes steps of different resources."""
        after = [self._marked(step) for step in steps]
        opened = self._open(
            [each for each, step in zip(after, steps, strict=True) if not step.before]
        )
        as_read = self._as_read([step.before for step in steps if step.before])
        moved: list[Incident | None] = []
        for each, step in zip(after, steps, strict=True):
            if step.before is None:
                number = opened.get(each.resource_id)
                moved.append(None if number is None else _stored(each, number))
            else:
                learned = as_read.get(each.incident_id)
                moved.append(_with_learned(each, *learned) if learned else None)
        known = [each for each in moved if each is not None and each.incident_id in as_read]
        bulk.rewrite(self.connection, incident, [_row(each) for each in known])
        taken = [(each, step) for each, step in zip(moved, steps, strict=True) if each is not None]
        self._add_events((each.incident_id, each.group_name, step.event) for each, step in taken)
        kept = [_removal(each, step) for each, step in taken if step.row]
        bulk.insert(self.connection, schema.removed_row, kept)
        return moved

    def _marked(self, step: Transition) -> Incident:
        """What a step leads to, with whether it was taken in a dry run."""
        before, after = step.before, step.after
        # An incident of a dry run stays one if it ends before its attempts were struck out.
        unsettled = before is not None and before.dry_run and not after.is_open
        return after._replace(dry_run=self._dry_run or unsettled)

    def _open(self, incidents: Sequence[Incident]) -> dict[str, int]:
        """The numbers of those that are open from now on and were not before, by resource."""
        rows = [_row(each) for each in incidents]
        for row in rows:
            del row["incident_id"]
        return bulk.insert_new(self.connection, incident, incident.c.open_resource_id, rows)

    def _as_read(self, before: Sequence[Incident]) -> dict[int, tuple[str | None, str | None]]:
        """Those that still are as they were read, by number; nobody else moves them then.

        With their cause and death, which may have been learned since: that is no step.
        """
        if not before:
            return {}
        state = sa.type_coerce(incident.c.state, sa.String)  # also one that is not known here
        columns = (incident.c.incident_id, state, incident.c.version)
        learned = (incident.c.cause, incident.c.death)
        mine = incident.c.incident_id.in_([each.incident_id for each in before])
        query = sa.select(*columns, *learned).where(mine).order_by(incident.c.incident_id)
        rows = self.connection.execute(query.with_for_update())
        found = {(number, state, version): tuple(rest) for number, state, version, *rest in rows}
        read = ((each.incident_id, each.state, each.version) for each in before)
        return {key[0]: found[key] for key in read if key in found}


def _stored(opened: Incident, number: int) -> Incident:
    """A new incident as it is read from now on."""
    return opened._replace(incident_id=number, detected_at=opened.detected_at.astimezone(UTC))


def _with_learned(after: Incident, cause: str | None, death: str | None) -> Incident:
    """What a step leads to, with a cause that was learned since it was read, if that tells more."""
    if cause is None or (after.cause is not None and tells_more(after.cause, cause)):
        return after
    return after._replace(cause=cause, death=death)


def _apart(steps: Iterable[Transition]) -> Iterator[list[Transition]]:
    """Some at a time, of different resources: what comes of one does not depend on another."""
    some: dict[str, Transition] = {}
    for step in steps:
        if len(some) == bulk.ROWS or step.after.resource_id in some:
            yield [*some.values()]
            some.clear()
        some[step.after.resource_id] = step
    if some:
        yield [*some.values()]


def _row(of: Incident) -> dict[str, Any]:
    """The row of an incident, as the table has it."""
    open_resource_id = of.resource_id if of.is_open else None
    flags = {"dry_run": int(of.dry_run), "is_attempting": int(of.is_attempting)}
    return of._asdict() | flags | {"open_resource_id": open_resource_id}


class Ledger:
    """Incidents and events in a database, brought to this version's schema at first use.

    Every method raises a StoreUnavailableError where the database does not answer, or holds what
    another version wrote; nothing was written then.
    """

    def __init__(self, database: Database, *, dry_run: bool = False) -> None:
        """A ledger in `database`, which may be the registry's; a dry run marks what it writes."""
        self.database = database
        self.dry_run = dry_run
        self._migrated = False
        self._batches: dict[int | None, Batches[Transition, Incident | None]] = {}  # by lease
        self._identity: str | None = None

    @property
    def identity(self) -> str:
        """What tells this ledger from every other, 32 hexadecimal digits; read once."""
        if self._identity is None:
            with self._reading() as connection:
                identity = sa.select(schema.ledger.c.identity)
                self._identity = connection.scalars(identity).one()
        return self._identity

    def clock(self) -> datetime:
        """What the database's clock says, aware UTC."""
        with self._reading() as connection:
            return connection.scalars(sa.select(utc_now())).one().replace(tzinfo=UTC)

    def surveyed_at(self) -> datetime | None:
        """When a tick completed a survey of the fleet last; None: none ever did."""
        with self._reading() as connection:
            at: datetime | None = connection.scalar(sa.select(schema.ledger.c.surveyed_at))
            return at

    @contextmanager
    def transaction(self, fence: int | None = None) -> Iterator[LedgerTransaction]:
        """A transaction that writes: committed at the end, rolled back on any error.

        With the fence of a lease, it raises a LeaseLostError where that is not in force.
        """
        self._migrate()
        with self.database.writing() as connection:
            if fence is not None:
                leases.ensure(connection, fence)
            yield LedgerTransaction(connection, dry_run=self.dry_run)

    def apply(self, transition: Transition) -> Incident | None:
        """Takes one step in a transaction of its own; None: the race was lost.

        Raises a LeaseLostError where it was dispatched under a lease that is not in force.
        """
        fence = transition.before.fence if transition.before else None
        return self._steps(fence).do(transition)

    def _steps(self, fence: int | None) -> Batches[Transition, Incident | None]:
        """The steps of all threads that act under one lease, a transaction for several of them."""

        def take(steps: Sequence[Transition]) -> list[Incident | None]:
            with self.transaction(fence) as transaction:
                return transaction.apply(steps)

        return self._batches.setdefault(fence, Batches(take))

    def ensure_lease(self, fence: int) -> None:
        """Raises a LeaseLostError if the lease with this fence is not in force at this moment."""
        with self.transaction(fence):
            pass

    def fence(self) -> int | None:
        """The fence of the lease that is in force; None: nobody holds one."""
        with self._reading() as connection:
            return leases.in_force(connection)

    def renew(self, run_id: str, until: datetime) -> None:
        """Extends every claim of a run that is alive, so that it holds until `until` at least."""
        mine = (incident.c.claimed_by == run_id, incident.c.claimed_until < until)
        values = {"claimed_until": until, "version": incident.c.version + 1}
        with self.transaction() as transaction:
            transaction.connection.execute(sa.update(incident).where(*mine).values(values))

    def note_causes(self, found: Mapping[int, PostMortem]) -> int:
        """Notes how workers of incidents ended, by their numbers; returns of how many.

        Only where an incident is open, was not tried to be healed, and has no cause yet. This is no
        step: its version stays, so that nobody who has it in hand loses it, and no event tells it.
        """
        with self.transaction() as transaction:
            return sum(
                transaction.connection.execute(_note_cause(number, end)).rowcount
                for number, end in sorted(found.items())
            )

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction for queries of one's own."""
        self._migrate()
        with self.database.reading() as connection:
            yield connection

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """For the ledger's own queries, which know what every value means."""
        with self.reading() as connection:
            try:
                yield connection
            except (ValueError, LookupError) as error:
                raise StoreUnavailableError(
                    f"the {self.database.name} holds what cannot be understood: {error}"
                ) from error

    def open_incidents(self, group_name: str | None = None) -> list[Incident]:
        """All incidents without an outcome, or those of a group; oldest first."""
        mine = () if group_name is None else (incident.c.group_name == group_name,)
        return self._incidents(IS_OPEN, *mine)

    def causeless(self, groups: Collection[str] | None, most: int) -> list[Incident]:
        """Open incidents of groups, or of all, that nobody asked the cause of, nor tried to heal.

        Of these the newest, and so many at most; the newest comes first.
        """
        number = incident.c.incident_id
        mine = sa.select(number).where(*_CAUSELESS)
        mine = mine if groups is None else mine.where(incident.c.group_name.in_(groups))
        # Not by the number itself, by whose index a database may go through all that is past.
        newest = mine.order_by(sa.desc(number + sa.literal_column("0"))).limit(most)
        with self._reading() as connection:
            chosen = connection.scalars(newest).all()
        return self._incidents(number.in_(chosen))[::-1]

    def claimed_by(self, owner: str) -> list[Incident]:
        """The open incidents that a run, or a dispatch, has a claim on; oldest first."""
        return self._incidents(incident.c.claimed_by == owner)  # none that is over is claimed

    def open_incident(self, resource_id: str) -> Incident | None:
        """The open incident of a resource; None: it has none."""
        return self._incident(incident.c.open_resource_id == resource_id)

    def incident(self, incident_id: int) -> Incident | None:
        """One incident as it stands; None: there is none of this number."""
        return self._incident(incident.c.incident_id == incident_id)

    def newest_incident(self, resource_id: str) -> int | None:
        """The number of the last incident of a resource, open or not; None: it never had one."""
        newest = sa.select(sa.func.max(incident.c.incident_id))
        with self._reading() as connection:
            mine = newest.where(incident.c.resource_id == resource_id)
            found: int | None = connection.scalar(mine)
            return found

    def recovered(self, since: datetime) -> list[Incident]:
        """The last incidents of resources that recovered since then; they may be open again."""
        newest = {each.resource_id: each for each in self._incidents(*self._closed(since))}
        return [each for each in newest.values() if each.state is State.RECOVERED]

    def unstable(self, since: datetime) -> dict[str, int]:
        """How many attempts each resource had used up that recovered since then.

        Attempts of a dry run count in a dry run only.
        """
        # Not by `recovered`: a tick that reads thousands needs four of twenty columns.
        columns = incident.c
        attempts_used = columns.attempts - columns.interrupted + columns.prior_attempts
        query = sa.select(columns.incident_id, columns.resource_id, columns.state, attempts_used)
        with self._reading() as connection:
            found = sorted(map(tuple, connection.execute(query.where(*self._closed(since)))))
        newest = {name: (state, used) for _, name, state, used in found}
        return {name: used for name, (state, used) in newest.items() if state is State.RECOVERED}

    def last_removed(self, resource_id: str) -> Incident | None:
        """The incident with which a resource was last removed, in a dry run too; None: never."""
        query = INCIDENTS.where(incident.c.resource_id == resource_id, _REMOVED)
        with self._reading() as connection:
            last = query.order_by(incident.c.incident_id.desc()).limit(1)
            row = connection.execute(last).one_or_none()
            return Incident._make(row) if row else None

    def removed_resources(self) -> list[str]:
        """The last resources whose rows were removed, but for dry runs; the newest first."""
        query = sa.select(incident.c.incident_id, incident.c.resource_id)
        query = query.where(incident.c.dry_run == 0).order_by(incident.c.incident_id.desc())
        found: list[tuple[int, str]] = []
        with self._reading() as connection:
            for state in _REMOVALS:  # of each by itself, an index has the newest
                of_state = query.where(incident.c.state == state).limit(_NEWEST_REMOVED)
                found += ((number, name) for number, name in connection.execute(of_state))
        return [*dict.fromkeys(name for _, name in sorted(found, reverse=True))]

    def removed_of(self, resource_ids: Sequence[str]) -> set[str]:
        """Those of these resources whose last incident removed their rows, but for dry runs."""
        number, name = sa.func.max(incident.c.incident_id).label("number"), incident.c.resource_id
        found: set[str] = set()
        with self._reading() as connection:
            for at in range(0, len(resource_ids), bulk.ROWS):
                some = name.in_(resource_ids[at : at + bulk.ROWS])
                last = sa.select(number).where(some, incident.c.dry_run == 0).group_by(name)
                last_of = last.subquery()
                states = sa.select(name, incident.c.state)
                states = states.join(last_of, last_of.c.number == incident.c.incident_id)
                # Chosen here, as an index of states would lead through all that was ever removed.
                rows = connection.execute(states)
                found.update(row.resource_id for row in rows if row.state in _REMOVALS)
        return found

    def removed_in_dry_run(self) -> set[str]:
        """The resources that would not be there any more if this were no dry run.

        A resource that became an orphan again after that, outside of a dry run, is there.
        """
        later = incident.alias()
        again = sa.exists().where(
            later.c.resource_id == incident.c.resource_id,
            later.c.incident_id > incident.c.incident_id,
        )
        query = sa.select(incident.c.resource_id).where(_REMOVED, incident.c.dry_run == 1, ~again)
        with self._reading() as connection:
            return set(connection.scalars(query))

    def removed_row(self, incident_id: int) -> dict[str, Any] | None:
        """The row, as the registry had it, that an incident last removed; None: there is none."""
        of = schema.removed_row.c
        query = sa.select(of.content).where(of.incident_id == incident_id)
        with self._reading() as connection:
            content = connection.scalar(query.order_by(of.removal_id.desc()).limit(1))
            return None if content is None else json.loads(content)

    def events(self, incident_id: int) -> list[Event]:
        """The story of one incident, in the order it was written."""
        query = sa.select(*(event.c[field.name] for field in fields(Event)))
        query = query.where(event.c.incident_id == incident_id).order_by(event.c.event_id)
        with self._reading() as connection:
            return [_event(row) for row in connection.execute(query).mappings()]

    def changed_groups(
        self, after_event: int, until: int | None = None
    ) -> tuple[dict[str, dict[str, int]], int]:
        """How many events of each kind each group has after an event; and the last that counts.

        That is the event `until`, or the newest one. Where there are more than `MOST_COUNTED`,
        those before them are not counted: their groups have the kind `UNCOUNTED`. Server databases
        number events before they are committed. An event that is overtaken by a higher number is
        missed here. The group's next refresh, which looks back, has it; at the latest that of the
        group's next event.
        """
        newest_event = sa.select(sa.func.max(event.c.event_id))
        groups: dict[str, dict[str, int]] = {}
        with self._reading() as connection:
            newest: int | None = until or connection.scalar(newest_event)
            if newest is None or newest <= after_event:
                return {}, after_event
            counted = max(after_event, newest - MOST_COUNTED)
            if counted > after_event:
                found = _groups_with_events(connection, after_event + 1, counted)
                groups = {name: {UNCOUNTED: 0} for name in found}
            for name, kind, number in connection.execute(_counts(counted + 1, newest)):
                groups.setdefault(name, {})[kind] = number
        return groups, newest

    def mark(self, event_id: int) -> "EventMark":
        """What tells the event of this number, in this ledger, from that of any other."""
        at = sa.select(event.c.at).where(event.c.event_id == event_id).scalar_subquery()
        with self._reading() as connection:
            query = sa.select(schema.ledger.c.identity, at.label("at"))
            found = EventMark._make(connection.execute(query).one())
        self._identity = found.ledger
        return found

    def pauses(self) -> list[Pause]:
        """The pauses that no operator ended, including those whose time is over."""
        with self._reading() as connection:
            return [
                Pause(
                    target=Target(scope=row.scope, name=row.name),
                    author=row.author,
                    reason=row.reason,
                    paused_at=row.paused_at,
                    until=row.until,
                )
                for row in connection.execute(sa.select(schema.pause))
            ]

    def scale_ups(self) -> dict[str, ScaleUp]:
        """The rounds of every group that did not reach its min-parallelism yet, by its name."""
        query = schema.SCALE_UPS.where(schema.scale_up.c.dry_run == int(self.dry_run))
        with self._reading() as connection:
            return {row[0]: ScaleUp._make(row) for row in connection.execute(query)}

    def looks(self) -> dict[str, Look]:
        """What the last completed tick saw of each group that is refilled, by its name."""
        query = sa.select(*(schema.look.c[name] for name in Look._fields))
        with self._reading() as connection:
            return {row[0]: Look._make(row) for row in connection.execute(query)}

    def _closed(self, since: datetime) -> list[sa.ColumnElement[bool]]:
        """Which incidents ended since then; in a dry run those of a dry run count too."""
        ended = incident.c.closed_at > since
        return [ended] if self.dry_run else [ended, incident.c.dry_run == 0]

    def _incident(self, condition: sa.ColumnElement[bool]) -> Incident | None:
        return next(iter(self._incidents(condition)), None)

    def _incidents(self, *conditions: sa.ColumnElement[bool]) -> list[Incident]:
        # Put in order here: for the order's sake a database may read all incidents there ever were.
        with self._reading() as connection:
            found = connection.execute(INCIDENTS.where(*conditions)).all()
            return sorted(map(Incident._make, found), key=itemgetter(0))

    def _migrate(self) -> None:
        if not self._migrated:
            migrate(self.database)
            self._migrated = True


def count_open(database: Database) -> int:
    """How many incidents wait for their outcome; where there is a ledger, which is not changed."""
    query = sa.select(sa.func.count()).where(IS_OPEN)
    with database.reading() as connection:
        return connection.scalar(query) or 0


def _note_cause(number: int, end: PostMortem) -> sa.Update:
    mine = sa.update(incident).where(incident.c.incident_id == number, *_CAUSELESS)
    return mine.values(cause=str(shown(end.cause)), death=str(shown(end.text)))


def _counts(first: int, last: int) -> sa.Select[Any]:
    """How many events of each kind each group has among these; both numbers are included."""
    # Not the column itself, by which SQLite would follow the index of the groups to its end.
    name = sa.type_coerce(event.c.group_name + sa.literal_column("''"), schema.Name())
    query = sa.select(name, event.c.kind, sa.func.count()).group_by(name, event.c.kind)
    some = event.c.event_id.between(first, last)
    return query.where(some, event.c.group_name.is_not(None))


def _groups_with_events(connection: sa.Connection, first: int, last: int) -> list[str]:
    """The groups that have one of these events; both numbers are included.

    From name to name by the index, since their events can be many millions.
    """
    name, number = event.c.group_name, event.c.event_id
    following = sa.select(name).order_by(name).limit(1)
    some = sa.select(number).where(number.between(first, last)).order_by(name, number).limit(1)
    found = []
    group: str | None = connection.scalar(following.where(name >= ""))
    while group is not None:
        if connection.scalar(some.where(name == group)) is not None:
            found.append(group)
        group = connection.scalar(following.where(name > group))
    return found


def _same_look(look: Look) -> list[sa.ColumnElement[bool]]:
    return [schema.look.c[name] == value for name, value in look._asdict().items()]


def _removal(of: Incident, step: Transition) -> dict[str, Any]:
    content = json.dumps(dict(step.row or {}), ensure_ascii=False)
    return {"incident_id": of.incident_id, "kept_at": step.event.at, "content": content}


def _event(row: sa.RowMapping) -> Event:
    kind, details = EventKind(row["kind"]), json.loads(row["details"])
    return Event(**{**row, "kind": kind, "details": details})
