"""What may operators tell the keeper to do, and what comes of it?

Each verb writes to the ledger who wanted it and why, and returns a sentence for a person. No verb
needs the lease: it moves incidents, which takes them from the run that has them in hand, and
leaves restarts and removals to ticks and runs. Only `scale_in` acts by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from dagster_amoro.core import transitions
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.errors import KeeperError, UnknownTargetError
from dagster_amoro.core.formatting import clock_time, counted, duration
from dagster_amoro.core.messages import next_step
from dagster_amoro.core.model import Event, EventKind, Incident, OperatorRequest, ScaleUp, State
from dagster_amoro.core.pauses import Pause, Pauses, Scope, Target
from dagster_amoro.core.policy import RestartPolicy, TickSettings, holds_claim
from dagster_amoro.core.transitions import by_of, signed
from dagster_amoro.healing.releases import Releaser
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, group_sizes, orphan_of

_SHOWN: Final = 10  # names that a message lists
_LOST: Final = (State.EXHAUSTED, State.KEPT)  # what the keeper leaves to people
_TRIES: Final = 2  # a step that lost a race to a tick or a run is decided and taken once more

By = Mapping[str, str]
"""Who wants something and why: `author` and `reason`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operations:
    """The verbs of operators on one fleet.

    Each raises UnknownTargetError where it cannot be done, with the reason and with what there is
    instead; KeeperError where `author` or `reason` is empty; StoreUnavailableError where a
    database does not answer.
    """

    registry: Registry
    ledger: Ledger
    policy: RestartPolicy
    settings: TickSettings
    clock: Clock
    attached: bool  # whether the registry is an AMS's
    releaser: Releaser

    def pause(
        self, target: Target, *, author: str, reason: str, until: datetime | None = None
    ) -> str:
        """Lets nothing be started or removed there; replaces an earlier pause of this target.

        Incidents are still opened and closed. It ends by itself at `until`, in aware UTC; None:
        when it is resumed.

        Raises:
            KeeperError: The end is past.
        """
        by, now = by_of(author, reason), self.clock()
        if until is not None and until <= now:
            it_is = clock_time(now)
            raise KeeperError(f"a pause until {clock_time(until)} is over: it is {it_is} now")
        incident, group_name = self._story_of(target)
        earlier = Pauses(self.ledger.pauses(), now).holding.get(target)
        end = clock_time(until) if until else "somebody resumes it"
        replaced = f"; before, {earlier}" if earlier else ""
        message = f"{signed(f'{target} is paused until {end}', by)}{replaced}"
        details = {**by, "target": str(target), "until": until.isoformat() if until else None}
        with self.ledger.transaction() as ledger:
            ledger.add_pause(Pause(target=target, **by, paused_at=now, until=until))
            event = _event(EventKind.PAUSED, message, now, details)
            ledger.add_event(event, incident, group_name=group_name)
        return f"{message}. Nothing is started or removed there; a start under way is finished."

    def resume(self, target: Target, *, author: str, reason: str) -> str:
        """Ends the pause of a target."""
        by, now = by_of(author, reason), self.clock()
        holding = Pauses(self.ledger.pauses(), now).holding
        ended = holding.pop(target, None)
        incident, group_name = self._story_of(target, may_be_gone=True)
        message = f"{signed(f'{target} is resumed', by)}; before, {ended}"
        details = {**by, "target": str(target), "until": None}
        with self.ledger.transaction() as ledger:
            if ended is None or not ledger.end_pause(target):
                raise _not_paused(target, holding.values())
            event = _event(EventKind.RESUMED, message, now, details)
            ledger.add_event(event, incident, group_name=group_name)
        left, name = Pauses(self.ledger.pauses(), now), target.name
        of_resource = target.scope is Scope.RESOURCE
        still = left.of(name, group_name or "") if of_resource else left.of_group(name)
        follows = f"But {still}." if still else f"The next tick goes on, {self._soon()}."
        return f"{message}. {follows}"

    def restart_now(self, resource_id: str, *, author: str, reason: str) -> str:
        """Has an orphan restarted without waiting for the end of its grace period.

        It counts as an attempt, and is made even where the attempts are used up.
        """
        incident = self._request(resource_id, OperatorRequest.RESTART, by_of(author, reason))
        attempt, most = incident.attempts_spent + 1, self.policy.max_retries
        allowed = f" of {most}" if attempt <= most else f", beyond the {most} allowed"
        return (
            f"{resource_id} is to be restarted (attempt {attempt}{allowed}): "
            f"the next tick hands it to a run, {self._soon()}{self._dry_run_note()}."
        )

    def give_up(self, resource_id: str, *, author: str, reason: str) -> str:
        """Has an orphan given up: released and removed, its row kept in the ledger."""
        self._request(resource_id, OperatorRequest.GIVE_UP, by_of(author, reason))
        return (
            f"{resource_id} is to be given up: the next tick hands it to a run, {self._soon()}, "
            "which keeps its row in the ledger, removes it from the registry and stops what may be "
            f"left of it{self._dry_run_note()}. restore puts it back."
        )

    def reset(self, target: Target, *, author: str, reason: str) -> str:
        """Gives a resource, or a whole group with its scale-up rounds, a fresh budget of attempts.

        Raises:
            KeeperError: Everything was moved by other processes meanwhile.
        """
        by = by_of(author, reason)
        if target.scope is Scope.ALL:
            raise UnknownTargetError("name a group or a resource whose attempts are not to count")
        self._story_of(target)
        done: list[Incident] = []
        rounds = 0
        for attempt in range(_TRIES):
            used = self._used_budgets()
            mine = used.of(target)
            if any(mine):
                won, forgotten = self._forget(mine, by)
                done += won
                rounds += forgotten
            elif not attempt:
                raise _nothing_to_reset(target, used)
        if not done and not rounds:
            raise _moved_meanwhile(str(target))
        parts = []
        if done:
            have = f"{'have' if len(done) > 1 else 'has'} all"
            names = _listed([incident.resource_id for incident in done])
            parts += [f"{names} {have} {counted(self.policy.max_retries, 'attempt')} again"]
        parts += [f"{_rounds(rounds)} of {target} no longer count"] if rounds else []
        return f"{'; '.join(parts)}. The next tick goes on with that, {self._soon()}."

    def restore(self, resource_id: str, *, author: str, reason: str) -> str:
        """Puts the row of a removed resource back as it was, and opens a new incident for it.

        The row comes first. If this process dies after it, or a tick is faster, a tick opens the
        incident, as for any orphan; restored again, only the event is added.
        """
        by, now = by_of(author, reason), self.clock()
        removed, row = self._removed(resource_id)
        if not self.registry.restore(row) and not self._is_unfinished(removed, row):
            raise UnknownTargetError(
                f"{resource_id} has nothing to be restored: its last removal was a dry run's, and "
                "its row is still there"
                if removed.dry_run
                else f"there is a resource {resource_id} already; nothing was done"
            )
        ended = clock_time(removed.closed_at or removed.detected_at)
        message = f"its resource row is back as it was when it was {removed.state} at {ended}"
        details = {**by, "removed_by_incident": removed.incident_id}
        event = _event(EventKind.RESTORED, signed(message, by), now, details)
        if self.ledger.dry_run:  # there is no row that an incident could be about
            with self.ledger.transaction() as ledger:
                ledger.add_event(event, group_name=removed.group_name)
            return f"{resource_id}: {event.message}{self._dry_run_note()}."
        incident = self._reopened(row, event)
        return f"{resource_id}: {event.message}. {self._after_restore(incident)}"

    def acknowledge(self, resource_id: str, *, author: str, reason: str) -> str:
        """Notes that somebody looks after a resource that was given up, or is kept.

        The check `nothing_given_up` passes for it from then on; nothing else changes.
        """
        by, now = by_of(author, reason), self.clock()
        self._prepare()
        lost = self.ledger.open_incident(resource_id) or self.ledger.last_removed(resource_id)
        if lost is None or lost.state not in _LOST:
            raise UnknownTargetError(
                f"{resource_id!r} was not given up, nor is it out of attempts and kept: there is "
                "nothing to acknowledge"
            )
        event = _event(EventKind.ACKNOWLEDGED, signed("acknowledged", by), now, by)
        with self.ledger.transaction() as ledger:
            ledger.add_event(event, lost)
        return (
            f"{resource_id}: {event.message}. The check nothing_given_up passes for it; restore "
            "puts a removed row back."
        )

    def scale_in(self, resource_id: str, *, author: str, reason: str) -> str:
        """Stops a worker for good and removes its row, here and now, as `Releaser.release` does."""
        return self.releaser.release(resource_id, author=author, reason=reason)

    def _story_of(
        self, target: Target, *, may_be_gone: bool = False
    ) -> tuple[Incident | None, str | None]:
        """The incident that an event about the target belongs to, and the group; None: to none."""
        if target.scope is Scope.ALL:
            return None, None
        self._prepare()
        if target.scope is Scope.GROUP:
            groups = sorted(filter(None, group_sizes(self.registry.database)))
            if target.name not in groups and not may_be_gone:
                there_are = f"there are {_listed(groups)}" if groups else "there is none"
                raise UnknownTargetError(f"there is no group {target.name!r}; {there_are}")
            return None, target.name
        incident = self.ledger.open_incident(target.name)
        row = self.registry.read_resource(target.name).row
        if row is None and incident is None and not may_be_gone:
            raise self._no_resource(target.name)
        return incident, row["group_name"] if row else None

    def _prepare(self) -> None:
        """Creates the tables of a registry of ours, which no tick may have done yet."""
        if not self.attached:
            self.registry.create()

    def _no_resource(self, resource_id: str) -> UnknownTargetError:
        orphans = sorted(self.registry.read_snapshot().orphans)
        there_are = f"orphans are {_listed(orphans)}" if orphans else "there are no orphans now"
        return UnknownTargetError(f"there is no resource {resource_id!r}; {there_are}")

    def _request(self, resource_id: str, request: OperatorRequest, by: By) -> Incident:
        """Records a request in an open incident; tries again where another process moved it."""
        for _ in range(_TRIES):
            incident, now = self._orphaned(resource_id), self.clock()
            self._ensure_possible(incident, request, now)
            with self.ledger.transaction() as ledger:
                (moved,) = ledger.apply([transitions.order(incident, request, by, now)])
            if moved is not None:
                return moved
        raise _moved_meanwhile(resource_id)

    def _orphaned(self, resource_id: str) -> Incident:
        """The open incident of an orphan, if it can still be moved."""
        self._prepare()
        incident = self.ledger.open_incident(resource_id)
        if incident is not None and incident.state.is_removing:
            raise UnknownTargetError(
                f"the removal of {resource_id} is under way and will be finished; restore puts it "
                "back afterwards"
            )
        resource = self.registry.read_resource(resource_id)
        if resource.row is None:
            raise self._no_resource(resource_id)
        if resource.registered:
            raise UnknownTargetError(f"{resource_id} is no orphan: an optimizer stands for it")
        if incident is None:
            raise UnknownTargetError(
                f"{resource_id} was not noticed as an orphan yet: the next tick opens its "
                f"incident, {self._soon()}, unless it is just starting; say it again then"
            )
        return incident

    def _ensure_possible(self, incident: Incident, request: OperatorRequest, now: datetime) -> None:
        """Makes sure that the next tick would do what is requested."""
        name, is_restart = incident.resource_id, request is OperatorRequest.RESTART
        paused = Pauses(self.ledger.pauses(), now).of(name, incident.group_name)
        duplicated = not is_restart and self.registry.read_resource(name).copies > 1
        claimed = incident.state is State.CLAIMED and holds_claim(incident, {}, now)
        why = None
        if incident.state is State.UNSUPPORTED and (is_restart or duplicated):
            why = f"{name} is left alone: {incident.note}"
        elif not self.policy.enabled:
            why = f"{name} is left alone: auto-restart is off (ams.optimizer.auto-restart-enabled)"
        elif paused is not None:
            why = f"{name} is left alone: {paused}; resume {paused.target} first"
        elif is_restart and claimed and incident.last_error is None:
            why = f"a run is starting {name} at this moment; wait what comes of it"
        if why is not None:
            raise UnknownTargetError(why)

    def _used_budgets(self) -> "_UsedBudgets":
        now, stable_after = self.clock(), self.policy.stable_after
        incidents = self.ledger.open_incidents()
        known = {each.resource_id for each in incidents}
        recovered = self.ledger.recovered(now - stable_after) if stable_after else []
        incidents += [each for each in recovered if each.resource_id not in known]
        scale_ups = () if self.attached else self.ledger.scale_ups().values()
        return _UsedBudgets(
            [each for each in incidents if each.attempts_used > 0 and not each.state.is_removing],
            [each for each in scale_ups if not holds_claim(each, {}, now)],
        )

    def _forget(self, budgets: "_UsedBudgets", by: By) -> tuple[list[Incident], int]:
        """Resets budgets; returns the incidents that were moved, and the number of rounds."""
        now, rounds = self.clock(), 0
        steps = [transitions.reset(each, by, now) for each in budgets.incidents]
        with self.ledger.transaction() as ledger:
            won = [moved for moved in ledger.apply(steps) if moved is not None]
            for scale_up in budgets.scale_ups:
                if ledger.forget_scale_up(scale_up):
                    rounds += scale_up.rounds
                    message = signed(f"{_rounds(scale_up.rounds)} no longer count", by)
                    event = _event(EventKind.RESET, message, now, by)
                    ledger.add_event(event, group_name=scale_up.group_name)
        return won, rounds

    def _removed(self, resource_id: str) -> tuple[Incident, Mapping[str, Any]]:
        """The incident that removed a resource, and the row that it kept."""
        self._prepare()
        current = self.ledger.open_incident(resource_id)
        if current is not None and current.state.is_removing:
            raise UnknownTargetError(
                f"the removal of {resource_id} is under way; say it again once it is over"
            )
        removed = self.ledger.last_removed(resource_id)
        row = self.ledger.removed_row(removed.incident_id) if removed else None
        if removed is not None and row is not None:
            return removed, row
        ever = self.ledger.removed_resources()
        present = self.registry.present(ever)
        newest = [each for each in ever if each not in present][:_SHOWN]
        last = f"the last that can be are {_listed(newest)}" if newest else "nor has any other one"
        raise UnknownTargetError(
            f"{resource_id!r} cannot be restored: the ledger has no removed row of it; {last}"
        )

    def _is_unfinished(self, removed: Incident, row: Mapping[str, Any]) -> bool:
        """Whether a restore put this very row back and died before it could add its event."""
        resource = self.registry.read_resource(removed.resource_id)
        if removed.dry_run or resource.registered or resource.row != row:
            return False
        incident = self.ledger.open_incident(removed.resource_id)
        events = self.ledger.events(incident.incident_id) if incident else []
        return all(event.kind is not EventKind.RESTORED for event in events)

    def _reopened(self, row: Mapping[str, Any], event: Event) -> Incident | None:
        """Opens the incident of a row that is back, or finds that a tick did; None: it is over."""
        orphan = orphan_of(row)
        group = orphan.group_name or ""
        start = self.registry.newest_starts({group}).get(group)
        detected = transitions.detect(orphan, event.at, newest_start=start)
        threads = self.registry.capacity({group})[group]
        step = transitions.observed(detected, threads, self.policy)
        for _ in range(_TRIES):
            found = self.ledger.open_incident(orphan.resource_id)
            with self.ledger.transaction() as ledger:
                if incident := found or ledger.apply([step])[0]:
                    ledger.add_event(event, incident)
                    return incident
        with self.ledger.transaction() as ledger:
            ledger.add_event(event, group_name=group)
        return None

    def _after_restore(self, incident: Incident | None) -> str:
        if incident is None:
            return "Its incident is over already."
        if not self.policy.enabled:
            return "A new incident is open; auto-restart is off, so that it is only recorded."
        pauses = Pauses(self.ledger.pauses(), self.clock())
        paused = pauses.of(incident.resource_id, incident.group_name)
        if paused is not None:
            return f"A new incident is open, but {paused}."
        return f"A new incident is open. {next_step(incident, self.policy)}"

    def _soon(self) -> str:
        return f"at most {duration(self.settings.check_interval)} from now"

    def _dry_run_note(self) -> str:
        return " (dry run: nothing is started or removed)" if self.ledger.dry_run else ""


