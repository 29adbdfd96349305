"""What may operators tell the keeper to do, and what comes of it?

Each verb writes who wanted it and why into the ledger, together with what it does, and returns
one sentence for a person. None of them needs the lease: they move incidents, which takes them from
whoever has them in hand, and leave the acting to ticks and runs.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from dagster_amoro.config import parse_duration
from dagster_amoro.core import transitions
from dagster_amoro.core.errors import KeeperError, UnknownTargetError
from dagster_amoro.core.formatting import clock_time, counted, duration
from dagster_amoro.core.messages import next_step
from dagster_amoro.core.model import (
    Event,
    EventKind,
    Incident,
    OperatorRequest,
    State,
    Transition,
)
from dagster_amoro.core.pauses import EVERYTHING, Pause, Pauses, Scope, Target
from dagster_amoro.core.policy import holds_claim
from dagster_amoro.core.scale_up import ScaleUp
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.core.transitions import signed
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.stores import inspection
from dagster_amoro.stores.registry import orphan_of
from dagster_amoro.stores.transaction import LedgerTransaction

SHOWN: Final = 10  # names that a message lists
_TRIES: Final = 2  # a race that is lost to a tick or a run is run once more

By = Mapping[str, str]
"""Who wants it and why: `author` and `reason`."""


def target_of(group: str | None, resource: str | None) -> Target:
    """What a verb is about, by what was named; everything where nothing was.

    Raises:
        UnknownTargetError: Both were named, or a name is empty.
    """
    if group is not None and resource is not None:
        raise UnknownTargetError("name a group or a resource, not both")
    name = resource if group is None else group
    if name is None:
        return EVERYTHING
    if not name:
        raise UnknownTargetError("the name of a group or a resource is empty")
    return Target(scope=Scope.RESOURCE if group is None else Scope.GROUP, name=name)


def end_of(now: datetime, until: str | None, span: str | None = None) -> datetime | None:
    """When something ends, by what was typed; None: nothing was.

    Args:
        now: Aware UTC.
        until: A moment in ISO 8601; without a zone it is a local time of this machine.
        span: Or a duration from now, as in the configuration.

    Raises:
        KeeperError: It cannot be read, or both were given.
    """
    if until is not None and span is not None:
        raise KeeperError("say until when or for how long, not both")
    try:
        if span is not None:
            return now + parse_duration(span)
        return datetime.fromisoformat(until).astimezone(UTC) if until is not None else None
    except (ValueError, OverflowError) as error:
        typed, asked = (span, "for how long")
        if until is not None:
            typed, asked = (until, "until when, as in 2026-03-29T08:00")
        raise KeeperError(f"{typed!r} does not say {asked}: {error}") from None


def pause(
    keeper: Keeper, target: Target, *, author: str, reason: str, until: datetime | None = None
) -> str:
    """Lets nothing be started or removed there, in the place of an earlier pause of the same.

    Incidents are opened and closed all the same. `until` is aware UTC; None: until it is resumed.

    Raises:
        UnknownTargetError: There is no such group or resource.
        KeeperError: The end is past; or who or why was not said.
    """
    by, now = _by(author, reason), keeper.clock()
    if until is not None and until <= now:
        raise KeeperError(f"a pause until {clock_time(until)} is over: it is {clock_time(now)} now")
    place = _place(keeper, target)
    new = Pause(target=target, **by, paused_at=now, until=until)
    earlier = Pauses(keeper.ledger.pauses(), now).holding.get(target)
    told = f"{target} is paused until {clock_time(until) if until else 'somebody resumes it'}"
    replaced = f"; before, {earlier}" if earlier else ""
    details = {**by, "target": str(target), "until": until.isoformat() if until else None}
    with keeper.ledger.transaction() as ledger:
        ledger.add_pause(new)
        event = _event(EventKind.PAUSED, f"{signed(told, by)}{replaced}", now, details)
        place.add_event(ledger, event)
    return f"{event.message}. Nothing is started or removed there; a start under way is finished."


def resume(keeper: Keeper, target: Target, *, author: str, reason: str) -> str:
    """Ends the pause of a target.

    Raises:
        UnknownTargetError: It is not paused.
        KeeperError: Who or why was not said.
    """
    by, now = _by(author, reason), keeper.clock()
    holding = Pauses(keeper.ledger.pauses(), now).holding
    ended = holding.get(target)
    if ended is None:
        raise _not_paused(target, holding.values())
    place = _place(keeper, target, known=True)
    details = {**by, "target": str(target), "until": None}
    with keeper.ledger.transaction() as ledger:
        if not ledger.end_pause(target):
            raise _not_paused(target, [each for each in holding.values() if each != ended])
        told = f"{signed(f'{target} is resumed', by)}; before, {ended}"
        place.add_event(ledger, event := _event(EventKind.RESUMED, told, now, details))
    left = Pauses(keeper.ledger.pauses(), now)
    in_a_group = target.scope is Scope.RESOURCE
    group = place.group_name or ""
    still = left.of(target.name, group) if in_a_group else left.of_group(target.name)
    follows = f"But {still}." if still else f"The next tick goes on, {_soon(keeper)}."
    return f"{event.message}. {follows}"


def restart_now(keeper: Keeper, resource_id: str, *, author: str, reason: str) -> str:
    """Has an orphan restarted without waiting for the end of its grace period.

    It counts as an attempt, and is made even where they are used up.

    Raises:
        UnknownTargetError: It is no orphan, or cannot be restarted now.
        KeeperError: Who or why was not said.
    """
    incident = _order(keeper, resource_id, OperatorRequest.RESTART, _by(author, reason))
    attempt = f"attempt {incident.attempts_used + 1} of {keeper.policy.max_retries}"
    if incident.attempts_used >= keeper.policy.max_retries:
        attempt = (
            f"attempt {incident.attempts_used + 1}, beyond the {keeper.policy.max_retries} allowed"
        )
    return (
        f"{resource_id} is to be restarted ({attempt}): the next tick hands it to a run, "
        f"{_soon(keeper)}{_dry_run_note(keeper)}."
    )


def give_up(keeper: Keeper, resource_id: str, *, author: str, reason: str) -> str:
    """Has an orphan given up: released and removed, its row kept in the ledger.

    Raises:
        UnknownTargetError: It is no orphan, or cannot be given up now.
        KeeperError: Who or why was not said.
    """
    _order(keeper, resource_id, OperatorRequest.GIVE_UP, _by(author, reason))
    return (
        f"{resource_id} is to be given up: the next tick hands it to a run, {_soon(keeper)}, which "
        "keeps its row in the ledger, removes it from the registry and stops what may be left "
        f"of it{_dry_run_note(keeper)}. restore puts it back."
    )


def reset(keeper: Keeper, target: Target, *, author: str, reason: str) -> str:
    """Gives a resource, or all of a group with its refill rounds, a fresh budget of attempts.

    Raises:
        UnknownTargetError: There is no such group or resource, or nothing of it counts.
        KeeperError: Who or why was not said; or everything was moved by others meanwhile.
    """
    by = _by(author, reason)
    if target.scope is Scope.ALL:
        raise UnknownTargetError("name a group or a resource whose attempts are not to count")
    _place(keeper, target)
    done: list[Incident] = []
    rounds = 0
    for attempt in range(_TRIES):
        found = _Budgets.look(keeper)
        mine = found.of(target)
        if not mine.is_empty:
            won, forgotten = mine.reset(keeper, by)
            done += won
            rounds += forgotten
        elif not attempt:
            raise _nothing_to_reset(target, found)
    if not done and not rounds:
        raise _moved_meanwhile(str(target))
    return _told_reset(keeper, target, done, rounds)


def restore(keeper: Keeper, resource_id: str, *, author: str, reason: str) -> str:
    """Puts the row of a removed resource back as it was, and opens a new incident for it.

    The row comes first. If this process dies after it, or a tick is faster, a tick opens the
    incident, as for any orphan; said again, only the story is completed.

    Raises:
        UnknownTargetError: Nothing of that id was removed, or there is a resource of that id.
        KeeperError: Who or why was not said.
    """
    by, now = _by(author, reason), keeper.clock()
    removed, row = _removed(keeper, resource_id)
    if not keeper.registry.restore(row) and not _is_unfinished(keeper, removed, row):
        raise _taken(resource_id, removed)
    ended = clock_time(removed.closed_at or removed.detected_at)
    told = f"its resource row is back as it was when it was {removed.state} at {ended}"
    details = {**by, "removed_by_incident": removed.incident_id}
    event = _event(EventKind.RESTORED, signed(told, by), now, details)
    if keeper.ledger.dry_run:  # there is no row that an incident could be about
        with keeper.ledger.transaction() as ledger:
            ledger.add_event(event, group_name=removed.group_name)
        return f"{resource_id}: {event.message}{_dry_run_note(keeper)}."
    incident = _reopened(keeper, row, event)
    return f"{resource_id}: {event.message}. {_following(keeper, incident)}"


class _Place(NamedTuple):
    """Whose story a verb belongs to."""

    group_name: str | None = None  # None: that of everything
    incident: Incident | None = None  # None: that of the group

    def add_event(self, ledger: LedgerTransaction, event: Event) -> None:
        ledger.add_event(event, self.incident, group_name=self.group_name)


def _place(keeper: Keeper, target: Target, *, known: bool = False) -> _Place:
    """Whose story a verb on this target belongs to; a `known` one need not be there."""
    if target.scope is Scope.ALL:
        return _Place()
    _prepare(keeper)
    if target.scope is Scope.GROUP:
        if not known:
            _ensure_group(keeper, target.name)
        return _Place(target.name)
    incident = keeper.ledger.open_incident(target.name)
    row = keeper.registry.read_resource(target.name).row
    if row is None and incident is None and not known:
        raise _no_resource(keeper, target.name)
    return _Place(row["group_name"] if row else None, incident)


def _prepare(keeper: Keeper) -> None:
    """A registry of ours may not have been looked at before."""
    if keeper.ams is None:
        keeper.registry.create()


def _ensure_group(keeper: Keeper, name: str) -> None:
    groups = sorted(filter(None, inspection.resource_counts(keeper.registry.database)))
    if name not in groups:
        there_are = f"there are {_listed(groups)}" if groups else "there is none"
        raise UnknownTargetError(f"there is no group {name!r}; {there_are}")


def _no_resource(keeper: Keeper, resource_id: str) -> UnknownTargetError:
    orphans = sorted(keeper.registry.read_snapshot().orphans)
    there_are = f"orphans are {_listed(orphans)}" if orphans else "there are no orphans now"
    return UnknownTargetError(f"there is no resource {resource_id!r}; {there_are}")


def _not_paused(target: Target, pauses: Iterable[Pause]) -> UnknownTargetError:
    known = [str(each) for each in pauses]
    others = f"but {_listed(known, '; ')}" if known else "nor is anything else"
    return UnknownTargetError(f"{target} is not paused by itself, {others}")


def _order(keeper: Keeper, resource_id: str, operator_request: OperatorRequest, by: By) -> Incident:
    def ordering() -> Transition:
        incident = _orphaned(keeper, resource_id)
        now = keeper.clock()
        _ensure_possible(keeper, incident, operator_request, now)
        return transitions.order(incident, operator_request, by, now)

    return _taken_step(keeper, resource_id, ordering)


def _taken_step(keeper: Keeper, resource_id: str, step: Callable[[], Transition]) -> Incident:
    """Takes a step, decided anew where somebody else moved the incident first."""
    for _ in range(_TRIES):
        transition = step()
        with keeper.ledger.transaction() as ledger:
            (moved,) = ledger.apply([transition])
        if moved is not None:
            return moved
    raise _moved_meanwhile(resource_id)


def _moved_meanwhile(name: str) -> KeeperError:
    return KeeperError(
        f"nothing was done: ticks or runs moved {name} at the same moment, {_TRIES} times; say it "
        "again"
    )


def _orphaned(keeper: Keeper, resource_id: str) -> Incident:
    """The open incident of an orphan.

    Raises:
        UnknownTargetError: It has none that can still be led anywhere, and why.
    """
    _prepare(keeper)
    incident = keeper.ledger.open_incident(resource_id)
    if incident is not None and incident.state.is_removing:
        raise UnknownTargetError(
            f"the removal of {resource_id} is under way and will be finished; restore puts it back "
            "afterwards"
        )
    seen_resource = keeper.registry.read_resource(resource_id)
    if seen_resource.row is None:
        raise _no_resource(keeper, resource_id)
    if seen_resource.registered:
        raise UnknownTargetError(f"{resource_id} is no orphan: an optimizer stands for it")
    if incident is None:
        raise UnknownTargetError(
            f"{resource_id} was not noticed as an orphan yet: the next tick opens its incident, "
            f"{_soon(keeper)}; say it again then"
        )
    return incident


def _ensure_possible(
    keeper: Keeper, incident: Incident, operator_request: OperatorRequest, now: datetime
) -> None:
    """Makes sure that the next tick would do it.

    Raises:
        UnknownTargetError: It would not, and why.
    """
    name = incident.resource_id
    held = Pauses(keeper.ledger.pauses(), now).of(name, incident.group_name)
    duplicates = (
        operator_request is OperatorRequest.GIVE_UP
        and keeper.registry.read_resource(name).copies > 1
    )
    if incident.state is State.UNSUPPORTED and (
        operator_request is OperatorRequest.RESTART or duplicates
    ):
        raise UnknownTargetError(f"{name} is left alone: {incident.note}")
    if not keeper.policy.enabled:
        raise UnknownTargetError(
            f"{name} is left alone: auto-restart is off (ams.optimizer.auto-restart-enabled)"
        )
    if held is not None:
        raise UnknownTargetError(f"{name} is left alone: {held}; resume {held.target} first")
    if operator_request is OperatorRequest.RESTART and _is_starting(incident, now):
        raise UnknownTargetError(f"a run is starting {name} at this moment; wait what comes of it")


def _is_starting(incident: Incident, now: datetime) -> bool:
    at_work = incident.state is State.CLAIMED and holds_claim(incident, {}, now)
    return at_work and incident.last_error is None


@dataclass(frozen=True, slots=True)
class _Budgets:
    """What has spent some of its budget."""

    incidents: Sequence[Incident]  # open, or recovered so lately that their attempts would count
    scale_ups: Sequence[ScaleUp]

    @classmethod
    def look(cls, keeper: Keeper) -> "_Budgets":
        now, stable_after = keeper.clock(), keeper.policy.stable_after
        incidents = keeper.ledger.open_incidents()
        known = {each.resource_id for each in incidents}
        recovered = keeper.ledger.recovered(now - stable_after) if stable_after else []
        incidents += [each for each in recovered if each.resource_id not in known]
        attempts_used = [
            each for each in incidents if each.attempts_used > 0 and not each.state.is_removing
        ]
        scale_ups = {} if keeper.ams else keeper.ledger.scale_ups()
        return cls(
            attempts_used, [each for each in scale_ups.values() if not holds_claim(each, {}, now)]
        )

    @property
    def is_empty(self) -> bool:
        return not self.incidents and not self.scale_ups

    def of(self, target: Target) -> "_Budgets":
        if target.scope is Scope.RESOURCE:
            return _Budgets([i for i in self.incidents if i.resource_id == target.name], [])
        return _Budgets(
            [each for each in self.incidents if each.group_name == target.name],
            [each for each in self.scale_ups if each.group_name == target.name],
        )

    def reset(self, keeper: Keeper, by: By) -> tuple[list[Incident], int]:
        """What it won: incidents as they stand now, and rounds that are forgotten."""
        now, rounds = keeper.clock(), 0
        steps = [transitions.reset(each, by, now) for each in self.incidents]
        with keeper.ledger.transaction() as ledger:
            won = [moved for moved in ledger.apply(steps) if moved is not None]
            for scale_up in self.scale_ups:
                if ledger.forget_scale_up(scale_up):
                    rounds += scale_up.rounds
                    told = signed(f"{counted(scale_up.rounds, 'refill round')} no longer count", by)
                    event = _event(EventKind.RESET, told, now, by)
                    ledger.add_event(event, group_name=scale_up.group_name)
        return won, rounds


def _nothing_to_reset(target: Target, found: _Budgets) -> UnknownTargetError:
    known = [
        f"{each.resource_id} ({counted(each.attempts_used, 'attempt')})" for each in found.incidents
    ]
    known += [
        f"group {each.group_name} ({counted(each.rounds, 'refill round')})"
        for each in found.scale_ups
    ]
    others = f"only of {_listed(known)}" if known else "nor anything of others"
    return UnknownTargetError(
        f"there is nothing to reset: nothing of {target} counts now, {others}"
    )


def _told_reset(keeper: Keeper, target: Target, done: Sequence[Incident], rounds: int) -> str:
    names = _listed([incident.resource_id for incident in done])
    whole = f"all {counted(keeper.policy.max_retries, 'attempt')} again"
    parts = [f"{names} {'have' if len(done) > 1 else 'has'} {whole}"] if done else []
    parts += [f"{counted(rounds, 'refill round')} of {target} no longer count"] if rounds else []
    return f"{'; '.join(parts)}. The next tick goes on with that, {_soon(keeper)}."


def _removed(keeper: Keeper, resource_id: str) -> tuple[Incident, Mapping[str, Any]]:
    """The incident that removed a resource, and the row that it kept.

    Raises:
        UnknownTargetError: There is nothing to be restored.
    """
    _prepare(keeper)
    current = keeper.ledger.open_incident(resource_id)
    if current is not None and current.state.is_removing:
        raise UnknownTargetError(
            f"the removal of {resource_id} is under way; say it again once it is over"
        )
    removed = keeper.ledger.last_removed(resource_id)
    row = keeper.ledger.removed_row(removed.incident_id) if removed else None
    if removed is None or row is None:
        raise _nothing_to_restore(keeper, resource_id)
    return removed, row


def _nothing_to_restore(keeper: Keeper, resource_id: str) -> UnknownTargetError:
    ever = keeper.ledger.removed_resources()
    present = keeper.registry.present(ever)
    newest = [each for each in ever if each not in present][:SHOWN]
    there_are = f"the last that can be are {_listed(newest)}" if newest else "nor has any other one"
    return UnknownTargetError(
        f"{resource_id!r} cannot be restored: the ledger has no removed row of it; {there_are}"
    )


def _taken(resource_id: str, removed: Incident) -> UnknownTargetError:
    if removed.dry_run:
        return UnknownTargetError(
            f"{resource_id} has nothing to be restored: its last removal was a dry run's, and its "
            "row is still there"
        )
    return UnknownTargetError(f"there is a resource {resource_id} already; nothing was done")


def _is_unfinished(keeper: Keeper, removed: Incident, row: Mapping[str, Any]) -> bool:
    """Whether this very row was put back by somebody who died before it could be told."""
    seen_resource = keeper.registry.read_resource(removed.resource_id)
    if removed.dry_run or seen_resource.registered or seen_resource.row != row:
        return False
    incident = keeper.ledger.open_incident(removed.resource_id)
    events = keeper.ledger.events(incident.incident_id) if incident else []
    return all(told.kind is not EventKind.RESTORED for told in events)


def _reopened(keeper: Keeper, row: Mapping[str, Any], event: Event) -> Incident | None:
    """Opens the incident of a row that is back, or finds that a tick did; None: it is over."""
    orphan = orphan_of(row)
    group = orphan.group_name or ""
    start = keeper.registry.newest_starts({group}).get(group)
    detected = transitions.detect(orphan, event.at, newest_start=start)
    threads = keeper.registry.capacity({group})[group]
    step = transitions.observed(detected, threads, keeper.policy)
    for _ in range(_TRIES):
        found = keeper.ledger.open_incident(orphan.resource_id)
        with keeper.ledger.transaction() as ledger:
            incident = found or ledger.apply([step])[0]
            if incident is not None:
                ledger.add_event(event, incident)
                return incident
    with keeper.ledger.transaction() as ledger:
        ledger.add_event(event, group_name=group)
    return None


def _following(keeper: Keeper, incident: Incident | None) -> str:
    if incident is None:
        return "Its incident is over already."
    if not keeper.policy.enabled:
        return "A new incident is open; auto-restart is off, so that it is only recorded."
    pauses = Pauses(keeper.ledger.pauses(), keeper.clock())
    held = pauses.of(incident.resource_id, incident.group_name)
    if held is not None:
        return f"A new incident is open, but {held}."
    return f"A new incident is open. {next_step(incident, keeper.policy)}"


def _by(author: str, reason: str) -> By:
    if not author.strip() or not reason.strip():
        raise KeeperError("say who wants it (author) and why (reason)")
    # Before they are stored: they are shown wherever the pause or the incident is.
    return {"author": hide_assigned(author.strip()), "reason": hide_assigned(reason.strip())}


def _event(kind: EventKind, message: str, now: datetime, details: Mapping[str, Any]) -> Event:
    return Event(kind=kind, at=now, message=message, details=dict(details))


def _soon(keeper: Keeper) -> str:
    return f"at most {duration(keeper.check_interval)} from now"


def _dry_run_note(keeper: Keeper) -> str:
    return " (dry run: nothing is started or removed)" if keeper.ledger.dry_run else ""


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{separator.join(names[:SHOWN])}{more}"
