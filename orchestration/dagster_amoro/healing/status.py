"""Who acts, what is each group short of, and what happens next to each orphan, and when?

Reads only: no row, no table and no file comes to be. What happens next is decided as a tick does
it, without Dagster: whether a run is still alive is not asked, its claim holds until it lapses.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import sqlalchemy as sa

from dagster_amoro.config import Mode
from dagster_amoro.core import groups
from dagster_amoro.core.errors import StoreUnavailableError, UnknownTargetError
from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.limits import blocked_groups
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.pauses import Pause, Pauses, Scope
from dagster_amoro.core.policy import (
    IN_A_RUN,
    Decision,
    OnExhausted,
    RestartPolicy,
    Verdict,
    due_at,
)
from dagster_amoro.core.scale_up import ScaleDecision, ScaleUp, ScaleUpState
from dagster_amoro.core.scaling import ScalePlan
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.core.tick_plan import NEXT_BATCH, RegistrySnapshot, missing, reconcile, unknown
from dagster_amoro.core.transitions import detect, enforce, replacement
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.healing.preconditions import silence_of
from dagster_amoro.healing.tick import inputs_of, plan_of, sizings_of
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import utc_now
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.inspection import has_tables
from dagster_amoro.stores.leases import Lease
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import resource

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


def take_status(keeper: Keeper, group: str | None = None) -> Status:
    """Looks at registry, ledger and AMS, and changes nothing.

    Raises:
        UnknownTargetError: There is no such group.
        StoreUnavailableError: A store does not answer, or an older version wrote the ledger.
    """
    recorded = _recorded(keeper)
    silence = silence_of(keeper.ams)
    outlook = _look(keeper, recorded)
    known = outlook.names() if outlook else []
    if group is not None and group not in known:
        there_are = f"there are {', '.join(known)}" if known else "there is none yet"
        raise UnknownTargetError(f"there is no group {group!r}; {there_are}")
    chosen = known if group is None else [group]
    now = outlook.now if outlook else keeper.clock()
    return Status(
        at=now,
        acting=_acting(keeper, recorded),
        mode=Mode.DRY_RUN if keeper.ledger.dry_run else Mode.ENFORCE,
        auto_restart=keeper.policy.enabled,
        attached=keeper.ams is not None,
        silence=_hidden(silence),
        pauses=tuple(_pauses(Pauses(recorded.pauses, now), group)),
        groups=outlook.groups(chosen) if outlook else (),
        orphans=outlook.orphans(chosen, silent=silence is not None) if outlook else (),
    )


class _LedgerAsItIs(Ledger):
    """A ledger that is read as it stands; nothing is created or brought up to date."""

    def _migrate(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Recorded:
    """What the ledger says; nothing, where it is not there yet."""

    incidents: Sequence[Incident] = ()
    pauses: Sequence[Pause] = ()
    scale_ups: Mapping[str, ScaleUp] = field(default_factory=dict)
    removed: Callable[[], Collection[str]] = frozenset
    lease: Lease | None = None
    lease_holds: bool = False  # by the database's clock


def _recorded(keeper: Keeper) -> _Recorded:
    database, dry_run = keeper.ledger.database, keeper.ledger.dry_run
    if not has_tables(database, schema.incident):
        return _Recorded()
    if not has_tables(database, schema.lease):
        raise StoreUnavailableError(
            f"the {database.name} is of an older version; the next tick brings it to this one's"
        )
    ledger = _LedgerAsItIs(database, dry_run=dry_run)
    return _Recorded(
        ledger.open_incidents(),
        ledger.pauses(),
        {} if keeper.ams else ledger.scale_ups(),
        ledger.removed_in_dry_run if dry_run else frozenset,
        *(_lease(ledger) if keeper.lease_time is not None else ()),
    )


def _lease(ledger: Ledger) -> tuple[Lease | None, bool]:
    columns = schema.lease.c
    with ledger.reading() as connection:
        row = connection.execute(sa.select(columns.holder, columns.fence, columns.expires_at))
        lease = next((Lease._make(found) for found in row if found.holder), None)
        now = connection.scalars(sa.select(utc_now())).one().replace(tzinfo=UTC)
    return lease, lease is not None and now < lease.expires_at


def _acting(keeper: Keeper, recorded: _Recorded) -> Acting:
    lease, us = recorded.lease, keeper.deployment
    if keeper.lease_time is None:
        told = "this deployment; it knows of no other (no lease)"
    elif lease is None:
        told = "nobody yet; whoever ticks first takes the lease"
    elif not recorded.lease_holds:
        told = f"nobody; the lease of {lease.holder} ran out at {clock_time(lease.expires_at)}"
    else:
        ours = lease.holder == us or lease.holder.startswith(f"{us} (")
        told = f"{lease.holder}, {'this deployment' if ours else f'while {us} watches'}"
        told += f"; its lease runs until {clock_time(lease.expires_at)}"
    holder, until = (lease.holder, lease.expires_at) if lease else (None, None)
    return Acting(deployment=us, holder=holder, until=until, message=told)


def _pauses(pauses: Pauses, group: str | None) -> Iterator[Pause]:
    for pause in pauses.holding.values():
        if group is None or pause.target.scope is not Scope.GROUP or pause.target.name == group:
            author, reason = hide_assigned(pause.author), hide_assigned(pause.reason)
            yield replace(pause, author=author, reason=reason)


def _look(keeper: Keeper, recorded: _Recorded) -> "_Outlook | None":
    """What the registry adds to it; None: there is no registry yet."""
    database, timeout = keeper.registry.database, keeper.registry.heartbeat_timeout
    if keeper.ams is None and not has_tables(database, resource):
        return None
    registry = DryRunRegistry(database, timeout, recorded.removed)
    survey = registry.read_snapshot()
    return _Outlook(replace(keeper, registry=registry), recorded, survey)


class _Outlook:
    """What the next tick would conclude from what is there now."""

    def __init__(self, keeper: Keeper, recorded: _Recorded, survey: RegistrySnapshot) -> None:
        self.now = keeper.clock()
        self._keeper = keeper
        self._survey = survey
        self._scale_ups = recorded.scale_ups
        self._counts = keeper.registry.resource_counts()
        self._inputs = inputs_of(
            keeper,
            survey,
            pauses=recorded.pauses,
            runs={},
            now=self.now,
            fence=recorded.lease.fence if recorded.lease else None,
        )
        gone = missing(survey, recorded.incidents)
        present = keeper.registry.present(gone) if gone else set()
        self._closing = reconcile(survey, recorded.incidents, present, self.now, opened=())
        closed = {step.after.incident_id for step in self._closing}
        incidents = [self._enforced(i) for i in recorded.incidents if i.incident_id not in closed]
        found = sizings_of(keeper, survey, incidents, self._scale_ups, self._inputs)
        self._sizings = {each.group.name: each for each in found}
        starting = [each for each in found if each.scale_decision is ScaleDecision.START]
        self._incidents = self._stood_in_for(incidents, starting)
        started = [each.group.name for each in starting]
        self._plan = plan_of(
            keeper, survey, self._incidents, self._scale_ups, started, self._inputs
        )

    def _enforced(self, incident: Incident) -> Incident:
        over = incident.dry_run and not self._keeper.ledger.dry_run
        if not over or incident.resource_id not in self._survey.orphans:
            return incident
        return enforce(incident, self.now).after

    def _stood_in_for(
        self, incidents: Sequence[Incident], starting: Sequence[ScalePlan]
    ) -> list[Incident]:
        """As they are once the rounds that are due have begun."""
        failed = {each.incident_id for scale_plan in starting for each in scale_plan.failed}
        return [
            replacement(each, "", self.now).after if each.incident_id in failed else each
            for each in incidents
        ]

    def names(self) -> list[str]:
        """All groups, also those that only rows of `resource` or incidents name."""
        orphaned = {orphan.group_name or "" for orphan in self._survey.orphans.values()}
        closing = {step.after.group_name for step in self._closing}
        recorded = {incident.group_name for incident in self._incidents}
        return sorted({*self._survey.groups, *self._counts} | orphaned | closing | recorded)

    def groups(self, names: Sequence[str]) -> tuple[GroupStatus, ...]:
        dead = Counter(orphan.group_name or "" for orphan in self._survey.orphans.values())
        held = blocked_groups(dead, dead.elements(), lambda: self._counts, self._keeper.limits)
        capacity = self._keeper.registry.capacity(names)
        return tuple(
            self._group(name, capacity[name], dead[name], held.get(name)) for name in names
        )

    def _group(
        self, name: str, threads: tuple[int, int], orphans: int, held: str | None
    ) -> GroupStatus:
        wanted, live = threads
        row = self._survey.sized.get(name)
        min_parallelism = groups.min_parallelism(row) if row else None
        scale_plan = self._sizings.get(name)
        pause = self._inputs.pauses.of_group(name)
        told = held or (
            scale_plan.message(self._keeper.max_keeping_attempts) if scale_plan else None
        )
        troubles = {
            "paused": pause is not None,
            "held": held is not None,
            "scale-up stopped": scale_plan is not None and scale_plan.scale_decision in _STOPPED,
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
            message=_hidden(told),
            scale_up=self._rounds(name),
        )

    def _rounds(self, group_name: str) -> Rounds | None:
        scale_up = self._scale_ups.get(group_name)
        if scale_up is None:
            return None
        return Rounds(
            rounds=scale_up.rounds,
            most=self._keeper.max_keeping_attempts,
            state=scale_up.state,
            next_at=scale_up.next_at,
            last_error=_hidden(scale_up.last_error),
        )

    def orphans(self, names: Sequence[str], *, silent: bool) -> tuple[OrphanStatus, ...]:
        wanted = set(names)
        found = [each for each in self._orphans(silent=silent) if each.group_name in wanted]
        return tuple(sorted(found, key=_urgency))

    def _orphans(self, *, silent: bool) -> Iterator[OrphanStatus]:
        before = "once AMS answers: " if silent else ""
        as_status = partial(_orphan, most=self._keeper.policy.max_retries, before=before)
        for step in self._closing:
            told = f"closed by the next tick: {step.event.message}"
            yield as_status(step.before or step.after, told, self.now)
        for incident in self._plan.due:
            due = min(due_at(incident, self._keeper.policy), self.now)
            yield as_status(incident, self._due(incident), due)
        for incident, decision in self._plan.waiting:
            yield as_status(incident, *self._waiting(incident, decision))
        for orphan in unknown(self._survey, self._incidents):
            new = detect(orphan, self.now).after
            found = as_status(new, "found by the next tick", self.now)
            yield replace(
                found, incident_id=None, state=None, orphaned_since=None, attempts_used=None
            )

    def _due(self, incident: Incident) -> str:
        verdict = self._plan.verdicts[incident.incident_id]
        if incident.operator_request:
            when = "at the next tick, by order of an operator"
        elif verdict is Verdict.RESTART and self._plan.last_served_group is not None:
            when = _ONE_OF_THE_NEXT
        else:
            when = "at the next tick"
        told = _ENDS.get(verdict) or _attempt(incident, self._keeper.policy)
        return told.format(when)

    def _waiting(self, incident: Incident, decision: Decision) -> tuple[str, datetime | None]:
        policy, until = self._keeper.policy, decision.until
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
        return _following(incident, policy).format(f"after {clock_time(until)}"), until


def _attempt(incident: Incident, policy: RestartPolicy) -> str:
    """What is to be done, with a gap for when; so are the texts of `_ENDS`."""
    return f"attempt {incident.attempts_used + 1} of {policy.max_retries} {{}}"


def _following(incident: Incident, policy: RestartPolicy) -> str:
    if incident.attempts_used < policy.max_retries:
        return _attempt(incident, policy)
    keeps = policy.on_exhausted is OnExhausted.KEEP
    return _ENDS[Verdict.KEEP if keeps else Verdict.GIVE_UP]


def _orphan(
    incident: Incident, told: str, at: datetime | None, *, most: int, before: str
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
        next=hide_assigned(before + told),
        next_at=at,
    )


def _urgency(orphan: OrphanStatus) -> tuple[bool, datetime, datetime, str]:
    """What happens soonest comes first, then what waits for a person."""
    at, since = orphan.next_at or _NEVER, orphan.orphaned_since or _NEVER
    return orphan.next_at is None, at, since, orphan.resource_id


def _hidden(text: str | None) -> str | None:
    return None if text is None else hide_assigned(text)
