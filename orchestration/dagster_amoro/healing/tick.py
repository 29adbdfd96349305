"""One tick: look at the registry, open and close incidents, hand over what is due."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache

from dagster_amoro.core.ams_restart import Watch
from dagster_amoro.core.messages import DRY_RUN, summarize
from dagster_amoro.core.model import Incident, Transition
from dagster_amoro.core.pauses import Pause, Pauses
from dagster_amoro.core.policy import RunState, holds_claim
from dagster_amoro.core.scale_up import Refill, RefillState
from dagster_amoro.core.scaling import Sizing, size
from dagster_amoro.core.tick_plan import (
    Assessment,
    Order,
    Surroundings,
    Survey,
    assess,
    missing,
    orders,
    reconcile,
    unknown,
)
from dagster_amoro.core.transitions import detect, enforce, observed
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.healing.preconditions import ensure_answer, ensure_continuity, hold_lease
from dagster_amoro.healing.replacements import Replacements, group_obstacle
from dagster_amoro.healing.scaling import RefillOrder, request
from dagster_amoro.stores.ledger import Writing

RunStates = Callable[[Sequence[str]], Mapping[str, RunState]]
"""The states of runs, for the run ids and run keys that incidents are claimed by."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tick:
    """What a tick did."""

    survey: Survey
    orders: tuple[Order, ...]  # runs to request; their incidents are handed over already
    summary: str  # one line for the reader of the UI
    watch: Watch  # for the next tick
    turn: str | None  # likewise: the group that was served last
    refills: RefillOrder | None  # a run that refills groups; None: none is needed
    assessment: Assessment
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
    watch: Watch,
    *,
    turn: str | None = None,
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
        turn: What it remembered of whose turn it was.
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
    refills = {} if keeper.ams else keeper.ledger.refills()
    pauses = keeper.ledger.pauses()
    ensure_answer(keeper.ams, watch)
    survey = keeper.registry.survey()
    now = keeper.clock()
    watch = ensure_continuity(keeper, watch, now)
    runs = _runs(run_states, [*incidents, *refills.values()])
    surroundings = surroundings_of(
        keeper, survey, pauses=pauses, runs=runs, now=now, fence=fence, turn=turn
    )
    return _TickUnderWay(keeper, survey, surroundings, refills).finish(incidents, watch)


def surroundings_of(  # noqa: PLR0913 - what decisions depend on
    keeper: Keeper,
    survey: Survey,
    *,
    pauses: Iterable[Pause],
    runs: Mapping[str, RunState],
    now: datetime,
    fence: int | None,
    turn: str | None = None,
) -> Surroundings:
    """What the decisions on a survey depend on, without what came in the place of orphans."""
    return Surroundings(
        policy=keeper.policy,
        obstacle=cache(keeper.containers.obstacle),  # once a tick, not once an orphan
        runs=runs,
        now=now,
        fence=fence,
        pauses=Pauses(pauses, now),
        guards=keeper.guards,
        count=cache(keeper.registry.resource_counts),
        turn=turn,
        group_obstacle=cache(lambda name: group_obstacle(keeper, survey.sized.get(name or ""))),
    )


def sizings_of(
    keeper: Keeper,
    survey: Survey,
    incidents: Sequence[Incident],
    refills: Mapping[str, Refill],
    surroundings: Surroundings,
) -> list[Sizing]:
    """The groups below their floor; in attached mode they are AMS's business."""
    if keeper.ams is not None or not keeper.policy.enabled or not (survey.sized or refills):
        return []
    return size(survey, incidents, refills, surroundings, keeper.max_keeping_attempts)


def assessment_of(  # noqa: PLR0913, PLR0917 - what decisions depend on
    keeper: Keeper,
    survey: Survey,
    incidents: Sequence[Incident],
    refills: Mapping[str, Refill],
    started: Iterable[str],
    surroundings: Surroundings,
) -> Assessment:
    """The decisions on all open incidents; a round begins in the groups of `started`."""
    if not survey.sized:
        return assess(survey, incidents, surroundings)
    now, runs, fence = surroundings.now, surroundings.runs, surroundings.fence
    refilling = set(started) | {
        name
        for name, each in refills.items()
        if each.state is RefillState.REQUESTED and holds_claim(each, runs, now, fence)
    }
    others = Replacements(keeper, survey.sized, incidents, refilling=refilling, now=now)
    return assess(survey, incidents, replace(surroundings, stand_in=others.stand_in))


def _runs(run_states: RunStates, claimed: Sequence[Incident | Refill]) -> Mapping[str, RunState]:
    owners = sorted({each.claimed_by for each in claimed if each.claimed_by})
    return run_states(owners) if owners else {}


