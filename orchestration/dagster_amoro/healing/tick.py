"""One tick: look at the registry, open and close incidents, hand over what is due."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.messages import DRY_RUN, summarize
from dagster_amoro.core.model import Incident, Transition
from dagster_amoro.core.pauses import Pause, Pauses
from dagster_amoro.core.policy import RunState, holds_claim
from dagster_amoro.core.scale_up import ScaleUp, ScaleUpState
from dagster_amoro.core.scaling import ScalePlan, size
from dagster_amoro.core.tick_plan import (
    DecisionInputs,
    RegistrySnapshot,
    RunPlan,
    TickPlan,
    missing,
    orders,
    plan_tick,
    reconcile,
    unknown,
)
from dagster_amoro.core.transitions import detect, enforce, observed
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.healing.preconditions import ensure_answer, ensure_continuity, hold_lease
from dagster_amoro.healing.replacements import Replacements, group_obstacle
from dagster_amoro.healing.scaling import ScaleUpRun, request
from dagster_amoro.stores.transaction import LedgerTransaction

RunStates = Callable[[Sequence[str]], Mapping[str, RunState]]
"""The states of runs, for the run ids and run keys that incidents are claimed by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """What a tick did."""

    survey: RegistrySnapshot
    orders: tuple[RunPlan, ...]  # runs to request; their incidents are handed over already
    summary: str  # one line for the reader of the UI
    watch: AmsRestartDetector  # for the next tick
    last_served_group: str | None  # likewise: the group that was served last
    scale_ups: ScaleUpRun | None  # a run that refills groups; None: none is needed
    plan: TickPlan
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


@uncollected()
def tick(
    keeper: Keeper,
    run_states: RunStates,
    watch: AmsRestartDetector,
    *,
    last_served_group: str | None = None,
    instance: str = "",
) -> Tick:
    """Looks once and records what it means, all of it in one transaction of the ledger.

    The ledger is read before the registry: an incident that a run closes in between is then still
    known here, and closing it again loses the race. The other way round, a resource that was just
    given up would look like a new orphan.

    Args:
        keeper: What to keep, and with what.
        run_states: Asks Dagster about runs.
        watch: What the tick before remembered of AMS's optimizers.
        last_served_group: What it remembered of whose turn it was.
        instance: What tells this Dagster deployment from others of the same name.

    Raises:
        StandbyError: Another deployment has the lease.
        DoubtError: AMS does not answer, or may have forgotten its optimizers. Its `watch` is for
            the next tick; no incident was touched.
        StoreUnavailableError: A store did not answer; no incident was touched.
        LeaseLostError: The lease was lost meanwhile; no incident was touched.
    """
    fence = hold_lease(keeper, instance)
    incidents = keeper.ledger.open_incidents()
    scale_ups = {} if keeper.ams else keeper.ledger.scale_ups()
    pauses = keeper.ledger.pauses()
    ensure_answer(keeper.ams, watch)
    survey = keeper.registry.read_snapshot()
    now = keeper.clock()
    watch = ensure_continuity(keeper, watch, now)
    runs = _runs(run_states, [*incidents, *scale_ups.values()])
    inputs = inputs_of(
        keeper,
        survey,
        pauses=pauses,
        runs=runs,
        now=now,
        fence=fence,
        last_served_group=last_served_group,
    )
    return _TickUnderWay(keeper, survey, inputs, scale_ups).finish(incidents, watch)


def inputs_of(  # noqa: PLR0913 - what decisions depend on
    keeper: Keeper,
    survey: RegistrySnapshot,
    *,
    pauses: Iterable[Pause],
    runs: Mapping[str, RunState],
    now: datetime,
    fence: int | None,
    last_served_group: str | None = None,
) -> DecisionInputs:
    """What the decisions on a survey depend on, without what came in the place of orphans."""
    return DecisionInputs(
        policy=keeper.policy,
        obstacle=cache(keeper.containers.obstacle),  # once a tick, not once an orphan
        runs=runs,
        now=now,
        fence=fence,
        pauses=Pauses(pauses, now),
        limits=keeper.limits,
        count=cache(keeper.registry.resource_counts),
        last_served_group=last_served_group,
        group_obstacle=cache(lambda name: group_obstacle(keeper, survey.sized.get(name or ""))),
    )


def sizings_of(
    keeper: Keeper,
    survey: RegistrySnapshot,
    incidents: Sequence[Incident],
    scale_ups: Mapping[str, ScaleUp],
    inputs: DecisionInputs,
) -> list[ScalePlan]:
    """The groups below their min-parallelism; in attached mode they are AMS's business."""
    if keeper.ams is not None or not keeper.policy.enabled or not (survey.sized or scale_ups):
        return []
    return size(survey, incidents, scale_ups, inputs, keeper.max_keeping_attempts)


def plan_of(  # noqa: PLR0913, PLR0917 - what decisions depend on
    keeper: Keeper,
    survey: RegistrySnapshot,
    incidents: Sequence[Incident],
    scale_ups: Mapping[str, ScaleUp],
    started: Iterable[str],
    inputs: DecisionInputs,
) -> TickPlan:
    """The decisions on all open incidents; a round begins in the groups of `started`."""
    if not survey.sized:
        return plan_tick(survey, incidents, inputs)
    now, runs, fence = inputs.now, inputs.runs, inputs.fence
    scaling_up = set(started) | {
        name
        for name, each in scale_ups.items()
        if each.state is ScaleUpState.REQUESTED and holds_claim(each, runs, now, fence)
    }
    others = Replacements(keeper, survey.sized, incidents, scaling_up=scaling_up, now=now)
    return plan_tick(survey, incidents, replace(inputs, replacement=others.replacement))


