"""One tick: read registry and ledger, plan what it means, write that down, request runs."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.messages import summarize
from dagster_amoro.core.model import Transition
from dagster_amoro.core.policy import RunState
from dagster_amoro.core.scale_up import ScaleUpRun
from dagster_amoro.core.tick_inputs import RegistrySnapshot, TickInputs
from dagster_amoro.core.tick_plan import RunPlan, TickPlan, plan_tick
from dagster_amoro.core.transitions import observed
from dagster_amoro.healing.preconditions import Preconditions
from dagster_amoro.healing.reading import Recorded, TickReader
from dagster_amoro.healing.scaling import record_scaling
from dagster_amoro.stores.ledger import LedgerTransaction

RunStates = Callable[[Sequence[str]], Mapping[str, RunState]]
"""The states of runs, for the run ids and run keys that incidents are claimed by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TickResult:
    """What a tick did."""

    snapshot: RegistrySnapshot
    plan: TickPlan  # as it was carried out: without what lost a race
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
            StandbyError: Another deployment has the lease.
            UncertainStateError: AMS does not answer, or may have forgotten its optimizers. Its
                `detector` is for the next tick; no incident was touched.
            StoreUnavailableError: A store did not answer; no incident was touched.
            LeaseLostError: The lease was lost meanwhile; no incident was touched.
        """
        fence = self.preconditions.hold_lease(instance)
        recorded = self.reader.read_ledger()
        self.preconditions.ensure_answer(detector)
        snapshot = self.reader.registry.read_snapshot()
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
        plan, scale_ups = plan_tick(inputs), None
        if plan.writes:
            plan, scale_ups = self._write(inputs, plan)
        return TickResult(
            snapshot=snapshot,
            plan=plan,
            dispatches=(*plan.again, *plan.dispatches),
            scale_ups=(*plan.scaling_again, *([scale_ups] if scale_ups else [])),
            summary=summarize(inputs, plan, dispatched=plan.dispatches, applied=plan.steps),
            detector=detector,
            pauses=len(inputs.pauses.holding),
        )

    def _write(self, inputs: TickInputs, plan: TickPlan) -> tuple[TickPlan, ScaleUpRun | None]:
        """Writes the plan down; returns it as it was carried out.

        Steps can lose a race, and incidents get their numbers here: after each part, the rest is
        planned again on what is recorded.
        """
        steps, scale_ups = self._with_threads(plan.steps), None
        with self.reader.ledger.transaction(inputs.fence) as ledger:
            results = ledger.apply(steps)
            if steps:
                inputs = inputs.after_steps(steps, results)
                plan = plan_tick(inputs)
            if any(each.acts for each in plan.scaling):
                scaling = plan.scaling
                scale_ups, inputs = record_scaling(ledger, scaling, inputs)
                plan = replace(plan_tick(inputs), scaling=scaling)
            ledger.apply(plan.reports)
            dispatches = _dispatch(ledger, inputs, plan)
        taken = tuple(step for step, moved in zip(steps, results, strict=True) if moved is not None)
        return replace(plan, steps=taken, dispatches=dispatches), scale_ups

    def _with_threads(self, steps: Sequence[Transition]) -> list[Transition]:
        """The steps with the threads of their groups, for the audit."""
        groups = {step.after.group_name for step in steps}
        capacity = self.reader.registry.capacity(groups) if groups else {}
        policy = self.reader.policy
        return [observed(step, capacity.get(step.after.group_name), policy) for step in steps]


def _runs(run_states: RunStates, recorded: Recorded) -> Mapping[str, RunState]:
    owners = {each.claimed_by for each in recorded.incidents}
    owners |= {each.claimed_by for each in recorded.scale_ups.values()}
    claimed = sorted(owner for owner in owners if owner)
    return run_states(claimed) if claimed else {}


def _dispatch(ledger: LedgerTransaction, inputs: TickInputs, plan: TickPlan) -> tuple[RunPlan, ...]:
    """Gives what is due to runs; returns them with the incidents that were won."""
    until = inputs.now + inputs.settings.claim_timeout
    runs = []
    for run in plan.dispatches:
        won = ledger.apply(run.dispatch(until, inputs.now, inputs.fence))
        if incidents := tuple(incident for incident in won if incident is not None):
            runs.append(replace(run, incidents=incidents))
    return tuple(runs)