class _TickUnderWay:
    """A tick that has looked, and now concludes."""

    def __init__(
        self,
        keeper: Keeper,
        survey: Survey,
        surroundings: Surroundings,
        refills: Mapping[str, Refill],
    ) -> None:
        self._keeper = keeper
        self._survey = survey
        self._surroundings = surroundings
        self._refills = refills

    def finish(self, incidents: list[Incident], watch: Watch) -> Tick:
        steps = self._steps(incidents)
        sizings = self._sizings(incidents)
        assessment = self._assess(incidents)
        requested: list[Order] = []
        refill: RefillOrder | None = None
        if steps or assessment.due or assessment.reports or any(each.acts for each in sizings):
            with self._keeper.ledger.writing(self._surroundings.fence) as ledger:
                steps, incidents = _reconciled(ledger, steps, incidents)
                sizings = self._sizings(incidents)
                refill, incidents = request(
                    ledger, self._keeper, sizings, incidents, self._surroundings
                )
                assessment = self._assess(incidents, refill)
                ledger.apply(assessment.reports)
                requested = self._hand_over(ledger, assessment)
        summary = summarize(
            self._survey,
            assessment,
            handed_over=requested,
            applied=steps,
            surroundings=self._surroundings,
            sizes=[s for each in sizings if (s := each.told(self._keeper.max_keeping_attempts))],
        )
        return Tick(
            survey=self._survey,
            orders=tuple(requested),
            summary=f"{DRY_RUN}{summary}" if self._keeper.ledger.dry_run else summary,
            watch=watch,
            refills=refill,
            turn=assessment.turn,
            assessment=assessment,
            pauses=len(self._surroundings.pauses.holding),
        )

    def _steps(self, incidents: Sequence[Incident]) -> list[Transition]:
        """What changed since the last look, with the threads of the groups where it did."""
        keeper, now = self._keeper, self._surroundings.now
        gone = missing(self._survey, incidents)
        present = keeper.registry.present(gone) if gone else set()
        steps = reconcile(self._survey, incidents, present, now, self._opened(incidents))
        if not keeper.ledger.dry_run:
            rehearsed = [each for each in incidents if each.dry_run]
            orphans = self._survey.orphans
            steps += [enforce(each, now) for each in rehearsed if each.resource_id in orphans]
        groups = {step.after.group_name for step in steps}
        capacity = keeper.registry.capacity(groups) if groups else {}
        return [
            observed(step, capacity.get(step.after.group_name), keeper.policy) for step in steps
        ]

    def _opened(self, incidents: Sequence[Incident]) -> list[Transition]:
        """The steps that open incidents, with what the past and the group say about them."""
        keeper, now = self._keeper, self._surroundings.now
        new = unknown(self._survey, incidents)
        if not new:
            return []
        stable_after = keeper.policy.stable_after
        spent = keeper.ledger.unstable(now - stable_after) if stable_after else {}
        starts = keeper.registry.newest_starts({each.group_name or "" for each in new})
        return [
            detect(
                orphan,
                now,
                carried=spent.get(orphan.resource_id, 0),
                newest_start=starts.get(orphan.group_name or ""),
            )
            for orphan in new
        ]

    def _sizings(self, incidents: Sequence[Incident]) -> list[Sizing]:
        return sizings_of(self._keeper, self._survey, incidents, self._refills, self._surroundings)

    def _assess(
        self, incidents: Sequence[Incident], refill: RefillOrder | None = None
    ) -> Assessment:
        started = [each.group_name for each in refill.refills] if refill else []
        return assessment_of(
            self._keeper, self._survey, incidents, self._refills, started, self._surroundings
        )

    def _hand_over(self, ledger: Writing, assessment: Assessment) -> list[Order]:
        """Gives what is due to runs; returns the orders with the incidents that were won."""
        now, fence = self._surroundings.now, self._surroundings.fence
        until = now + self._keeper.claim_timeout
        requested = []
        for order in orders(assessment.due, self._keeper.max_restarts_per_run):
            won = ledger.apply(order.hand_over(until, now, fence))
            incidents = tuple(incident for incident in won if incident is not None)
            if incidents:
                requested.append(replace(order, incidents=incidents))
        return requested


def _reconciled(
    ledger: Writing, steps: Sequence[Transition], incidents: Sequence[Incident]
) -> tuple[list[Transition], list[Incident]]:
    """Takes the steps; returns those that were taken and the incidents that are open now."""
    results = list(zip(steps, ledger.apply(steps), strict=True))
    touched = {step.before.incident_id for step, _ in results if step.before}
    still_open = [i for i in incidents if i.incident_id not in touched]
    opened = [moved for _, moved in results if moved is not None and moved.is_open]
    return [step for step, moved in results if moved is not None], still_open + opened
