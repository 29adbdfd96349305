"""Who acts, what is each group short of, and what happens next to each orphan, and when?

Reads only: no row, no table and no file comes to be. What happens next is the plan of the next
tick, made of what is there now by the function that makes it for the tick. Dagster alone is not
asked: a run's claim holds until it lapses, and whose turn it is in a batch only the sensor knows.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import sqlalchemy as sa

from dagster_amoro.config import Mode
from dagster_amoro.core import groups
from dagster_amoro.core.errors import StoreUnavailableError, UnknownTargetError
from dagster_amoro.core.formatting import clock_time, counted
from dagster_amoro.core.limits import blocked_groups
from dagster_amoro.core.model import Incident, ScaleUpState, State
from dagster_amoro.core.pauses import Pause, Pauses, Scope
from dagster_amoro.core.policy import (
    IN_A_RUN,
    NOT_CLAIMED,
    Decision,
    RestartPolicy,
    Verdict,
    due_at,
    is_exhausted,
    why_kept,
)
from dagster_amoro.core.scale_up import ScaleDecision
from dagster_amoro.core.texts import Shown, shown, shown_json
from dagster_amoro.core.tick_inputs import TickInputs
from dagster_amoro.core.tick_plan import NEXT_BATCH, plan_tick
from dagster_amoro.healing.losses import Ended, lost
from dagster_amoro.healing.preconditions import Preconditions, silence_of
from dagster_amoro.healing.reading import Recorded, TickReader
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import has_tables, utc_now
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.leases import Lease
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, resource

_NEVER: Final = datetime.max.replace(tzinfo=UTC)
GIVEN_UP: Final = "given up"
"""The trouble of a group that is well but for what it has lost."""
_STOPPED: Final = {ScaleDecision.STOP, ScaleDecision.STOPPED}
_ONE_OF_THE_NEXT: Final = "at one of the next ticks (keeper.max-restarts-per-tick)"
_ENDS: Final = {
    Verdict.GIVE_UP: "given up {}: its row moves to the ledger",
    Verdict.KEEP: "left to a person {}: no more attempts are made",
    Verdict.SUPERSEDE: "removed {}: others took its place",
    Verdict.RELEASE: "released {}: somebody removed its row",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Acting:
    """Which deployment acts."""

    deployment: str  # this one
    holder: str | None  # of the lease, in force or not; None: nobody has one
    until: datetime | None  # its lease runs until then unless it is renewed
    message: str  # the same in a sentence


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounds:
    """How often a group got, or was to get, a new resource, in a row."""

    rounds: int
    most: int
    state: ScaleUpState  # of the last one
    next_at: datetime | None  # no round begins before
    last_error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupStatus:
    """A group."""

    name: str
    resources: int
    wanted: int  # threads, by its resources
    live: int  # threads, by its optimizers
    min_parallelism: int | None  # threads that it must have at least; None: nobody asked for any
    orphans: int
    starting: int  # resources that are too young to be orphans
    given_up: int  # resources, neither restored nor acknowledged
    kept: int  # resources without attempts left, not acknowledged
    lost_threads: int  # of both: so many fewer than were declared
    trouble: str | None  # in a word; None: it is well
    message: str | None  # the same in a sentence, where a word is not enough
    scale_up: Rounds | None

    @property
    def loss(self) -> str:
        """What it has lost: "2 given up, 4 threads fewer than declared"; empty: nothing."""
        return loss(given_up=self.given_up, kept=self.kept, threads=self.lost_threads)

    @property
    def condition(self) -> str:
        """How it does, in a few words: "ok" where nothing is the matter."""
        words = [] if self.trouble in {None, GIVEN_UP} else [str(self.trouble)]
        return "; ".join([*words, self.loss] if self.loss else words) or "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class LossStatus:
    """A resource that was given up or is kept, and that nobody has restored or acknowledged."""

    resource_id: str
    group_name: str
    incident_id: int
    state: State  # EXHAUSTED: its row was removed; KEPT: it is left where it is
    threads: int
    attempts: int  # starts that were decided on
    lost_at: datetime  # when it was given up, or its attempts were used up
    cause: str | None  # as in `OrphanStatus`, like the next two
    death: str | None
    last_error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OrphanStatus:
    """An orphan with its open incident."""

    resource_id: str
    group_name: str
    incident_id: int | None  # None, like the next three: the next tick opens an incident
    state: State | None
    orphaned_since: datetime | None
    attempts_used: int | None  # attempts of its budget that are used up
    max_attempts: int
    cause: str | None  # of the death of its worker, in a few words; None: nobody asked yet
    death: str | None  # the same in a sentence
    last_error: str | None
    next: str  # what happens next, in a sentence
    next_at: datetime | None  # not before; if it is past: at the next tick. None: nobody can say


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What an operator looks at first. Its fields, and those within it, are the keys of the JSON.

    Groups stand in the order of their names, orphans in that of what happens next, and losses in
    that of their moments, the newest last.
    """

    at: datetime
    acting: Acting
    mode: Mode
    auto_restart: bool
    attached: bool  # whether the registry is an AMS's
    silence: str | None  # why AMS cannot be counted on now; None: it answers, or there is none
    doubt: str | None  # why nothing is concluded from the registry; None: it can be written
    pauses: tuple[Pause, ...]  # those in force
    groups: tuple[GroupStatus, ...]
    orphans: tuple[OrphanStatus, ...]
    losses: tuple[LossStatus, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusReader:
    """Looks at registry, ledger and AMS, and changes nothing."""

    reader: TickReader
    preconditions: Preconditions
    given_up_for: timedelta = timedelta(days=1)  # so long a loss is told

    def read(self, group: str | None = None) -> Status:
        """The status of everything, or of one group.

        Raises:
            UnknownTargetError: There is no such group.
            StoreUnavailableError: A store does not answer, or an older version wrote the ledger.
        """
        reader, ledger = self.reader, _as_it_is(self.reader.ledger)
        recorded = replace(reader, ledger=ledger).read_ledger() if ledger else Recorded()
        has_lease = self.preconditions.lease_time is not None
        lease, lease_holds = _lease(ledger) if ledger and has_lease else (None, False)
        silence, doubt = silence_of(self.preconditions.ams), self._doubt()
        outlook = self._outlook(ledger, recorded, lease.fence if lease else None)
        known = outlook.names() if outlook else []
        if group is not None and group not in known:
            there_are = f"there are {', '.join(known)}" if known else "there is none yet"
            raise UnknownTargetError(f"there is no group {group!r}; {there_are}")
        chosen = known if group is None else [group]
        now = outlook.now if outlook else self.preconditions.clock()
        return Status(
            at=now,
            acting=self._acting(lease, holds=lease_holds),
            mode=Mode.DRY_RUN if reader.ledger.dry_run else Mode.ENFORCE,
            auto_restart=reader.policy.enabled,
            attached=reader.attached,
            silence=_hidden(silence),
            doubt=_hidden(doubt),
            pauses=tuple(_pauses(Pauses(recorded.pauses, now), group)),
            groups=outlook.groups(chosen) if outlook else (),
            orphans=outlook.orphans(chosen, _once(silence, doubt)) if outlook else (),
            losses=outlook.losses(chosen) if outlook else (),
        )

    def _outlook(
        self, ledger: Ledger | None, recorded: Recorded, fence: int | None
    ) -> "_Outlook | None":
        """What the next tick would do; None: there is no registry yet."""
        ours = self.reader.registry
        if not self.reader.attached and not has_tables(ours.database, resource):
            return None
        removed = ledger.removed_in_dry_run if ledger and ledger.dry_run else frozenset
        registry = DryRunRegistry(ours.database, ours.heartbeat_timeout, removed)
        snapshot, reader = registry.read_snapshot(), replace(self.reader, registry=registry)
        now = self.preconditions.clock()
        since = now - self.given_up_for
        losses = lost(ledger, registry, recorded.incidents, since) if ledger else []
        inputs = reader.read(recorded, snapshot, now=now, fence=fence)
        return _Outlook(inputs, registry, losses)

    def _doubt(self) -> str | None:
        """Why a tick would abstain from what it reads: none of its writes is possible there."""
        registry = self.reader.registry
        if not self.reader.policy.enabled or not has_tables(registry.database, resource):
            return None
        try:
            registry.ensure_writable()
        except StoreUnavailableError as error:
            return str(error)
        return None

    def _acting(self, lease: Lease | None, *, holds: bool) -> Acting:
        us = self.preconditions.deployment
        if self.preconditions.lease_time is None:
            message = "this deployment; it knows of no other (no lease)"
        elif lease is None:
            message = "nobody yet; whoever ticks first takes the lease"
        elif not holds:
            message = (
                f"nobody; the lease of {lease.holder} ran out at {clock_time(lease.expires_at)}"
            )
        else:
            ours = lease.holder == us or lease.holder.startswith(f"{us} (")
            message = f"{lease.holder}, {'this deployment' if ours else f'while {us} watches'}"
            message += f"; its lease runs until {clock_time(lease.expires_at)}"
        holder, until = (lease.holder, lease.expires_at) if lease else (None, None)
        return Acting(deployment=us, holder=holder, until=until, message=message)


def _once(silence: str | None, doubt: str | None) -> str:
    if silence is not None:
        return "once AMS answers: "
    return "once the registry can be written: " if doubt is not None else ""


def as_json(status: Status) -> Shown:
    """The status for programs: the fields of `Status` as keys, times as `2026-03-29T00:59:30Z`."""
    return shown_json(asdict(status), indent=2, default=_iso)


def _iso(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


class _LedgerAsItIs(Ledger):
    """A ledger that is read as it stands; nothing is created or brought up to date."""

    def _migrate(self) -> None:
        pass


def _as_it_is(ledger: Ledger) -> Ledger | None:
    if not has_tables(ledger.database, schema.incident):
        return None
    if not has_tables(ledger.database, schema.ledger):
        name = ledger.database.name
        raise StoreUnavailableError(
            f"the {name} is of an older version; the next tick brings it to this one's"
        )
    return _LedgerAsItIs(ledger.database, dry_run=ledger.dry_run)


def _lease(ledger: Ledger) -> tuple[Lease | None, bool]:
    """The lease, and whether it holds by the database's clock."""
    columns = schema.lease.c
    with ledger.reading() as connection:
        row = connection.execute(sa.select(columns.holder, columns.fence, columns.expires_at))
        lease = next((Lease._make(found) for found in row if found.holder), None)
        now = connection.scalars(sa.select(utc_now())).one().replace(tzinfo=UTC)
    return lease, lease is not None and now < lease.expires_at


def _pauses(pauses: Pauses, group: str | None) -> Iterator[Pause]:
    for pause in pauses.holding.values():
        if group is None or pause.target.scope is not Scope.GROUP or pause.target.name == group:
            yield replace(pause, author=shown(pause.author), reason=shown(pause.reason))


class _Outlook:
    """The plan of the next tick, in words."""

    def __init__(self, inputs: TickInputs, registry: Registry, losses: Sequence[Ended]) -> None:
        self.now = inputs.now
        self._losses = losses
        self._inputs = inputs
        self._registry = registry
        self._counts = inputs.count()
        self._plan = plan_tick(inputs)
        starting = self._inputs.snapshot.starting.values()
        self._starting = Counter(each.group_name or "" for each in starting)
        self._scaling = {each.group.name: each for each in self._plan.scaling}
        looks = (look for _, look in self._plan.looks if look is not None)
        self._surplus = {look.group_name: text for look in looks if (text := look.message)}

    def names(self) -> list[str]:
        """All groups, also those that only rows of `resource` or incidents name."""
        snapshot = self._inputs.snapshot
        unregistered = (*snapshot.orphans.values(), *snapshot.starting.values())
        orphaned = {orphan.group_name or "" for orphan in unregistered}
        recorded = {incident.group_name for incident in self._inputs.incidents}
        recorded |= {each.group_name for each in self._losses}
        return sorted({*snapshot.groups, *self._counts} | orphaned | recorded)

    def groups(self, names: Sequence[str]) -> tuple[GroupStatus, ...]:
        dead = Counter(each.group_name or "" for each in self._inputs.snapshot.orphans.values())
        held = blocked_groups(dead, dead.elements(), lambda: self._counts, self._inputs.limits)
        capacity = self._registry.capacity(names)
        losses: dict[str, list[Ended]] = {}
        for each in self._losses:
            losses.setdefault(each.group_name, []).append(each)
        return tuple(
            self._group(name, capacity[name], dead[name], held.get(name), losses.get(name, ()))
            for name in names
        )

    def _group(
        self,
        name: str,
        threads: tuple[int, int],
        orphans: int,
        held: str | None,
        losses: Sequence[Ended],
    ) -> GroupStatus:
        wanted, live = threads
        given_up = sum(each.state is State.EXHAUSTED for each in losses)
        row = self._inputs.snapshot.sized.get(name)
        min_parallelism = groups.min_parallelism(row) if row else None
        plan, most = self._scaling.get(name), self._inputs.settings.max_keeping_attempts
        size = plan.message(most) if plan else self._surplus.get(name)
        troubles = {
            "paused": self._inputs.pauses.of_group(name) is not None,
            "held": held is not None,
            "scale-up stopped": plan is not None and plan.decision in _STOPPED,
            "below min-parallelism": live < (min_parallelism or 0),
            "orphans": orphans > 0,
            "above min-parallelism": name in self._surplus,
            GIVEN_UP: bool(losses),
        }
        return GroupStatus(
            name=name,
            resources=self._counts.get(name, 0),
            wanted=wanted,
            live=live,
            min_parallelism=min_parallelism,
            orphans=orphans,
            starting=self._starting[name],
            given_up=given_up,
            kept=len(losses) - given_up,
            lost_threads=sum(each.thread_count for each in losses),
            trouble=next((word for word, holds in troubles.items() if holds), None),
            message=_hidden(held or size),
            scale_up=self._rounds(name, most),
        )

    def _rounds(self, group_name: str, most: int) -> Rounds | None:
        scale_up = self._inputs.scale_ups.get(group_name)
        return scale_up and Rounds(
            rounds=scale_up.rounds,
            most=most,
            state=scale_up.state,
            next_at=scale_up.next_at,
            last_error=_hidden(scale_up.last_error),
        )

    def losses(self, names: Sequence[str]) -> tuple[LossStatus, ...]:
        """What these groups have lost."""
        wanted = set(names)
        return tuple(_loss(each) for each in self._losses if each.group_name in wanted)

    def orphans(self, names: Sequence[str], before: str) -> tuple[OrphanStatus, ...]:
        """Those of these groups; `before` says what has to come before anything happens."""
        most = self._inputs.policy.max_retries
        as_status = partial(_orphan, most=most, before=before)
        plan, wanted = self._plan, set(names)
        new = {step.after.resource_id: step.after for step in plan.steps if step.before is None}
        found = [
            as_status(step.before, f"closed by the next tick: {step.event.message}", self.now)
            for step in plan.steps
            if step.before is not None and not step.after.is_open
        ]
        found += [as_status(incident, *self._due(incident)) for incident in plan.due]
        found += [as_status(each, *self._waiting(each, why)) for each, why in plan.waiting]
        found = [each for each in found if each.resource_id not in new]
        for incident in new.values():
            unseen = as_status(incident, "found by the next tick", self.now)
            found.append(
                replace(
                    unseen, incident_id=None, state=None, orphaned_since=None, attempts_used=None
                )
            )
        return tuple(sorted((one for one in found if one.group_name in wanted), key=_urgency))

    def _due(self, incident: Incident) -> tuple[str, datetime]:
        verdict = self._plan.verdicts[incident.incident_id]
        when = "at the next tick"
        if incident.operator_request:
            when += ", by order of an operator"
        elif verdict is Verdict.RESTART and self._plan.last_served_group is not None:
            when = _ONE_OF_THE_NEXT
        text = _ENDS.get(verdict) or _attempt(incident, self._inputs.policy)
        return text.format(when), min(due_at(incident, self._inputs.policy), self.now)

    def _waiting(self, incident: Incident, decision: Decision) -> tuple[str, datetime | None]:
        policy, until = self._inputs.policy, decision.until
        if decision.verdict is Verdict.HOLD:
            pause = self._inputs.pauses.of(incident.resource_id, incident.group_name)
            return f"held: {decision.reason}", pause.until if pause and policy.enabled else None
        if decision.verdict is Verdict.REPORT:
            return f"left alone: {decision.reason}", None
        if decision.reason == NEXT_BATCH:
            return _attempt(incident, policy).format(_ONE_OF_THE_NEXT), due_at(incident, policy)
        if until is None:
            return f"waits: {decision.reason}", None
        following = _attempt(incident, policy)
        if is_exhausted(incident, policy):
            keeps = why_kept(incident, policy) is not None
            following = _ENDS[Verdict.KEEP if keeps else Verdict.GIVE_UP]
        if decision.reason == IN_A_RUN:
            return following.format(f"by a run until {clock_time(until)}"), until
        why = f": {decision.reason}" if decision.reason == NOT_CLAIMED else ""
        return following.format(f"after {clock_time(until)}") + why, until


def _attempt(incident: Incident, policy: RestartPolicy) -> str:
    """What is to be done, with a gap for when; so are the texts of `_ENDS`."""
    return f"attempt {incident.attempts_spent + 1} of {policy.max_retries} {{}}"


def _orphan(
    incident: Incident, text: str, at: datetime | None, *, most: int, before: str
) -> OrphanStatus:
    return OrphanStatus(
        resource_id=incident.resource_id,
        group_name=incident.group_name,
        incident_id=incident.incident_id,
        state=incident.state,
        orphaned_since=incident.detected_at,
        attempts_used=incident.attempts_used,
        max_attempts=most,
        cause=_hidden(incident.cause),
        death=_hidden(incident.death),
        last_error=_hidden(incident.last_error),
        next=shown(before + text),
        next_at=at,
    )


def loss(*, given_up: int, kept: int, threads: int) -> str:
    """So many resources and threads are lost, as a person reads it; empty: none is."""
    parts = [f"{given_up:,} given up"] if given_up else []
    parts += [f"{kept:,} out of attempts and kept"] if kept else []
    return ", ".join([*parts, f"{counted(threads, 'thread')} fewer than declared"] if parts else [])


def _loss(ended: Ended) -> LossStatus:
    return LossStatus(
        resource_id=ended.resource_id,
        group_name=ended.group_name,
        incident_id=ended.incident_id,
        state=ended.state,
        threads=ended.thread_count,
        attempts=ended.attempts,
        lost_at=ended.closed_at,
        cause=_hidden(ended.cause),
        death=_hidden(ended.death),
        last_error=_hidden(ended.last_error),
    )


def _urgency(orphan: OrphanStatus) -> tuple[bool, datetime, datetime, str]:
    """What happens soonest comes first, then what waits for a person."""
    at, since = orphan.next_at or _NEVER, orphan.orphaned_since or _NEVER
    return orphan.next_at is None, at, since, orphan.resource_id


def _hidden(text: str | None) -> str | None:
    return None if text is None else shown(text)
