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

from dagster_amoro.containers.calls import start, stop
from dagster_amoro.core import groups
from dagster_amoro.core.errors import ContainerError, KeeperError, LeaseLostError, PropertiesError
from dagster_amoro.core.formatting import clock_time, counted
from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import Event, EventKind, Incident, Resource
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.properties import dump_properties, parse_properties
from dagster_amoro.core.scale_up import ScaleDecision, ScaleUp, ScaleUpState, coming, next_round
from dagster_amoro.core.scaling import ScalePlan
from dagster_amoro.core.tick_plan import DecisionInputs
from dagster_amoro.core.transitions import replacement, shown
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.stores.transaction import LedgerTransaction

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"  # of AMS's own resource ids


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleUpRun:
    """A run to request: groups that get a new resource each."""

    run_key: str
    scale_ups: tuple[ScaleUp, ...]


class ScaleUpOutcome(StrEnum):
    """How a group's turn ended."""

    STARTED = "started"  # registration decides whether it helped
    FAILED = "failed"
    UNNEEDED = "not needed"  # the threads were there, or on their way, by then
    LEFT = "left"  # not this run's any more


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaleUpResult:
    """What came of one group's turn."""

    ending: ScaleUpOutcome
    message: str  # what happened, to what, and what happens next
    scale_up: ScaleUp | None = None  # as it stands now; None: it is not this run's


def new_resource_id() -> str:
    """An id as AMS makes them: a random number of 128 bits with the digits 0 to 9 and a to v."""
    number, digits = uuid4().int, ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def request(
    ledger: LedgerTransaction,
    keeper: Keeper,
    scale_plans: Sequence[ScalePlan],
    incidents: Sequence[Incident],
    inputs: DecisionInputs,
) -> tuple[ScaleUpRun | None, list[Incident]]:
    """Writes down what is to be done for groups that are below their min-parallelism.

    Returns:
        The run to request, and the incidents as they stand now.
    """
    ids = {
        s.group.name: new_resource_id()
        for s in scale_plans
        if s.scale_decision is ScaleDecision.START
    }
    run_key = f"refill {next(iter(ids.values()), '')} of {len(ids)}"
    moved: dict[int, Incident] = {}
    begun: list[ScaleUp] = []
    for scale_plan in scale_plans:
        match scale_plan.scale_decision:
            case ScaleDecision.SETTLE if scale_plan.scale_up:
                ledger.forget_scale_up(scale_plan.scale_up)
            case ScaleDecision.STOP if scale_plan.scale_up:
                _give_up(ledger, scale_plan, scale_plan.scale_up, inputs.now)
            case ScaleDecision.START:
                new_id = ids[scale_plan.group.name]
                steps = [replacement(each, new_id, inputs.now) for each in scale_plan.failed]
                won = [incident for incident in ledger.apply(steps) if incident is not None]
                moved |= {incident.incident_id: incident for incident in won}
                if len(won) == len(steps):  # else one is being restarted at this moment
                    begun += _begin(ledger, keeper, scale_plan, new_id, run_key, inputs)
            case _ if (
                scale_plan.lapsed and scale_plan.scale_up
            ):  # its run may only sleep: it is too late
                late = scale_plan.scale_up.evolve(
                    state=ScaleUpState.FAILED, claimed_by=None, claimed_until=None
                )
                ledger.move_scale_up(scale_plan.scale_up, late)
    order = ScaleUpRun(run_key=run_key, scale_ups=tuple(begun)) if begun else None
    return order, [moved.get(each.incident_id, each) for each in incidents]


