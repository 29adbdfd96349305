"""One tick: read registry and ledger, plan what it means, write that down, request runs."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import chain, islice
from typing import Final

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.looks import LookStep
from dagster_amoro.core.messages import summarize
from dagster_amoro.core.model import Event, EventKind, Incident, Transition
from dagster_amoro.core.policy import RunState
from dagster_amoro.core.scale_up import ScaleUpRun
from dagster_amoro.core.tick_inputs import RegistrySnapshot, TickInputs
from dagster_amoro.core.tick_plan import (
    RunPlan,
    TickPlan,
    looks_after,
    moves,
    openings,
    plan_open,
    unknown,
)
from dagster_amoro.core.transitions import observed
from dagster_amoro.healing.preconditions import Preconditions
from dagster_amoro.healing.reading import Recorded, TickReader
from dagster_amoro.healing.scaling import record_scaling
from dagster_amoro.stores.bulk import ROWS
from dagster_amoro.stores.ledger import LedgerTransaction

LONGEST: Final = timedelta(seconds=15)
"""How long a tick writes; what is left is for the next. Dagster ends it after 60 s, in all."""
RunStates = Callable[[Sequence[str]], Mapping[str, RunState]]
"""The states of runs, for the run ids and run keys that incidents are claimed by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TickResult:
    """What a tick did."""

    snapshot: RegistrySnapshot
    plan: TickPlan  # what followed its steps, as it was carried out: without what lost a race
    dispatches: tuple[RunPlan, ...]  # runs to request; their incidents are dispatched already
    scale_ups: tuple[ScaleUpRun, ...]  # runs to request, which give groups new resources
    summary: str  # one line for the reader of the UI
    detector: AmsRestartDetector  # for the next tick
    pauses: int  # that hold


@contextmanager
def uncollected() -> Iterator[None]:
    """Lets the garbage collector rest while thousands of records are read, none in a cycle.

    To look through them again and again, and through all else in the process, would take a third
    as long as a tick itself.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticker:
    """Ticks: the sensor's work, without Dagster."""

    preconditions: Preconditions
    reader: TickReader
    stopwatch: Callable[[], float] = time.monotonic  # seconds

    @uncollected()
    def tick(
        self,
        run_states: RunStates,
        detector: AmsRestartDetector,
        *,
        last_served_group: str | None = None,
        instance: str = "",
        token: str | None = None,
    ) -> TickResult:
        """Reads once and records what it means, all of it in one transaction of the ledger.

        The ledger is read before the registry: an incident that a run closes in between is then
        still known here, and closing it again loses the race. The other way round, a resource that
        was just given up would look like a new orphan.

        Args:
            run_states: Asks Dagster about runs.
            detector: What the tick before remembered of AMS's optimizers.
            last_served_group: The group that its batch of restarts served last.
            instance: What tells this Dagster deployment from others of the same name.
            token: Letters and digits that end the run keys of this tick. The next tick is given
                another token, unless the result of this one is lost.

        Raises:
            WrongClockError: This host's clock and that of the ledger's database differ.
            StandbyError: Another deployment has the lease.
            UncertainStateError: AMS does not answer, or may have forgotten its optimizers. Its
                `detector` is for the next tick; no incident was touched.
            StoreUnavailableError: A store did not answer; no incident was touched.
            LeaseLostError: The lease was lost meanwhile; no incident was touched.
        """
        ends = self.stopwatch() + LONGEST.total_seconds()
        self.preconditions.ensure_clock()
        fence = self.preconditions.hold_lease(instance)
        recorded = self.reader.read_ledger()
        self.preconditions.ensure_answer(detector)
        snapshot = self.reader.registry.read_snapshot(to_act=self.reader.policy.enabled)
        now = self.preconditions.clock()
        detector = self.preconditions.ensure_continuity(detector, now)
        inputs = self.reader.read(
            recorded,
            snapshot,
            now=now,
            fence=fence,
            runs=_runs(run_states, recorded),
            last_served_group=last_served_group,
            token=token,
        )
        plan, scale_ups, applied = self._carry_out(inputs, lambda: self.stopwatch() < ends)
        dispatches = (*plan.again, *plan.dispatches)
        rounds = (*plan.scaling_again, *([scale_ups] if scale_ups else []))
        if not (dispatches or rounds):  # between a commit and its requests nothing may stall
            self.reader.containers.tend()
        return TickResult(
            snapshot=inputs.snapshot,
            plan=plan,
            dispatches=dispatches,
            scale_ups=rounds,
            summary=summarize(inputs, plan, dispatched=plan.dispatches, applied=applied),
            detector=detector,
            pauses=len(inputs.pauses.holding),
        )

    def _carry_out(
        self, inputs: TickInputs, goes_on: Callable[[], bool]
    ) -> tuple[TickPlan, ScaleUpRun | None, Mapping[EventKind, int]]:
        """Plans, and writes it down.

        Steps can lose a race, and incidents get their numbers here: what follows them is planned on
        what is recorded. Returns that plan as it was carried out, and how many steps of each kind
        were taken: there may be too many of them to keep.
        """
        moving, plan, scale_ups = tuple(moves(inputs)), None, None
        looks, steps = looks_after(inputs, moving), self._with_threads(inputs, moving)
        if steps is None:
            inputs = inputs.after_steps((), ())
            plan = replace(plan_open(inputs), looks=looks)
            if not (plan.writes or self.reader.settings.notes_surveys):
                return plan, None, {}
        with self.reader.ledger.transaction(inputs.fence) as ledger:
            writing = _Writing(ledger, goes_on)
            incidents = writing.take(steps or ())
            _note(ledger, looks)
            if plan is None:
                inputs = inputs.after_steps(moving, incidents)
                plan = plan_open(inputs)
            if any(each.acts for each in plan.scaling):
                scaling = plan.scaling
                scale_ups, inputs = record_scaling(ledger, scaling, inputs)
                plan = replace(plan_open(inputs), scaling=scaling)
            writing.take(plan.reports)
            dispatches = writing.dispatch(inputs, plan)
            if self.reader.settings.notes_surveys:
                ledger.note_survey(inputs.now)
        plan = replace(plan, looks=looks, dispatches=dispatches, left=writing.left)
        return plan, scale_ups, writing.taken

    def _with_threads(
        self, inputs: TickInputs, moving: Sequence[Transition]
    ) -> Iterator[Transition] | None:
        """All steps with the threads of their groups, for the audit; None: there are none.

        First those of known incidents, which are older. New ones are made when they are taken, and
        those of a group share what is alike: there may be very many.
        """
        groups = {step.after.group_name for step in moving}
        groups |= {each.group_name or "" for each in unknown(inputs.snapshot, inputs.incidents)}
        if not groups:
            return None
        capacity, policy = self.reader.registry.capacity(groups), self.reader.policy
        alike: dict[tuple[str, int], Event] = {}

        def observe(step: Transition) -> Transition:
            group, prior_attempts = step.after.group_name, step.after.prior_attempts
            step = observed(step, capacity.get(group), policy)
            if step.before is not None:
                return step
            return replace(step, event=alike.setdefault((group, prior_attempts), step.event))

        return map(observe, chain(moving, openings(inputs)))


