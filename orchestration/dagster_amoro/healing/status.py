"""Who acts, what is each group short of, and what happens next to each orphan, and when?

Reads only: no row, no table and no file comes to be. What happens next is the plan of the next
tick, made of what is there now by the function that makes it for the tick. Dagster alone is not
asked: a run's claim holds until it lapses, and whose turn it is in a batch only the sensor knows.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import sqlalchemy as sa

from dagster_amoro.config import Mode
from dagster_amoro.core import groups
from dagster_amoro.core.errors import StoreUnavailableError, UnknownTargetError
from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.limits import blocked_groups
from dagster_amoro.core.model import Incident, ScaleUpState, State
from dagster_amoro.core.pauses import Pause, Pauses, Scope
from dagster_amoro.core.policy import (
    IN_A_RUN,
    NOT_CLAIMED,
    Decision,
    OnExhausted,
    RestartPolicy,
    Verdict,
    due_at,
)
from dagster_amoro.core.scale_up import ScaleDecision
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.core.tick_inputs import TickInputs
from dagster_amoro.core.tick_plan import NEXT_BATCH, plan_tick
from dagster_amoro.healing.preconditions import Preconditions, silence_of
from dagster_amoro.healing.reading import Recorded, TickReader
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import has_tables, utc_now
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.leases import Lease
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, resource

_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_STOPPED: Final = {ScaleDecision.STOP, ScaleDecision.STOPPED}
_ONE_OF_THE_NEXT: Final = "at one of the next ticks (keeper.max-restarts-per-tick)"
_ENDS: Final = {
    Verdict.GIVE_UP: "given up {}: its row moves to the ledger",
    Verdict.KEEP: "left to a person {}: its attempts are used up",
    Verdict.SUPERSEDE: "removed {}: others took its place",
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
    trouble: str | None  # in a word; None: it is well
    message: str | None  # the same in a sentence, where a word is not enough
    scale_up: Rounds | None


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
    last_error: str | None
    next: str  # what happens next, in a sentence
    next_at: datetime | None  # not before; if it is past: at the next tick. None: nobody can say


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """What an operator looks at first. Its fields, and those within it, are the keys of the JSON.

    Groups stand in the order of their names, orphans in that of what happens next.
    """

    at: datetime
    acting: Acting
    mode: Mode
    auto_restart: bool
    attached: bool  # whether the registry is an AMS's
    silence: str | None  # why AMS cannot be counted on now; None: it answers, or there is none
    pauses: tuple[Pause, ...]  # those in force
    groups: tuple[GroupStatus, ...]
    orphans: tuple[OrphanStatus, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatusReader:
    """Looks at registry, ledger and AMS, and changes nothing."""

    reader: TickReader
    preconditions: Preconditions

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
        silence = silence_of(self.preconditions.ams)
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
            pauses=tuple(_pauses(Pauses(recorded.pauses, now), group)),
            groups=outlook.groups(chosen) if outlook else (),
            orphans=outlook.orphans(chosen, silent=silence is not None) if outlook else (),
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
        return _Outlook(reader.read(recorded, snapshot, now=now, fence=fence), registry)

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


def as_json(status: Status) -> str:
    """The status for programs: the fields of `Status` as keys, times as `2026-03-29T00:59:30Z`."""
    return json.dumps(asdict(status), ensure_ascii=False, indent=2, default=_iso)


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
            author, reason = hide_assigned(pause.author), hide_assigned(pause.reason)
            yield replace(pause, author=author, reason=reason)


class _Outlook:
    """The plan of the next tick, in words."""

    def __init__(self, inputs: TickInputs, registry: Registry) -> None:
        self.now = inputs.now
        self._inputs = inputs
        self._registry = registry
        self._counts = inputs.count()
        self._plan = plan_tick(inputs)
        self._scaling = {each.group.name: each for each in self._plan.scaling}

    def names(self) -> list[str]:
        """All groups, also those that only rows of `resource` or incidents name."""
        snapshot = self._inputs.snapshot
        orphaned = {orphan.group_name or "" for orphan in snapshot.orphans.values()}
        recorded = {incident.group_name for incident in self._inputs.incidents}
        return sorted({*snapshot.groups, *self._counts} | orphaned | recorded)

    def groups(self, names: Sequence[str]) -> tuple[GroupStatus, ...]:
        dead = Counter(each.group_name or "" for each in self._inputs.snapshot.orphans.values())
        held = blocked_groups(dead, dead.elements(), lambda: self._counts, self._inputs.limits)
        capacity = self._registry.capacity(names)
        return tuple(
            self._group(name, capacity[name], dead[name], held.get(name)) for name in names
        )

    def _group(
        self, name: str, threads: tuple[int, int], orphans: int, held: str | None
    ) -> GroupStatus:
        wanted, live = threads
        row = self._inputs.snapshot.sized.get(name)
        min_parallelism = groups.min_parallelism(row) if row else None
        plan, most = self._scaling.get(name), self._inputs.settings.max_keeping_attempts
        troubles = {
            "paused": self._inputs.pauses.of_group(name) is not None,
            "held": held is not None,
            "scale-up stopped": plan is not None and plan.decision in _STOPPED,
            "below min-parallelism": live < (min_parallelism or 0),
            "orphans": orphans > 0,
        }
        return GroupStatus(
            name=name,
            resources=self._counts.get(name, 0),
            wanted=wanted,
            live=live,
            min_parallelism=min_parallelism,
            orphans=orphans,
            trouble=next((word for word, holds in troubles.items() if holds), None),
            message=_hidden(held or (plan.message(most) if plan else None)),
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

    def orphans(self, names: Sequence[str], *, silent: bool) -> tuple[OrphanStatus, ...]:
        before, most = "once AMS answers: " if silent else "", self._inputs.policy.max_retries
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
        if decision.reason == IN_A_RUN:
            return f"with a run until {clock_time(until)}, unless that renews its claim", until
        following = _attempt(incident, policy)
        if incident.attempts_used >= policy.max_retries:
            keeps = policy.on_exhausted is OnExhausted.KEEP
            following = _ENDS[Verdict.KEEP if keeps else Verdict.GIVE_UP]
        why = f": {decision.reason}" if decision.reason == NOT_CLAIMED else ""
        return following.format(f"after {clock_time(until)}") + why, until


def _attempt(incident: Incident, policy: RestartPolicy) -> str:
    """What is to be done, with a gap for when; so are the texts of `_ENDS`."""
    return f"attempt {incident.attempts_used + 1} of {policy.max_retries} {{}}"


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
        last_error=_hidden(incident.last_error),
        next=hide_assigned(before + text),
        next_at=at,
    )


def _urgency(orphan: OrphanStatus) -> tuple[bool, datetime, datetime, str]:
    """What happens soonest comes first, then what waits for a person."""
    at, since = orphan.next_at or _NEVER, orphan.orphaned_since or _NEVER
    return orphan.next_at is None, at, since, orphan.resource_id


def _hidden(text: str | None) -> str | None:
    return None if text is None else hide_assigned(text)