def _begin(  # noqa: PLR0913, PLR0917 - what a round is made of
    ledger: LedgerTransaction,
    keeper: Keeper,
    scale_plan: ScalePlan,
    new_id: str,
    run_key: str,
    inputs: DecisionInputs,
) -> list[ScaleUp]:
    now = inputs.now
    after = next_round(
        scale_plan.scale_up,
        scale_plan.group.name,
        min_parallelism=scale_plan.min_parallelism,
        threads=scale_plan.missing,
        resource_id=new_id,
        interval=keeper.check_interval,
        now=now,
    )._replace(claimed_by=run_key, claimed_until=now + keeper.claim_timeout, fence=inputs.fence)
    if not ledger.move_scale_up(scale_plan.scale_up, after):
        return []
    message = (
        f"{scale_plan.live} of {scale_plan.min_parallelism} threads are there and "
        f"{scale_plan.coming} on their way; "
        f"round {after.rounds} of {keeper.max_keeping_attempts} starts {new_id} with "
        f"{counted(after.threads, 'thread')}"
    )
    event = _event(after, EventKind.SCALE_UP, message, now, run_id=None)
    ledger.add_event(event, group_name=after.group_name)
    return [after]


def _give_up(
    ledger: LedgerTransaction, scale_plan: ScalePlan, scale_up: ScaleUp, now: datetime
) -> None:
    after = scale_up.evolve(state=ScaleUpState.STOPPED)
    if ledger.move_scale_up(scale_up, after):
        why = f"; the last one failed: {scale_up.last_error}" if scale_up.last_error else ""
        message = (
            f"{scale_plan.live} of {scale_plan.min_parallelism} threads are there, "
            f"and {scale_up.rounds} rounds in a "
            f"row did not help{why}. No more are begun until the group has its threads, its "
            "min-parallelism changes, or it is reset"
        )
        event = _event(after, EventKind.SCALE_UP_STOPPED, message, now, run_id=None)
        ledger.add_event(event, group_name=after.group_name)


def claim_dispatch(keeper: Keeper, run_key: str, run_id: str) -> list[ScaleUp]:
    """Claims for this run what was requested under the key; as `attempt.take_up` does."""
    until = keeper.clock() + keeper.claim_timeout
    dispatched = [r for r in keeper.ledger.scale_ups().values() if r.claimed_by == run_key]
    claims = [(each, each.evolve(claimed_by=run_id, claimed_until=until)) for each in dispatched]
    fence = next((scale_up.fence for scale_up in dispatched), None)
    try:
        with keeper.ledger.transaction(fence) as ledger:
            return [after for before, after in claims if ledger.move_scale_up(before, after)]
    except LeaseLostError:
        return []


def take_turn(keeper: Keeper, group_name: str, run_id: str) -> ScaleUpResult:
    """Starts a new resource for a group, if it still needs one and this run still may.

    Raises:
        StoreUnavailableError: A store did not answer. What was started and cannot be recorded was
            released again.
    """
    scale_up = keeper.ledger.scale_ups().get(group_name)
    if scale_up is None or scale_up.claimed_by != run_id:
        return _not_ours(group_name)
    try:
        return _ScaleUp(keeper, scale_up, run_id).take()
    except LeaseLostError as error:
        return ScaleUpResult(ending=ScaleUpOutcome.LEFT, message=f"{group_name} was left: {error}.")