@dataclass(slots=True)
class _Writing:
    """Takes steps as long as there is time."""

    ledger: LedgerTransaction
    goes_on: Callable[[], bool]
    taken: Counter[EventKind] = field(default_factory=Counter)  # steps that won their race
    left: int = 0  # steps that were not tried
    _tried: bool = False  # some, so that each tick gets on

    def take(self, steps: Iterable[Transition]) -> list[Incident]:
        """Takes these; returns the incidents of those that won their race, as they now stand."""
        remaining, moved = iter(steps), []
        while some := list(islice(remaining, ROWS)):
            if self._may_try(len(some)):
                for step, incident in zip(some, self.ledger.apply(some), strict=True):
                    if incident is not None:
                        moved.append(incident)
                        self.taken[step.event.kind] += 1
        return moved

    def dispatch(self, inputs: TickInputs, plan: TickPlan) -> tuple[RunPlan, ...]:
        """Gives what is due to runs; returns them with the incidents that were won."""
        until = inputs.now + inputs.settings.claim_timeout
        runs = []
        for run in plan.dispatches:
            if self._may_try(len(run.incidents)):
                won = self.ledger.apply(run.dispatch(until, inputs.now, inputs.fence))
                if incidents := tuple(incident for incident in won if incident is not None):
                    runs.append(replace(run, incidents=incidents))
        return tuple(runs)

    def _may_try(self, number: int) -> bool:
        """Whether there is time for so many; else they are left."""
        self._tried, was_tried = True, self._tried
        if was_tried and not self.goes_on():
            self.left += number
            return False
        return True


def _runs(run_states: RunStates, recorded: Recorded) -> Mapping[str, RunState]:
    owners = {each.claimed_by for each in recorded.incidents}
    owners |= {each.claimed_by for each in recorded.scale_ups.values()}
    claimed = sorted(owner for owner in owners if owner)
    return run_states(claimed) if claimed else {}


def _note(ledger: LedgerTransaction, looks: Iterable[LookStep]) -> None:
    for before, after in (step for step in looks if step.changes):
        if after is not None:
            ledger.move_look(before, after)
        elif before is not None:
            ledger.forget_look(before)
