"""One orphan in a run: look again, then restart it, give it up or leave it.

Each step is written to the ledger before it is taken, and taken only if nobody else moved the
incident meanwhile. The process may be killed between any two lines of this module.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, Final, NoReturn

from dagster_amoro.ams.client import Ams
from dagster_amoro.containers.base import Container, ContainerLookup
from dagster_amoro.containers.calls import Stop, limits_of, post_mortem, start, stop
from dagster_amoro.containers.fences import Fence
from dagster_amoro.core import transitions
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.errors import (
    ContainerError,
    KeeperError,
    LeaseLostError,
    OverdueError,
    PropertiesError,
    StartFailedError,
)
from dagster_amoro.core.groups import Group, absence_obstacle, group_obstacle, min_parallelism
from dagster_amoro.core.messages import DRY_RUN, next_step, tell_story
from dagster_amoro.core.model import (
    Incident,
    OperatorRequest,
    Orphan,
    Resource,
    ScaleUpState,
    State,
    Transition,
)
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import (
    NEARLY,
    Decision,
    Replacement,
    RestartPolicy,
    TickSettings,
    Verdict,
    decide,
    due_at,
)
from dagster_amoro.core.post_mortem import PostMortem
from dagster_amoro.core.properties import merge_properties, parse_properties
from dagster_amoro.core.registrations import DOUBTFUL, Registrations, is_back
from dagster_amoro.core.replacement import Replacements
from dagster_amoro.core.tick_plan import obstacle_of, recovery_message
from dagster_amoro.healing.preconditions import silence_of
from dagster_amoro.healing.reading import newcomers_of
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, ResourceSnapshot, orphan_of

_SAVES: Final = 3  # tries to save start-up properties while somebody else edits the row


class Outcome(StrEnum):
    """How the restart of one orphan ended."""

    STARTED = "started"  # registration decides whether it helped
    FAILED = "failed"  # the start failed; the run tries again after the grace period
    GIVEN_UP = "given up"
    REMOVED = "removed"  # given up as an operator wished, or because others took its place
    KEPT = "kept"  # its attempts are used up, and it is left to a person
    RECOVERED = "recovered"  # it had registered meanwhile; nothing was started
    RELEASED = "released"  # its row was gone; nothing is left running
    LEFT = "left"  # not due, not possible, or not ours any more


@dataclass(frozen=True, slots=True)
class RestartResult:
    """What came of the restart of one orphan."""

    outcome: Outcome
    message: str  # what happened, to what, and what happens next
    incident: Incident | None = None  # as it stands now; None: it is not this run's
    startup: Mapping[str, str] = field(default_factory=dict)  # of what was started


@dataclass(frozen=True, kw_only=True, slots=True)
class Restarter:
    """What a run does for the orphans that were dispatched to it."""

    ledger: Ledger
    registry: Registry
    containers: ContainerLookup
    ams: Ams | None  # whose registry it is; None: it is ours
    policy: RestartPolicy
    settings: TickSettings
    clock: Clock
    max_concurrent_starts: int = 50  # of one container, unless the container says otherwise

    def claim(self, run_key: str, run_id: str) -> list[Incident]:
        """Claims for this run what was dispatched under the key.

        Empty where all of it was claimed before or has lapsed: a dispatch is good for one run. So
        it is where this deployment lost the lease, or began or ended a dry run in between.
        """
        now = self.clock()
        until = now + self.settings.claim_timeout
        dry_run = self.ledger.dry_run
        dispatched = [i for i in self.ledger.claimed_by(run_key) if i.dry_run == dry_run]
        fence = next((incident.fence for incident in dispatched), None)  # one tick's: all have it
        try:
            with self.ledger.transaction(fence) as ledger:
                won = ledger.apply([transitions.claim(i, run_id, until, now) for i in dispatched])
        except LeaseLostError:
            return []
        mine = [incident for incident in won if incident is not None]
        return sorted(mine, key=lambda incident: incident.setbacks > 0)  # what is sick comes last

    def restart(self, incident_id: int, run_id: str) -> RestartResult:
        """Does what is right for one incident now, if this run still holds it.

        Raises:
            StoreUnavailableError: A store did not answer. The claim holds until it lapses, so this
                can be called again.
        """
        incident = self._claimed(incident_id, run_id)
        if incident is None:
            return _not_ours(incident_id)
        try:
            return _Restart(self, incident, run_id).run()
        except _OverError as over:
            return over.result
        except LeaseLostError as error:
            message = f"{incident.resource_id} was left: {error}; nothing of this run is running."
            return RestartResult(Outcome.LEFT, message)

    def _claimed(self, incident_id: int, run_id: str) -> Incident | None:
        """The incident, if the run holds it, with a claim that has half its time to go or more."""
        incident = self.ledger.incident(incident_id)
        if incident is None or incident.claimed_by != run_id or incident.claimed_until is None:
            return None
        now, timeout = self.clock(), self.settings.claim_timeout
        if incident.claimed_until - now > timeout / 2:
            return incident
        self.ledger.renew(run_id, now + timeout)
        renewed = self.ledger.incident(incident_id)
        return renewed if renewed is not None and renewed.claimed_by == run_id else None


class _OverError(Exception):
    """The restart is over before its last line: there is nothing (more) to do."""

    def __init__(self, result: RestartResult) -> None:
        super().__init__(result.message)
        self.result = result


class _Restart:
    """The restart of one orphan; its incident moves on with every step that is written."""

    def __init__(self, restarter: Restarter, incident: Incident, run_id: str) -> None:
        self._incident = incident
        self._run_id = run_id
        self._ledger, self._registry = restarter.ledger, restarter.registry
        self._containers, self._ams = restarter.containers, restarter.ams
        self._policy, self._settings = restarter.policy, restarter.settings
        self._clock = restarter.clock
        self._has_begun = False  # its attempt
        self._ledger_identity = restarter.ledger.identity  # now: before an act nothing may stall

    def run(self) -> RestartResult:
        if silence := silence_of(self._ams):
            return self._leave(Decision(Verdict.WAIT, silence))
        seen = self._look()
        decision = self._decide(seen)
        match decision.verdict:
            case Verdict.RESTART if seen.orphan is not None:
                return self._restart(seen.orphan)
            case Verdict.GIVE_UP | Verdict.SUPERSEDE:
                return self._remove(seen, decision)
            case Verdict.RELEASE:
                self._released()
            case Verdict.KEEP:
                return self._keep(decision)
        return self._leave(decision)

    # Look again, and decide.

    def _look(self, *, stopped: bool = False) -> ResourceSnapshot:
        """The resource as it stands; the restart is over where it is no orphan any more.

        `stopped`: whoever stands for it now may be what this restart has just stopped.
        """
        seen = self._registry.read_resource(self._incident.resource_id, to_act=True)
        if seen.registered:
            self._registered(seen.registrations, stopped=stopped)
        if seen.row is None and not self._incident.state.is_removing:
            self._released()
        if seen.row is not None and self._incident.state is State.RELEASING:
            self._step(transitions.row_is_back(self._incident, self._clock()))
            raise _OverError(self._result(Outcome.LEFT, "was left: its resource row is back."))
        return seen

    def _registered(self, registrations: Registrations, *, stopped: bool) -> NoReturn:
        """It is back; or nobody can say it yet, and it is left to the tick that can."""
        incident = self._incident
        was_lost = incident.is_attempting and not self._has_begun  # maybe after its stop
        if stopped or was_lost:
            self._step(transitions.doubt(incident, registrations, self._clock()))
        elif is_back(incident, registrations):
            self._close(Outcome.RECOVERED, State.RECOVERED, recovery_message(incident))
        raise _OverError(self._leave(Decision(Verdict.WAIT, DOUBTFUL)))

    def _decide(self, seen: ResourceSnapshot) -> Decision:
        incident = self._incident
        name, settings = incident.group_name, self._settings
        group = self._registry.group(name)
        obstacle = group_obstacle(group, settings) if group else absence_obstacle(name, settings)
        if obstacle is None and seen.orphan is not None:
            obstacle = obstacle_of(seen.orphan, self._containers.obstacle, settings)
        now = self._clock()
        pause = Pauses(self._ledger.pauses(), now).of(incident.resource_id, incident.group_name)
        return decide(
            incident,
            obstacle=obstacle,
            policy=self._policy,
            claimed=False,
            now=now,
            paused=str(pause) if pause else None,
            replacement=lambda: self._replacement(group),
            lead=NEARLY,
        )

    def _replacement(self, group: Group | None) -> Replacement:
        """What came to its group meanwhile, or is about to."""
        if group is None or min_parallelism(group) is None:
            return Replacement.NONE
        attached, name = self._ams is not None, group.name
        scale_up = None if attached else self._ledger.scale_ups().get(name)
        requested = scale_up is not None and scale_up.state is ScaleUpState.REQUESTED
        found = Replacements(
            {name: group},
            self._ledger.open_incidents(name),
            scaling_up={name} if requested else frozenset(),
            policy=self._policy,
            attached=attached,
            now=self._clock(),
            newcomers=newcomers_of(self._registry),
        )
        return found.of(self._incident)

    def _leave(self, decision: Decision) -> RestartResult:
        now = self._clock()
        if decision.verdict is Verdict.REPORT:
            self._step(transitions.report(self._incident, decision.reason, now))
        else:
            self._step(transitions.give_back(self._incident, decision.reason, now))
        return self._result(Outcome.LEFT, f"was left as it is: {decision.reason}.")

    # Restart it: see that it can be recorded, count the attempt, stop what may be left, start it.

    def _restart(self, orphan: Orphan) -> RestartResult:
        resource = resource_of(orphan)
        container = self._containers.get(resource.container_name)
        if not self._registry.rehearse(orphan.resource_id, orphan.properties):
            self._look()
            return self._leave(Decision(Verdict.WAIT, "its row was changed meanwhile"))
        found = post_mortem(container, resource)
        self._begin_attempt(container, found)
        self._look()
        self._ensure_still_ours()
        stopped = self._stop(container, resource, "what an earlier start may have left")
        self._look(stopped=True)
        self._ensure_still_ours()
        try:
            startup = start(container, resource, self._fence)
        except StartFailedError as error:
            overdue = stopped.is_overdue or isinstance(error.__cause__, OverdueError)
            return self._failed(str(error), overdue=overdue)
        if found:
            stopped = stopped._replace(notes=(found.text, *stopped.notes))
        return self._record(container, orphan, startup, stopped)

    def _begin_attempt(self, container: Container, found: PostMortem | None) -> None:
        """Counts the attempt, also where another thread of this run renewed all claims just now."""
        longest, self._has_begun = _longest(container), True
        until, now = self._until_and_now(longest)
        step = partial(
            transitions.begin_attempt, until=until, now=now, longest=longest, found=found
        )
        before = self._incident
        if not self._moves(step, lambda current: current.is_renewal_of(before)):
            raise _OverError(_not_ours(before.incident_id))

    def _moves(
        self, step: Callable[[Incident], Transition], may: Callable[[Incident], bool]
    ) -> bool:
        """Takes a step, also of what it has become meanwhile, where that may take it as well."""
        moved = self._ledger.apply(step(self._incident))
        if moved is None:
            current = self._ledger.incident(self._incident.incident_id)
            if current is not None and may(current):
                moved = self._ledger.apply(step(current))
        self._incident = moved or self._incident
        return moved is not None

    def _ends_attempt(self, step: Callable[[Incident], Transition]) -> bool:
        """Writes down what came of the attempt; False: it is not this run's any more.

        Meanwhile its claim may have been renewed, an operator may have reset it, and a tick may
        have doubted what registered for it.
        """
        return self._moves(step, self._has)

    def _has(self, current: Incident) -> bool:
        """Whether this run has it in hand, with the same attempt."""
        is_mine = current.claimed_by == self._run_id
        return is_mine and current.attempts == self._incident.attempts

    @property
    def _fence(self) -> Fence:
        """With which the container refuses a call that comes after those of a later attempt."""
        of = self._incident
        return Fence(self._ledger_identity, of.incident_id, of.attempts)

    def _stop(self, container: Container, resource: Resource, what: str) -> Stop:
        return stop(container, resource, what, self._fence)

    def _ensure_still_ours(self) -> None:
        """Right before an act, and last: this process may have slept since its last step."""
        if self._incident.fence is not None:
            self._ledger.ensure_lease(self._incident.fence)
        if not self._is_held():
            raise _OverError(_not_ours(self._incident.incident_id))

    def _is_held(self) -> bool:
        current = self._ledger.incident(self._incident.incident_id)
        return current is not None and self._has(current)

    def _until_and_now(self, longest: timedelta = timedelta(0)) -> tuple[datetime, datetime]:
        """When a claim lapses that is renewed now, after calls that may take `longest`; and now."""
        now, timeout = self._clock(), self._settings.claim_timeout
        return now + timeout + longest, now

    def _record(
        self, container: Container, orphan: Orphan, startup: Mapping[str, str], stopped: Stop
    ) -> RestartResult:
        started = resource_of(orphan).with_properties(startup)
        now, notes, overdue = self._clock(), stopped.notes, stopped.is_overdue
        try:
            row = _as_started(orphan, startup)
            step = partial(
                transitions.started, startup=startup, notes=notes, now=now, overdue=overdue, row=row
            )
            if not (self._save(orphan, startup) and self._note_start(step)):
                return self._undo(container, started)
        except PropertiesError as error:
            notes = self._stop(container, started, "what cannot be recorded").notes
            return self._failed("; ".join([f"released again, since its {error}", *notes]))
        except KeeperError:  # a store is away, or it is another deployment's business by now
            self._stop(container, started, "what cannot be recorded")
            raise
        message = f"was started by attempt {self._attempt()}{transitions.shown(startup)}"
        text = f"{'; '.join([message, *notes])}. {next_step(self._incident, self._policy)}"
        return self._result(Outcome.STARTED, text, startup)

    def _save(self, orphan: Orphan, startup: Mapping[str, str]) -> bool:
        """Saves the start-up properties; False: the row is gone, or another run's by now."""
        properties = orphan.properties
        for _ in range(_SAVES):
            if self._registry.save_startup(orphan.resource_id, properties, startup):
                return True
            row = self._registry.read_resource(orphan.resource_id, to_act=True).row
            if row is None or not self._is_ours():
                return False
            properties = row["properties"]
        return False

    def _is_ours(self) -> bool:
        """Whether no other run has it; a tick may have seen it recovered by this very attempt."""
        current = self._ledger.incident(self._incident.incident_id)
        if current is None or current.state is not State.RECOVERED:
            return current is not None and self._has(current)
        # Meanwhile it may have died again, and another run may have started it.
        is_last = self._ledger.newest_incident(current.resource_id) == current.incident_id
        return is_last and current.attempts == self._incident.attempts

    def _note_start(self, step: Callable[[Incident], Transition]) -> bool:
        """Writes down that it was started; False: another run has it by now.

        A tick may have seen its registration already, which has closed the incident.
        """
        if self._ends_attempt(step):
            return True
        if not self._is_ours():
            return False
        told = step(self._incident)
        with self._ledger.transaction(self._incident.fence) as ledger:
            ledger.add_event(told.event, self._incident)
        self._incident = told.after
        return True

    def _undo(self, container: Container, started: Resource) -> RestartResult:
        """Releases what was started: its row is gone, or another run took over meanwhile."""
        notes = self._stop(container, started, "what this attempt started").notes
        if self._registry.read_resource(started.resource_id, to_act=True).row is None:
            why = "its row was removed while it was started; what was started was released again"
            self._close(Outcome.RELEASED, State.RELEASED, "; ".join([why, *notes]))
        if not self._is_ours():
            raise _OverError(_not_ours(self._incident.incident_id))
        why = f"its properties were changed {_SAVES} times while it was started"
        return self._failed("; ".join([f"{why}, so it was released again", *notes]))

    def _failed(self, error: str, *, overdue: bool = False) -> RestartResult:
        now = self._clock()
        due = due_at(self._incident._replace(attempt_ends_at=now), self._policy)
        until = due + self._settings.claim_timeout
        step = partial(
            transitions.attempt_failed, error=error, until=until, now=now, overdue=overdue
        )
        if not self._ends_attempt(step):
            raise _OverError(_not_ours(self._incident.incident_id))
        text = f"was not started by attempt {self._attempt()}: {error}"
        return self._result(Outcome.FAILED, f"{text}. {next_step(self._incident, self._policy)}")

    def _attempt(self) -> str:
        return f"{self._incident.attempts_used} of {self._policy.max_retries}"

    # Or keep or remove it.

    def _keep(self, decision: Decision) -> RestartResult:
        self._step(transitions.keep(self._incident, decision.reason, self._clock()))
        return self._result(Outcome.KEPT, f"was kept: {self._story(removed=False)}.")

    def _remove(self, seen: ResourceSnapshot, decision: Decision) -> RestartResult:
        """Row into the ledger, row out of the registry, process stopped: each can be repeated."""
        superseding = decision.verdict is Verdict.SUPERSEDE
        if seen.row is not None:
            times = self._until_and_now()
            state = State.SUPERSEDING if superseding else State.GIVING_UP
            self._step(transitions.begin_removal(self._incident, state, seen.row, *times))
            self._ensure_still_ours()
            properties = seen.row["properties"]
            removed = self._registry.remove_orphan(self._incident.resource_id, properties)
            if not removed and self._look().row is not None:
                return self._leave(Decision(Verdict.WAIT, "it changed while it was being removed"))
        kept = self._ledger.removed_row(self._incident.incident_id)
        self._ensure_still_ours()
        notes = self._release(orphan_of(kept)) if kept else ()
        if superseding:
            why = "its group was scaled up without it; its row is kept in the ledger"
            return self._close(Outcome.REMOVED, State.SUPERSEDED, "; ".join([why, *notes]))
        asked = self._incident.operator_request == OperatorRequest.GIVE_UP
        outcome = Outcome.REMOVED if asked else Outcome.GIVEN_UP
        return self._close(outcome, State.EXHAUSTED, "; ".join([self._story(), *notes]))

    def _release(self, orphan: Orphan) -> tuple[str, ...]:
        try:
            container = self._containers.get(orphan.container_name or "")
            return self._stop(container, resource_of(orphan), "what was left of it").notes
        except (ContainerError, PropertiesError) as error:  # a store that is away may come back
            return (f"could not stop what was left of it: {error}",)

    def _released(self) -> NoReturn:
        """Somebody removed its row: what its attempts started is known to nobody else by now."""
        notes = self._release_started() if self._incident.attempts else ()
        why = "; ".join(["somebody removed its resource row", *notes])
        self._close(Outcome.RELEASED, State.RELEASED, why)

    def _release_started(self) -> tuple[str, ...]:
        of = self._incident
        kept = self._ledger.removed_row(of.incident_id)
        bare = Orphan(of.resource_id, of.group_name, of.container_name, of.thread_count, 0, "{}")
        self._ensure_still_ours()
        return self._release(orphan_of(kept) if kept else bare)

    def _story(self, *, removed: bool = True) -> str:
        events = self._ledger.events(self._incident.incident_id)
        return tell_story(self._incident, events, self._policy, removed=removed)

    # What each of these ends with.

    def _close(self, outcome: Outcome, state: State, message: str) -> NoReturn:
        now = self._clock()
        self._step(transitions.close(self._incident, state, message, now, run_id=self._run_id))
        raise _OverError(self._result(outcome, f"was {outcome}: {message}."))

    def _step(self, step: Transition) -> None:
        """Writes a step; the restart is over if somebody else moved the incident first."""
        moved = self._ledger.apply(step)
        if moved is None:
            raise _OverError(_not_ours(self._incident.incident_id))
        self._incident = moved

    def _result(
        self, outcome: Outcome, message: str, startup: Mapping[str, str] | None = None
    ) -> RestartResult:
        dry = DRY_RUN if self._ledger.dry_run else ""
        text = f"{dry}{self._incident.resource_id} {message}"
        return RestartResult(outcome, text, self._incident, dict(startup or {}))


def _longest(container: Container) -> timedelta:
    """How long the calls of a restart may take, where somebody limits them."""
    limits = limits_of(container)
    return limits.longest_restart if limits else timedelta(0)


def _as_started(orphan: Orphan, startup: Mapping[str, str]) -> dict[str, Any]:
    """The row of a resource with its start-up properties.

    Raises:
        PropertiesError: They cannot be stored.
    """
    properties = merge_properties(orphan.properties, startup)
    row = orphan._replace(properties=properties)._asdict()
    del row["copies"]
    return row


def resource_of(orphan: Orphan) -> Resource:
    """The resource that a row describes.

    Raises:
        PropertiesError: Its properties cannot be read.
    """
    return Resource(
        resource_id=orphan.resource_id,
        group_name=orphan.group_name or "",
        container_name=orphan.container_name or "",
        thread_count=orphan.thread_count or 0,
        memory_mb=orphan.total_memory or 0,
        properties=parse_properties(orphan.properties),
    )


def _not_ours(incident_id: int) -> RestartResult:
    message = f"Incident {incident_id} is closed or with another run by now; nothing was done."
    return RestartResult(Outcome.LEFT, message)