class _ScaleUp:
    """A group's turn."""

    def __init__(self, keeper: Keeper, scale_up: ScaleUp, run_id: str) -> None:
        self._keeper = keeper
        self._scale_up = scale_up
        self._run_id = run_id

    def take(self) -> ScaleUpResult:
        now = self._keeper.clock()
        name = self._scale_up.group_name
        if pause := Pauses(self._keeper.ledger.pauses(), now).of_group(name):
            return self._end(ScaleUpOutcome.UNNEEDED, EventKind.GIVEN_BACK, str(pause))
        incidents = {i.resource_id: i for i in self._keeper.ledger.open_incidents(name)}
        survey = self._keeper.registry.read_group_snapshot(name)
        group = survey.sized.get(name)
        min_parallelism = (groups.min_parallelism(group) or 0) if group else 0
        live = survey.live.get(name, 0)
        expected = coming(survey.orphans.values(), incidents, self._keeper.policy, now)
        # No more than was decided on: other orphans were not taken from their runs.
        threads = min(self._scale_up.threads, min_parallelism - live - expected)
        if group is None or threads <= 0:
            there = f"{live} of {min_parallelism} threads are there and {expected} on their way"
            return self._end(ScaleUpOutcome.UNNEEDED, EventKind.GIVEN_BACK, f"not needed: {there}")
        return self._start(group, threads)

    def _start(self, group: Group, threads: int) -> ScaleUpResult:
        if not self._is_ours():
            return _not_ours(group.name)
        try:
            resource = self._resource(group, threads)
            container = self._keeper.containers.get(resource.container_name)
            startup = start(container, resource)
        except (ContainerError, PropertiesError) as error:
            return self._end(ScaleUpOutcome.FAILED, EventKind.SCALE_UP_FAILED, f"failed: {error}")
        started = resource.with_properties(startup)
        try:
            self._keeper.registry.add_resource(started)
            message = f"started {started.resource_id}{shown(startup)} with {threads} threads"
            return self._end(ScaleUpOutcome.STARTED, EventKind.SCALED_UP, message)
        except KeeperError:  # unrecorded, or another deployment's business by now
            stop(container, started, "what cannot be recorded")
            properties = dump_properties(started.properties)
            self._keeper.registry.remove_orphan(started.resource_id, properties)
            raise

    def _resource(self, group: Group, threads: int) -> Resource:
        return Resource(
            resource_id=self._scale_up.resource_id,
            group_name=group.name,
            container_name=group.container_name or "",
            thread_count=threads,
            memory_mb=0,
            properties=parse_properties(group.properties),
        )

    def _is_ours(self) -> bool:
        """Whether it still is right before the start: this process may have slept."""
        if self._scale_up.fence is not None:
            self._keeper.ledger.ensure_lease(self._scale_up.fence)
        current = self._keeper.ledger.scale_ups().get(self._scale_up.group_name)
        return current == self._scale_up

    def _end(self, ending: ScaleUpOutcome, kind: EventKind, told: str) -> ScaleUpResult:
        now = self._keeper.clock()
        state = _STATES[ending]
        failed = ending is ScaleUpOutcome.FAILED
        after = self._scale_up.evolve(
            state=state, claimed_by=None, claimed_until=None, last_error=told if failed else None
        )
        round_of = f"round {after.rounds} of {self._keeper.max_keeping_attempts}"
        event = _event(after, kind, f"{round_of} {told}", now, run_id=self._run_id)
        with self._keeper.ledger.transaction(self._scale_up.fence) as ledger:
            if not ledger.move_scale_up(self._scale_up, after):
                raise LeaseLostError("another run has it by now")
            ledger.add_event(event, group_name=after.group_name)
        following = f" The next round follows after {clock_time(after.next_at or now)}, if needed."
        message = f"{after.group_name}: {round_of} {told}.{following}"
        return ScaleUpResult(ending=ending, message=message, scale_up=after)


_STATES: Final[Mapping[ScaleUpOutcome, ScaleUpState]] = {
    ScaleUpOutcome.STARTED: ScaleUpState.STARTED,
    ScaleUpOutcome.FAILED: ScaleUpState.FAILED,
    ScaleUpOutcome.UNNEEDED: ScaleUpState.UNNEEDED,
}


def _not_ours(group_name: str) -> ScaleUpResult:
    message = f"{group_name} is with another run by now; nothing was done."
    return ScaleUpResult(ending=ScaleUpOutcome.LEFT, message=message)


def _event(
    scale_up: ScaleUp, kind: EventKind, message: str, now: datetime, *, run_id: str | None
) -> Event:
    details = {
        "resource": scale_up.resource_id,
        "threads": scale_up.threads,
        "round": scale_up.rounds,
    }
    return Event(kind=kind, at=now, message=message, run_id=run_id, details=details)