def _runs(run_states: RunStates, claimed: Sequence[Incident | ScaleUp]) -> Mapping[str, RunState]:
    owners = sorted({each.claimed_by for each in claimed if each.claimed_by})
    return run_states(owners) if owners else {}


class _TickUnderWay:
    """A tick that has looked, and now concludes."""

    def __init__(
        self,
        keeper: Keeper,
        survey: RegistrySnapshot,
        inputs: DecisionInputs,
        scale_ups: Mapping[str, ScaleUp],
    ) -> None:
        self._keeper = keeper
        self._survey = survey
        self._inputs = inputs
        self._scale_ups = scale_ups

    def finish(self, incidents: list[Incident], watch: AmsRestartDetector) -> Tick:
        steps = self._steps(incidents)
        scale_plans = self._sizings(incidents)
        plan = self._plan_tick(incidents)
        requested: list[RunPlan] = []
        scale_up: ScaleUpRun | None = None
        if steps or plan.due or plan.reports or any(each.acts for each in scale_plans):
            with self._keeper.ledger.transaction(self._inputs.fence) as ledger:
                steps, incidents = _reconciled(ledger, steps, incidents)
                scale_plans = self._sizings(incidents)
                scale_up, incidents = request(
                    ledger, self._keeper, scale_plans, incidents, self._inputs
                )
                plan = self._plan_tick(incidents, scale_up)
                ledger.apply(plan.reports)
                requested = self._dispatch(ledger, plan)
        summary = summarize(
            self._survey,
            plan,
            dispatched=requested,
            applied=steps,
            inputs=self._inputs,
            sizes=[
                s for each in scale_plans if (s := each.message(self._keeper.max_keeping_attempts))
            ],
        )
        return Tick(
            survey=self._survey,
            orders=tuple(requested),
            summary=f"{DRY_RUN}{summary}" if self._keeper.ledger.dry_run else summary,
            watch=watch,
            scale_ups=scale_up,
            last_served_group=plan.last_served_group,
            plan=plan,
            pauses=len(self._inputs.pauses.holding),
        )

    def _steps(self, incidents: Sequence[Incident]) -> list[Transition]:
        """What changed since the last look, with the threads of the groups where it did."""
        keeper, now = self._keeper, self._inputs.now
        gone = missing(self._survey, incidents)
        present = keeper.registry.present(gone) if gone else set()
        steps = reconcile(self._survey, incidents, present, now, self._opened(incidents))
        if not keeper.ledger.dry_run:
            from_dry_run = [each for each in incidents if each.dry_run]
            orphans = self._survey.orphans
            steps += [enforce(each, now) for each in from_dry_run if each.resource_id in orphans]
        groups = {step.after.group_name for step in steps}
        capacity = keeper.registry.capacity(groups) if groups else {}
        return [
            observed(step, capacity.get(step.after.group_name), keeper.policy) for step in steps
        ]

    def _opened(self, incidents: Sequence[Incident]) -> list[Transition]:
        """The steps that open incidents, with what the past and the group say about them."""
        keeper, now = self._keeper, self._inputs.now
        new = unknown(self._survey, incidents)
        if not new:
            return []
        stable_after = keeper.policy.stable_after
        attempts_used = keeper.ledger.unstable(now - stable_after) if stable_after else {}
        starts = keeper.registry.newest_starts({each.group_name or "" for each in new})
        return [
            detect(
                orphan,
                now,
                prior_attempts=attempts_used.get(orphan.resource_id, 0),
                newest_start=starts.get(orphan.group_name or ""),
            )
            for orphan in new
        ]

    def _sizings(self, incidents: Sequence[Incident]) -> list[ScalePlan]:
        return sizings_of(self._keeper, self._survey, incidents, self._scale_ups, self._inputs)

    def _plan_tick(
        self, incidents: Sequence[Incident], scale_up: ScaleUpRun | None = None
    ) -> TickPlan:
        started = [each.group_name for each in scale_up.scale_ups] if scale_up else []
        return plan_of(
            self._keeper, self._survey, incidents, self._scale_ups, started, self._inputs
        )

    def _dispatch(self, ledger: LedgerTransaction, plan: TickPlan) -> list[RunPlan]:
        """Gives what is due to runs; returns the orders with the incidents that were won."""
        now, fence = self._inputs.now, self._inputs.fence
        until = now + self._keeper.claim_timeout
        requested = []
        for order in orders(plan.due, self._keeper.max_restarts_per_run):
            won = ledger.apply(order.dispatch(until, now, fence))
            incidents = tuple(incident for incident in won if incident is not None)
            if incidents:
                requested.append(replace(order, incidents=incidents))
        return requested


def _reconciled(
    ledger: LedgerTransaction, steps: Sequence[Transition], incidents: Sequence[Incident]
) -> tuple[list[Transition], list[Incident]]:
    """Takes the steps; returns those that were taken and the incidents that are open now."""
    results = list(zip(steps, ledger.apply(steps), strict=True))
    touched = {step.before.incident_id for step, _ in results if step.before}
    still_open = [i for i in incidents if i.incident_id not in touched]
    opened = [moved for _, moved in results if moved is not None and moved.is_open]
    return [step for step, moved in results if moved is not None], still_open + opened
