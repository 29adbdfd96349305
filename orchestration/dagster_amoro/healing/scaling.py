"""How does a group that is below its floor get a new resource, and never two?

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
from dagster_amoro.core.model import Event, EventKind, Incident, Note, Resource
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.properties import dump_properties, parse_properties
from dagster_amoro.core.scale_up import Course, Refill, RefillState, coming, next_round
from dagster_amoro.core.scaling import Sizing
from dagster_amoro.core.tick_plan import Surroundings
from dagster_amoro.core.transitions import shown, stand_in
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.stores.ledger import Writing

_DIGITS: Final = "0123456789abcdefghijklmnopqrstuv"  # of AMS's own resource ids


@dataclass(frozen=True, kw_only=True, slots=True)
class RefillOrder:
    """A run to request: groups that get a new resource each."""

    run_key: str
    refills: tuple[Refill, ...]


class Filling(StrEnum):
    """How a group's turn ended."""

    STARTED = "started"  # registration decides whether it helped
    FAILED = "failed"
    UNNEEDED = "not needed"  # the threads were there, or on their way, by then
    LEFT = "left"  # not this run's any more


@dataclass(frozen=True, kw_only=True, slots=True)
class Filled:
    """What came of one group's turn."""

    ending: Filling
    message: str  # what happened, to what, and what happens next
    refill: Refill | None = None  # as it stands now; None: it is not this run's


