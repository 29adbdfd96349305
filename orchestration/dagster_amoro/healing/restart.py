"""One orphan's turn in a run: look again, then restart it, give it up or leave it.

Each step is written to the ledger before it is taken, and taken only if nobody else moved the
incident meanwhile. The process may be killed between any two lines of this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NoReturn

from dagster_amoro.containers.base import Container
from dagster_amoro.containers.calls import start, stop
from dagster_amoro.core import transitions
from dagster_amoro.core.errors import (
    KeeperError,
    LeaseLostError,
    PropertiesError,
    StartFailedError,
    StoreUnavailableError,
)
from dagster_amoro.core.groups import Group, min_parallelism
from dagster_amoro.core.messages import DRY_RUN, next_step, tell_story
from dagster_amoro.core.model import (
    Event,
    Incident,
    OperatorRequest,
    Orphan,
    Resource,
    State,
    Transition,
)
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import Decision, Replacement, Verdict, decide, due_at
from dagster_amoro.core.properties import parse_properties
from dagster_amoro.core.scale_up import ScaleUpState
from dagster_amoro.core.tick_plan import obstacle_of, recovery_message
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.healing.preconditions import silence_of
from dagster_amoro.healing.replacements import Replacements, group_obstacle
from dagster_amoro.stores.registry import ResourceSnapshot, orphan_of

_SAVES: Final = 3  # tries to save start-up properties while somebody else edits the row


class Outcome(StrEnum):
    """How a turn ended."""

    STARTED = "started"  # registration decides whether it helped
    FAILED = "failed"  # the start failed; the run tries again after the grace period
    GIVEN_UP = "given up"
    REMOVED = "removed"  # likewise, but as an operator wished, or since others took its place
    KEPT = "kept"  # its attempts are used up, and it is left to a person
    RECOVERED = "recovered"  # it had registered meanwhile; nothing was started
    RELEASED = "released"  # its row was gone; nothing is left running
    LEFT = "left"  # not due, not possible, or not ours any more


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartResult:
    """What came of one turn."""

    ending: Outcome
    message: str  # what happened, to what, and what happens next
    incident: Incident | None = None  # as it stands now; None: it is not this run's
    startup: Mapping[str, str] = field(default_factory=dict)  # of what was started


class _OverError(Exception):
    """The turn is over before its last line: there is nothing (more) to do."""

    def __init__(self, result: RestartResult) -> None:
        super().__init__(result.message)
        self.result = result


def claim_dispatch(keeper: Keeper, run_key: str, run_id: str) -> list[Incident]:
    """Claims for this run what was handed over under the key.

    Empty where all of it has been claimed before: a dispatch is good for one run, so a run that
    is executed again, or that comes after its dispatch lapsed, finds nothing to do; nor does one
    whose deployment lost the lease, or began or ended a dry run in between.
    """
    now = keeper.clock()
    until = now + keeper.claim_timeout
    dry_run = keeper.ledger.dry_run
    dispatched = [i for i in keeper.ledger.claimed_by(run_key) if i.dry_run == dry_run]
    fence = next((incident.fence for incident in dispatched), None)  # one tick's: all have it
    try:
        with keeper.ledger.transaction(fence) as ledger:
            won = ledger.apply([transitions.claim(i, run_id, until, now) for i in dispatched])
    except LeaseLostError:
        return []
    return [incident for incident in won if incident is not None]


def take_turn(keeper: Keeper, incident_id: int, run_id: str) -> RestartResult:
    """Does what is right for one incident now, if this run still holds it.

    Raises:
        StoreUnavailableError: A store did not answer. The claim holds until it lapses, so the
            turn can be taken again.
    """
    incident = _claimed(keeper, incident_id, run_id)
    if incident is None:
        return _not_ours(incident_id)
    try:
        return _Restart(keeper, incident, run_id).take()
    except _OverError as over:
        return over.result
    except LeaseLostError as error:
        message = f"{incident.resource_id} was left: {error}; nothing of this run is running."
        return RestartResult(ending=Outcome.LEFT, message=message)


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
    return RestartResult(ending=Outcome.LEFT, message=message)


def _claimed(keeper: Keeper, incident_id: int, run_id: str) -> Incident | None:
    """The incident, if the run holds it, with a claim that has at least half its time to go."""
    incident = keeper.ledger.incident(incident_id)
    if incident is None or incident.claimed_by != run_id or incident.claimed_until is None:
        return None
    now = keeper.clock()
    if incident.claimed_until - now > keeper.claim_timeout / 2:
        return incident
    keeper.ledger.renew(run_id, now + keeper.claim_timeout)
    renewed = keeper.ledger.incident(incident_id)
    return renewed if renewed is not None and renewed.claimed_by == run_id else None


class _Restart:
    """A turn: its incident moves on with every step that is written."""

    def __init__(self, keeper: Keeper, incident: Incident, run_id: str) -> None:
        self._keeper = keeper
        self._incident = incident
        self._run_id = run_id

    def take(self) -> RestartResult:
        if silence := silence_of(self._keeper.ams):
            return self._leave(Decision(Verdict.WAIT, silence))
        seen_resource = self._look()
        decision = self._decide(seen_resource)
        match decision.verdict:
            case Verdict.RESTART if seen_resource.orphan is not None:
                return self._restart(seen_resource.orphan)
            case Verdict.GIVE_UP | Verdict.SUPERSEDE:
                return self._remove(seen_resource, decision)
            case Verdict.KEEP:
                return self._keep()
        return self._leave(decision)

    def _look(self) -> ResourceSnapshot:
        """The resource as it stands; the turn is over where it is no orphan any more."""
        seen_resource = self._keeper.registry.read_resource(self._incident.resource_id)
        if seen_resource.registered:
            self._close(Outcome.RECOVERED, State.RECOVERED, recovery_message(self._incident))
        if seen_resource.row is None and not self._incident.state.is_removing:
            self._close(Outcome.RELEASED, State.RELEASED, "somebody removed its resource row")
        return seen_resource

    def _decide(self, seen_resource: ResourceSnapshot) -> Decision:
        keeper, incident = self._keeper, self._incident
        group = keeper.registry.group(incident.group_name)
        obstacle = group_obstacle(keeper, group)
        if obstacle is None and seen_resource.orphan is not None:
            obstacle = obstacle_of(seen_resource.orphan, keeper.containers.obstacle)
        now = keeper.clock()
        pause = Pauses(keeper.ledger.pauses(), now).of(incident.resource_id, incident.group_name)
        return decide(
            incident,
            obstacle=obstacle,
            policy=keeper.policy,
            claimed=False,
            now=now,
            paused=str(pause) if pause else None,
            replacement=lambda: self._stand_in(group),
        )

    def _stand_in(self, group: Group | None) -> Replacement:
        """What came to its group meanwhile, or is about to."""
        if group is None or min_parallelism(group) is None:
            return Replacement.NONE
        keeper, name = self._keeper, group.name
        scale_up = None if keeper.ams else keeper.ledger.scale_ups().get(name)
        scaling_up = [name] if scale_up and scale_up.state is ScaleUpState.REQUESTED else []
        incidents = keeper.ledger.open_incidents(name)
        now = keeper.clock()
        others = Replacements(keeper, {name: group}, incidents, scaling_up=scaling_up, now=now)
        return others.replacement(self._incident)

    def _leave(self, decision: Decision) -> RestartResult:
        now = self._keeper.clock()
        if decision.verdict is Verdict.REPORT:
            self._step(transitions.report(self._incident, decision.reason, now))
        else:
            self._step(transitions.give_back(self._incident, decision.reason, now))
        return self._result(Outcome.LEFT, f"was left as it is: {decision.reason}.")

    def _restart(self, orphan: Orphan) -> RestartResult:
        resource = resource_of(orphan)
        container = self._keeper.containers.get(resource.container_name)
        now = self._keeper.clock()
        self._step(transitions.begin_attempt(self._incident, now + self._keeper.claim_timeout, now))
        self._look()
        notes = stop(container, resource, "what an earlier start may have left")
        self._ensure_still_ours()
        self._look()
        try:
            startup = start(container, resource)
        except StartFailedError as error:
            return self._failed(str(error))
        return self._record(container, orphan, startup, notes)

    def _ensure_still_ours(self) -> None:
        """Right before an act: this process may have slept since its last step.

        Raises:
            LeaseLostError: Another deployment acts now.
        """
        if self._incident.fence is not None:
            self._keeper.ledger.ensure_lease(self._incident.fence)
        current = self._keeper.ledger.incident(self._incident.incident_id)
        if current is None or current.claimed_by != self._run_id:
            raise _OverError(_not_ours(self._incident.incident_id))

    def _record(
        self, container: Container, orphan: Orphan, startup: Mapping[str, str], notes: list[str]
    ) -> RestartResult:
        started = resource_of(orphan).with_properties(startup)
        try:
            saved = self._save(orphan, startup)
        except StoreUnavailableError:
            stop(container, started, "what cannot be recorded")
            raise
        except PropertiesError as error:
            notes = stop(container, started, "what cannot be recorded")
            return self._failed("; ".join([f"released again, since its {error}", *notes]))
        now = self._keeper.clock()
        step = transitions.started(self._incident, startup, notes, now)
        try:
            is_lost = not saved or (
                self._keeper.ledger.apply(step) is None and self._is_overtaken(container, started)
            )
        except LeaseLostError:
            stop(container, started, "what is another deployment's business by now")
            raise
        if is_lost:
            return self._undo(container, started)
        message = f"was started by attempt {self._attempt()}{transitions.shown(startup)}"
        following = next_step(step.after, self._keeper.policy)
        return self._result(
            Outcome.STARTED, f"{'; '.join([message, *notes])}. {following}", startup
        )

    def _save(self, orphan: Orphan, startup: Mapping[str, str]) -> bool:
        """Saves the start-up properties; False: the row is gone, or another run's by now."""
        properties = orphan.properties
        for _ in range(_SAVES):
            if self._keeper.registry.save_startup(orphan.resource_id, properties, startup):
                return True
            row = self._keeper.registry.read_resource(orphan.resource_id).row
            current = self._keeper.ledger.incident(self._incident.incident_id)
            if row is None or current is None or current.claimed_by != self._run_id:
                return False
            properties = row["properties"]
        return False

    def _is_overtaken(self, container: Container, started: Resource) -> bool:
        """Whether another run has it; what cannot be known to be this run's does not run on."""
        try:
            return not self._is_ours()
        except StoreUnavailableError:
            stop(container, started, "what may be another run's by now")
            raise

    def _is_ours(self) -> bool:
        """Whether no other run has it; a tick may have seen it recovered in the meantime."""
        current = self._keeper.ledger.incident(self._incident.incident_id)
        return current is not None and (
            current.claimed_by == self._run_id or current.state is State.RECOVERED
        )

    def _undo(self, container: Container, started: Resource) -> RestartResult:
        """Releases what was started: its row is gone, or another run took over meanwhile."""
        notes = stop(container, started, "what this attempt started")
        if self._keeper.registry.read_resource(started.resource_id).row is None:
            why = "its row was removed while it was started; what was started was released again"
            self._close(Outcome.RELEASED, State.RELEASED, "; ".join([why, *notes]))
        if not self._is_ours():
            raise _OverError(_not_ours(self._incident.incident_id))
        why = f"its properties were changed {_SAVES} times while it was started"
        return self._failed("; ".join([f"{why}, so it was released again", *notes]))

    def _failed(self, error: str) -> RestartResult:
        now = self._keeper.clock()
        until = due_at(self._incident, self._keeper.policy) + self._keeper.claim_timeout
        self._step(transitions.attempt_failed(self._incident, error, until, now))
        following = next_step(self._incident, self._keeper.policy)
        return self._result(
            Outcome.FAILED, f"was not started by attempt {self._attempt()}: {error}. {following}"
        )

    def _keep(self) -> RestartResult:
        self._step(transitions.keep(self._incident, self._keeper.clock()))
        told = tell_story(self._incident, self._events(), self._keeper.policy, removed=False)
        return self._result(Outcome.KEPT, f"was kept: {told}.")

    def _remove(  # noqa: RET503 - `_close` does not return
        self, seen_resource: ResourceSnapshot, decision: Decision
    ) -> RestartResult:
        """Row into the ledger, row out of the registry, process stopped: each can be repeated."""
        superseding = decision.verdict is Verdict.SUPERSEDE
        if seen_resource.row is not None:
            now = self._keeper.clock()
            until = now + self._keeper.claim_timeout
            begin = transitions.begin_superseding if superseding else transitions.begin_giving_up
            self._step(begin(self._incident, seen_resource.row, until, now))
            self._ensure_still_ours()
            removed = self._keeper.registry.remove_orphan(
                self._incident.resource_id, seen_resource.row["properties"]
            )
            if not removed and self._look().row is not None:
                return self._leave(Decision(Verdict.WAIT, "it changed while it was being removed"))
        kept = self._keeper.ledger.removed_row(self._incident.incident_id)
        self._ensure_still_ours()
        notes = self._release(orphan_of(kept)) if kept else []
        if superseding:
            told = "its group was refilled without it; its row is kept in the ledger"
            self._close(Outcome.REMOVED, State.SUPERSEDED, "; ".join([told, *notes]))
        told = "; ".join([tell_story(self._incident, self._events(), self._keeper.policy), *notes])
        by_order = self._incident.operator_request == OperatorRequest.GIVE_UP
        self._close(Outcome.REMOVED if by_order else Outcome.GIVEN_UP, State.EXHAUSTED, told)

    def _events(self) -> list[Event]:
        return self._keeper.ledger.events(self._incident.incident_id)

    def _release(self, orphan: Orphan) -> list[str]:
        try:
            container = self._keeper.containers.get(orphan.container_name or "")
            return stop(container, resource_of(orphan), "what was left of it")
        except KeeperError as error:
            return [f"could not stop what was left of it: {error}"]

    def _close(self, ending: Outcome, outcome: State, message: str) -> NoReturn:
        now = self._keeper.clock()
        self._step(transitions.close(self._incident, outcome, message, now, run_id=self._run_id))
        raise _OverError(self._result(ending, f"was {ending}: {message}."))

    def _step(self, step: Transition) -> None:
        """Writes a step; the turn is over if somebody else moved the incident first."""
        moved = self._keeper.ledger.apply(step)
        if moved is None:
            raise _OverError(_not_ours(self._incident.incident_id))
        self._incident = moved

    def _result(
        self, ending: Outcome, message: str, startup: Mapping[str, str] | None = None
    ) -> RestartResult:
        dry = DRY_RUN if self._keeper.ledger.dry_run else ""
        text = f"{dry}{self._incident.resource_id} {message}"
        return RestartResult(
            ending=ending, incident=self._incident, message=text, startup=dict(startup or {})
        )

    def _attempt(self) -> str:
        return f"{self._incident.attempts_used} of {self._keeper.policy.max_retries}"