class _UsedBudgets(NamedTuple):
    """The incidents and scale-ups that have used some of their budget."""

    incidents: Sequence[Incident]  # open, or recovered so lately that their attempts would count
    scale_ups: Sequence[ScaleUp]

    def of(self, target: Target) -> "_UsedBudgets":
        name, incidents, scale_ups = target.name, self.incidents, self.scale_ups
        if target.scope is Scope.RESOURCE:
            return _UsedBudgets([each for each in incidents if each.resource_id == name], [])
        return _UsedBudgets(
            [each for each in incidents if each.group_name == name],
            [each for each in scale_ups if each.group_name == name],
        )


def _not_paused(target: Target, pauses: Iterable[Pause]) -> UnknownTargetError:
    known = [str(each) for each in pauses]
    others = f"but {_listed(known, '; ')}" if known else "nor is anything else"
    return UnknownTargetError(f"{target} is not paused by itself, {others}")


def _moved_meanwhile(name: str) -> KeeperError:
    return KeeperError(
        f"nothing was done: ticks or runs moved {name} at the same moment, {_TRIES} times; say it "
        "again"
    )


def _nothing_to_reset(target: Target, used: _UsedBudgets) -> UnknownTargetError:
    known = [f"{i.resource_id} ({counted(i.attempts_used, 'attempt')})" for i in used.incidents]
    known += [f"group {each.group_name} ({_rounds(each.rounds)})" for each in used.scale_ups]
    others = f"only of {_listed(known)}" if known else "nor anything of others"
    what = f"nothing of {target} counts now, {others}"
    return UnknownTargetError(f"there is nothing to reset: {what}")


def _event(kind: EventKind, message: str, now: datetime, details: Mapping[str, Any]) -> Event:
    return Event(kind=kind, at=now, message=message, details=dict(details))


def _rounds(number: int) -> str:
    return counted(number, "scale-up round")


def _listed(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{separator.join(names[:_SHOWN])}{more}"