def new_resource_id() -> str:
    """An id as AMS makes them: a random number of 128 bits with the digits 0 to 9 and a to v."""
    number, digits = uuid4().int, ""
    while number:
        number, digit = divmod(number, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits


def request(
    ledger: Writing,
    keeper: Keeper,
    sizings: Sequence[Sizing],
    incidents: Sequence[Incident],
    surroundings: Surroundings,
) -> tuple[RefillOrder | None, list[Incident]]:
    """Writes down what is to be done for groups that are below their floor.

    Returns:
        The run to request, and the incidents as they stand now.
    """
    ids = {s.group.name: new_resource_id() for s in sizings if s.course is Course.START}
    run_key = f"refill {next(iter(ids.values()), '')} of {len(ids)}"
    moved: dict[int, Incident] = {}
    begun: list[Refill] = []
    for sizing in sizings:
        match sizing.course:
            case Course.SETTLE if sizing.refill:
                ledger.forget_refill(sizing.refill)
            case Course.STOP if sizing.refill:
                _give_up(ledger, sizing, sizing.refill, surroundings.now)
            case Course.START:
                new_id = ids[sizing.group.name]
                steps = [stand_in(each, new_id, surroundings.now) for each in sizing.failed]
                won = [incident for incident in ledger.apply(steps) if incident is not None]
                moved |= {incident.incident_id: incident for incident in won}
                if len(won) == len(steps):  # else one is being restarted at this moment
                    begun += _begin(ledger, keeper, sizing, new_id, run_key, surroundings)
            case _ if sizing.lapsed and sizing.refill:  # its run may only sleep: it is too late
                late = sizing.refill.evolve(
                    state=RefillState.FAILED, claimed_by=None, claimed_until=None
                )
                ledger.move_refill(sizing.refill, late)
    order = RefillOrder(run_key=run_key, refills=tuple(begun)) if begun else None
    return order, [moved.get(each.incident_id, each) for each in incidents]


def _begin(  # noqa: PLR0913, PLR0917 - what a round is made of
    ledger: Writing,
    keeper: Keeper,
    sizing: Sizing,
    new_id: str,
    run_key: str,
    surroundings: Surroundings,
) -> list[Refill]:
    now = surroundings.now
    after = next_round(
        sizing.refill,
        sizing.group.name,
        floor=sizing.floor,
        threads=sizing.missing,
        resource_id=new_id,
        interval=keeper.check_interval,
        now=now,
    )._replace(
        claimed_by=run_key, claimed_until=now + keeper.claim_timeout, fence=surroundings.fence
    )
    if not ledger.move_refill(sizing.refill, after):
        return []
    message = (
        f"{sizing.live} of {sizing.floor} threads are there and {sizing.coming} on their way; "
        f"round {after.rounds} of {keeper.max_keeping_attempts} starts {new_id} with "
        f"{counted(after.threads, 'thread')}"
    )
    ledger.note(_note(after, EventKind.REFILL, message, now, run_id=None))
    return [after]


def _give_up(ledger: Writing, sizing: Sizing, refill: Refill, now: datetime) -> None:
    after = refill.evolve(state=RefillState.STOPPED)
    if ledger.move_refill(refill, after):
        why = f"; the last one failed: {refill.last_error}" if refill.last_error else ""
        message = (
            f"{sizing.live} of {sizing.floor} threads are there, and {refill.rounds} rounds in a "
            f"row did not help{why}. No more are begun until the group has its threads, its "
            "min-parallelism changes, or it is reset"
        )
        ledger.note(_note(after, EventKind.REFILL_STOPPED, message, now, run_id=None))


def take_up(keeper: Keeper, run_key: str, run_id: str) -> list[Refill]:
    """Claims for this run what was requested under the key; as `attempt.take_up` does."""
    until = keeper.clock() + keeper.claim_timeout
    handed_over = [r for r in keeper.ledger.refills().values() if r.claimed_by == run_key]
    claims = [(each, each.evolve(claimed_by=run_id, claimed_until=until)) for each in handed_over]
    fence = next((refill.fence for refill in handed_over), None)
    try:
        with keeper.ledger.writing(fence) as ledger:
            return [after for before, after in claims if ledger.move_refill(before, after)]
    except LeaseLostError:
        return []


def take_turn(keeper: Keeper, group_name: str, run_id: str) -> Filled:
    """Starts a new resource for a group, if it still needs one and this run still may.

    Raises:
        StoreUnavailableError: A store did not answer. What was started and cannot be recorded was
            released again.
    """
    refill = keeper.ledger.refills().get(group_name)
    if refill is None or refill.claimed_by != run_id:
        return _not_ours(group_name)
    try:
        return _FillingUnderWay(keeper, refill, run_id).take()
    except LeaseLostError as error:
        return Filled(ending=Filling.LEFT, message=f"{group_name} was left: {error}.")


class _FillingUnderWay:
    """A group's turn."""

    def __init__(self, keeper: Keeper, refill: Refill, run_id: str) -> None:
        self._keeper = keeper
        self._refill = refill
        self._run_id = run_id

    def take(self) -> Filled:
        now = self._keeper.clock()
        name = self._refill.group_name
        if pause := Pauses(self._keeper.ledger.pauses(), now).of_group(name):
            return self._end(Filling.UNNEEDED, EventKind.GIVEN_BACK, str(pause))
        incidents = {i.resource_id: i for i in self._keeper.ledger.open_incidents(name)}
        survey = self._keeper.registry.survey_group(name)
        group = survey.sized.get(name)
        floor = (groups.floor(group) or 0) if group else 0
        live = survey.live.get(name, 0)
        expected = coming(survey.orphans.values(), incidents, self._keeper.policy, now)
        # No more than was decided on: other orphans were not taken from their runs.
        threads = min(self._refill.threads, floor - live - expected)
        if group is None or threads <= 0:
            there = f"{live} of {floor} threads are there and {expected} on their way"
            return self._end(Filling.UNNEEDED, EventKind.GIVEN_BACK, f"not needed: {there}")
        return self._start(group, threads)

    def _start(self, group: Group, threads: int) -> Filled:
        if not self._is_ours():
            return _not_ours(group.name)
        try:
            resource = self._resource(group, threads)
            container = self._keeper.containers.get(resource.container_name)
            startup = start(container, resource)
        except (ContainerError, PropertiesError) as error:
            return self._end(Filling.FAILED, EventKind.REFILL_FAILED, f"failed: {error}")
        started = resource.with_properties(startup)
        try:
            self._keeper.registry.add_resource(started)
            message = f"started {started.resource_id}{shown(startup)} with {threads} threads"
            return self._end(Filling.STARTED, EventKind.REFILLED, message)
        except KeeperError:  # unrecorded, or another deployment's business by now
            stop(container, started, "what cannot be recorded")
            properties = dump_properties(started.properties)
            self._keeper.registry.remove_orphan(started.resource_id, properties)
            raise

    def _resource(self, group: Group, threads: int) -> Resource:
        return Resource(
            resource_id=self._refill.resource_id,
            group_name=group.name,
            container_name=group.container_name or "",
            thread_count=threads,
            memory_mb=0,
            properties=parse_properties(group.properties),
        )

    def _is_ours(self) -> bool:
        """Whether it still is right before the start: this process may have slept."""
        if self._refill.fence is not None:
            self._keeper.ledger.ensure_lease(self._refill.fence)
        current = self._keeper.ledger.refills().get(self._refill.group_name)
        return current == self._refill

    def _end(self, ending: Filling, kind: EventKind, told: str) -> Filled:
        now = self._keeper.clock()
        state = _STATES[ending]
        failed = ending is Filling.FAILED
        after = self._refill.evolve(
            state=state, claimed_by=None, claimed_until=None, last_error=told if failed else None
        )
        round_of = f"round {after.rounds} of {self._keeper.max_keeping_attempts}"
        note = _note(after, kind, f"{round_of} {told}", now, run_id=self._run_id)
        with self._keeper.ledger.writing(self._refill.fence) as ledger:
            if not ledger.move_refill(self._refill, after):
                raise LeaseLostError("another run has it by now")
            ledger.note(note)
        following = f" The next round follows after {clock_time(after.next_at or now)}, if needed."
        message = f"{after.group_name}: {round_of} {told}.{following}"
        return Filled(ending=ending, message=message, refill=after)


_STATES: Final[Mapping[Filling, RefillState]] = {
    Filling.STARTED: RefillState.STARTED,
    Filling.FAILED: RefillState.FAILED,
    Filling.UNNEEDED: RefillState.UNNEEDED,
}


def _not_ours(group_name: str) -> Filled:
    message = f"{group_name} is with another run by now; nothing was done."
    return Filled(ending=Filling.LEFT, message=message)


def _note(
    refill: Refill, kind: EventKind, message: str, now: datetime, *, run_id: str | None
) -> Note:
    details = {"resource": refill.resource_id, "threads": refill.threads, "round": refill.rounds}
    event = Event(kind=kind, at=now, message=message, run_id=run_id, details=details)
    return Note(event=event, group_name=refill.group_name)
