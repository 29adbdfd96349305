"""One tick: look at the registry, open and close incidents, hand over what is due."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

from orchestration.gate import ensure_answer, ensure_continuity
from orchestration.keeper import Keeper
from orchestration.keeping.continuity import Watch
from orchestration.keeping.model import Incident, Transition
from orchestration.keeping.policy import RunState
from orchestration.keeping.summary import summarize
from orchestration.keeping.survey import (
    Assessment,
    Order,
    Surroundings,
    Survey,
    assess,
    missing,
    orders,
    reconcile,
)
from orchestration.keeping.transitions import observed
from orchestration.stores.ledger import Writing

RunStates = Callable[[Sequence[str]], Mapping[str, RunState]]
"""The states of runs, for the run ids and run keys that incidents are claimed by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """What a tick did."""

    survey: Survey
    orders: tuple[Order, ...]  # runs to request; their incidents are handed over already
    summary: str  # one line for the reader of the UI
    watch: Watch  # for the next tick


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
def tick(keeper: Keeper, run_states: RunStates, watch: Watch) -> Tick:
    """Looks once and records what it means, all of it in one transaction of the ledger.

    The ledger is read before the registry: an incident that a run closes in between is then still
    known here, and closing it again loses the race. The other way round, a resource that was just
    given up would look like a new orphan.

    Args:
        keeper: What to keep, and with what.
        run_states: Asks Dagster about runs.
        watch: What the tick before remembered of AMS's optimizers.

    Raises:
        DoubtError: AMS does not answer, or may have forgotten its optimizers. Its `watch` is for
            the next tick; no incident was touched.
        StoreUnavailableError: A store did not answer; no incident was touched.
    """
    incidents = keeper.ledger.open_incidents()
    ensure_answer(keeper.ams, watch)
    survey = keeper.registry.survey()
    now = keeper.clock()
    watch = ensure_continuity(keeper, watch, now)
    gone = missing(survey, incidents)
    present = keeper.registry.present(gone) if gone else set()
    claims = sorted({i.claimed_by for i in incidents if i.claimed_by})
    surroundings = Surroundings(
        policy=keeper.policy,
        obstacle=cache(keeper.containers.obstacle),  # once a tick, not once an orphan
        runs=run_states(claims) if claims else {},
        now=now,
    )
    steps = _observed(keeper, reconcile(survey, incidents, present, surroundings.now))
    assessment = assess(survey, incidents, surroundings)
    requested: list[Order] = []
    if steps or assessment.due or assessment.reports:
        with keeper.ledger.writing() as ledger:
            steps, incidents = _reconciled(ledger, steps, incidents)
            assessment = assess(survey, incidents, surroundings)
            ledger.apply(assessment.reports)
            requested = _hand_over(ledger, keeper, assessment, surroundings)
    summary = summarize(
        survey, assessment, handed_over=requested, applied=steps, surroundings=surroundings
    )
    return Tick(survey=survey, orders=tuple(requested), summary=summary, watch=watch)


def _observed(keeper: Keeper, steps: list[Transition]) -> list[Transition]:
    """The steps with the threads of their groups: what was lost, and what came back."""
    groups = {step.after.group_name for step in steps}
    capacity = keeper.registry.capacity(groups) if groups else {}
    return [observed(step, capacity.get(step.after.group_name), keeper.policy) for step in steps]


def _reconciled(
    ledger: Writing, steps: Sequence[Transition], incidents: Sequence[Incident]
) -> tuple[list[Transition], list[Incident]]:
    """Takes the steps; returns those that were taken and the incidents that are open now."""
    results = list(zip(steps, ledger.apply(steps), strict=True))
    touched = {step.before.incident_id for step, _ in results if step.before}
    still_open = [i for i in incidents if i.incident_id not in touched]
    opened = [moved for _, moved in results if moved is not None and moved.is_open]
    return [step for step, moved in results if moved is not None], still_open + opened


def _hand_over(
    ledger: Writing, keeper: Keeper, assessment: Assessment, surroundings: Surroundings
) -> list[Order]:
    """Gives what is due to runs; returns the orders with the incidents that were won."""
    now = surroundings.now
    requested = []
    for order in orders(assessment.due, keeper.max_restarts_per_run):
        won = ledger.apply(order.hand_over(now + keeper.claim_timeout, now))
        incidents = tuple(incident for incident in won if incident is not None)
        if incidents:
            requested.append(replace(order, incidents=incidents))
    return requested
