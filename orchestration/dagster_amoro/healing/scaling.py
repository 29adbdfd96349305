"""How does a group that is below its min-parallelism get a new resource, and never two?

The intent is written down first, and with it the orphans whose restart failed are taken from
whoever has them in hand: from then on it is the new resource that brings their threads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final
from uuid import uuid4

from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.containers.calls import start, stop
from dagster_amoro.core import groups, texts
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.errors import ContainerError, KeeperError, LeaseLostError, PropertiesError
from dagster_amoro.core.formatting import clock_time, counted
from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import Event, EventKind, Incident, Resource, ScaleUp, ScaleUpState
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import RestartPolicy, TickSettings
from dagster_amoro.core.properties import dump_properties, parse_properties
from dagster_amoro.core.scale_up import (
    ScaleDecision,
    ScalePlan,
    ScaleUpRun,
    coming,
    next_round,
)
from dagster_amoro.core.tick_inputs import TickInputs, with_token
from dagster_amoro.core.transitions import replacement, shown
from dagster_amoro.stores.ledger import Ledger, LedgerTransaction
from dagster_amoro.stores.registry import Registry

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"  # of AMS's own resource ids


class ScaleUpOutcome(StrEnum):
    """How a round ended."""

    STARTED = "started"  # registration decides whether it helped
    FAILED = "failed"
    UNNEEDED = "not needed"  # the threads were there, or on their way, by then
    LEFT = "left"  # not this run's any more


@dataclass(frozen=True, slots=True)
class ScaleUpResult:
    """What came of the round of one group."""

    outcome: ScaleUpOutcome
    message: str  # what happened, to what, and what happens next
    scale_up: ScaleUp | None = None  # as it stands now; None: it is not this run's


# --- A tick writes down which rounds begin and end -----------------------------------------------


def record_scaling(
    ledger: LedgerTransaction, plans: Sequence[ScalePlan], inputs: TickInputs
) -> tuple[ScaleUpRun | None, TickInputs]:
    """Writes down what is done for groups that are below their min-parallelism.

    Returns the run to request, and the inputs once its rounds have begun.
    """
    ids = {plan.group.name: new_resource_id() for plan in plans if plan.starts}
    run_key = with_token(f"scale-up {next(iter(ids.values()), '')} of {len(ids)}", inputs.token)
    replaced: dict[int, Incident] = {}
    begun: list[ScaleUp] = []
    for plan in plans:
        match plan.decision:
            case ScaleDecision.SETTLE if plan.scale_up:
                ledger.forget_scale_up(plan.scale_up)
            case ScaleDecision.STOP if plan.scale_up:
                _record_stop(ledger, plan, plan.scale_up, inputs.now)
            case ScaleDecision.START:
                new_id = ids[plan.group.name]
                steps = [replacement(each, new_id, inputs.now) for each in plan.failed]
                won = [incident for incident in ledger.apply(steps) if incident is not None]
                replaced |= {incident.incident_id: incident for incident in won}
                if len(won) == len(steps):  # else one is being restarted at this moment
                    begun += _record_start(ledger, plan, new_id, run_key, inputs)
            case _ if plan.lapsed and plan.scale_up:  # its run may only sleep: it is too late
                late = plan.scale_up.evolve(
                    state=ScaleUpState.FAILED, claimed_by=None, claimed_until=None
                )
                ledger.move_scale_up(plan.scale_up, late)
    run = ScaleUpRun(run_key=run_key, scale_ups=tuple(begun)) if begun else None
    return run, inputs.after_rounds(replaced, frozenset(each.group_name for each in begun))


def new_resource_id() -> str:
    """An id as AMS makes them: a random number of 128 bits with the digits 0 to 9 and a to v."""
    number, digits = uuid4().int, ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def _record_start(
    ledger: LedgerTransaction, plan: ScalePlan, new_id: str, run_key: str, inputs: TickInputs
) -> list[ScaleUp]:
    now, settings = inputs.now, inputs.settings
    after = next_round(
        plan.scale_up,
        plan.group.name,
        min_parallelism=plan.min_parallelism,
        threads=plan.missing,
        resource_id=new_id,
        interval=settings.round_interval,
        now=now,
    )._replace(claimed_by=run_key, claimed_until=now + settings.claim_timeout, fence=inputs.fence)
    if not ledger.move_scale_up(plan.scale_up, after):
        return []
    message = (
        f"{plan.live} of {plan.min_parallelism} threads are there and {plan.coming} on their way; "
        f"round {after.rounds} of {settings.max_keeping_attempts} starts {new_id} with "
        f"{counted(after.threads, 'thread')}"
    )
    event = _event(after, EventKind.SCALE_UP, message, now)
    ledger.add_event(event, group_name=after.group_name)
    return [after]


def _record_stop(
    ledger: LedgerTransaction, plan: ScalePlan, scale_up: ScaleUp, now: datetime
) -> None:
    after = scale_up.evolve(state=ScaleUpState.STOPPED)
    if ledger.move_scale_up(scale_up, after):
        why = f"; the last one failed: {scale_up.last_error}" if scale_up.last_error else ""
        message = (
            f"{plan.live} of {plan.min_parallelism} threads are there, and {scale_up.rounds} "
            f"rounds in a row did not help{why}. No more are begun until the group has its "
            "threads, its min-parallelism changes, or it is reset"
        )
        event = _event(after, EventKind.SCALE_UP_STOPPED, message, now)
        ledger.add_event(event, group_name=after.group_name)


def _event(of: ScaleUp, kind: EventKind, text: str, at: datetime, run: str | None = None) -> Event:
    details = {"resource": of.resource_id, "threads": of.threads, "round": of.rounds}
    return Event(kind=kind, at=at, message=text, run_id=run, details=details)


# --- A run makes them ----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaler:
    """What a run does for the groups that it was requested for."""

    ledger: Ledger
    registry: Registry
    containers: ContainerLookup
    policy: RestartPolicy
    settings: TickSettings
    clock: Clock

    def claim(self, run_key: str, run_id: str) -> list[ScaleUp]:
        """Claims for this run the rounds that were begun under the key.

        Empty where all of them have been claimed before, or this deployment lost the lease.
        """
        until = self.clock() + self.settings.claim_timeout
        begun = [each for each in self.ledger.scale_ups().values() if each.claimed_by == run_key]
        claims = [(each, each.evolve(claimed_by=run_id, claimed_until=until)) for each in begun]
        fence = next((each.fence for each in begun), None)  # one tick's: all have it
        try:
            with self.ledger.transaction(fence) as ledger:
                return [after for before, after in claims if ledger.move_scale_up(before, after)]
        except LeaseLostError:
            return []

    def scale_up(self, group_name: str, run_id: str) -> ScaleUpResult:
        """Starts a new resource for a group, if it still needs one and this run still may.

        Raises:
            StoreUnavailableError: A store did not answer. What was started and cannot be recorded
                was released again.
        """
        scale_up = self.ledger.scale_ups().get(group_name)
        if scale_up is None or scale_up.claimed_by != run_id:
            return _not_ours(group_name)
        try:
            return self._act(scale_up)
        except LeaseLostError as error:
            return ScaleUpResult(ScaleUpOutcome.LEFT, f"{group_name} was left: {error}.")

    def _act(self, scale_up: ScaleUp) -> ScaleUpResult:
        name, now = scale_up.group_name, self.clock()
        if pause := Pauses(self.ledger.pauses(), now).of_group(name):
            return self._end(scale_up, ScaleUpOutcome.UNNEEDED, str(pause))
        incidents = {i.resource_id: i for i in self.ledger.open_incidents(name)}
        snapshot = self.registry.read_group_snapshot(name, to_act=True)
        group = snapshot.sized.get(name)
        min_parallelism = (groups.min_parallelism(group) or 0) if group else 0
        live = snapshot.live.get(name, 0)
        expected = coming(snapshot.orphans.values(), incidents, self.policy, now)
        # No more than was decided on: other orphans were not taken from their runs.
        threads = min(scale_up.threads, min_parallelism - live - expected)
        if group is None or threads <= 0:
            there = f"{live} of {min_parallelism} threads are there and {expected} on their way"
            return self._end(scale_up, ScaleUpOutcome.UNNEEDED, f"not needed: {there}")
        if not self._is_ours(scale_up):
            return _not_ours(name)
        return self._start(scale_up, group, threads)

    def _is_ours(self, scale_up: ScaleUp) -> bool:
        """Whether it still is right before the start: this process may have slept."""
        if scale_up.fence is not None:
            self.ledger.ensure_lease(scale_up.fence)
        return self.ledger.scale_ups().get(scale_up.group_name) == scale_up

    def _start(self, scale_up: ScaleUp, group: Group, threads: int) -> ScaleUpResult:
        try:
            resource = Resource(
                resource_id=scale_up.resource_id,
                group_name=group.name,
                container_name=group.container_name or "",
                thread_count=threads,
                memory_mb=0,
                properties=parse_properties(group.properties),
            )
            container = self.containers.get(resource.container_name)
            startup = start(container, resource)
        except (ContainerError, PropertiesError) as error:
            return self._end(scale_up, ScaleUpOutcome.FAILED, f"failed: {error}")
        started = resource.with_properties(startup)
        try:
            self.registry.add_resource(started)
            message = f"started {started.resource_id}{shown(startup)} with {threads} threads"
            return self._end(scale_up, ScaleUpOutcome.STARTED, message)
        except KeeperError:  # unrecorded, or another deployment's business by now
            stop(container, started, "what cannot be recorded")
            properties = dump_properties(started.properties)
            self.registry.remove_orphan(started.resource_id, properties)
            raise

    def _end(self, scale_up: ScaleUp, outcome: ScaleUpOutcome, text: str) -> ScaleUpResult:
        now = self.clock()
        state, kind = _ENDS[outcome]
        error = str(texts.shown(text)) if outcome is ScaleUpOutcome.FAILED else None
        after = scale_up.evolve(state=state, claimed_by=None, claimed_until=None, last_error=error)
        round_of = f"round {after.rounds} of {self.settings.max_keeping_attempts}"
        with self.ledger.transaction(scale_up.fence) as ledger:
            if not ledger.move_scale_up(scale_up, after):
                raise LeaseLostError("another run has it by now")
            event = _event(after, kind, f"{round_of} {text}", now, scale_up.claimed_by)
            ledger.add_event(event, group_name=after.group_name)
        following = f" The next round follows after {clock_time(after.next_at or now)}, if needed."
        message = f"{after.group_name}: {round_of} {text}.{following}"
        return ScaleUpResult(outcome, message, after)


_ENDS: Final[Mapping[ScaleUpOutcome, tuple[ScaleUpState, EventKind]]] = {
    ScaleUpOutcome.STARTED: (ScaleUpState.STARTED, EventKind.SCALED_UP),
    ScaleUpOutcome.FAILED: (ScaleUpState.FAILED, EventKind.SCALE_UP_FAILED),
    ScaleUpOutcome.UNNEEDED: (ScaleUpState.UNNEEDED, EventKind.GIVEN_BACK),
}


def _not_ours(group_name: str) -> ScaleUpResult:
    message = f"{group_name} is with another run by now; nothing was done."
    return ScaleUpResult(ScaleUpOutcome.LEFT, message)
