"""A plan agrees with itself: what it foresees is what the tick finds once it is written down."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.groups import Group
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import Incident, OperatorRequest, Orphan, ScaleUp, ScaleUpState, State
from dagster_amoro.core.pauses import EVERYTHING, Pause, Pauses, Scope, Target
from dagster_amoro.core.policy import OnExhausted, RestartPolicy, RunState
from dagster_amoro.core.replacement import Newcomers, NewResource
from dagster_amoro.core.tick_inputs import Changes, RegistrySnapshot, TickInputs
from dagster_amoro.core.tick_plan import TickPlan, plan_tick
from dagster_amoro.core.transitions import replacement
from tests.helpers.inputs import GRACE, INPUTS, NOW, dynamic, group

pytestmark = pytest.mark.long

IDS = [f"r{number}" for number in range(6)]
GROUPS = ["a", "b", "c"]
OPEN = [state for state in State if state.is_open]
moments = st.sampled_from([NOW - 2 * GRACE, NOW - GRACE, NOW - GRACE / 2, NOW])


@st.composite
def orphans(draw: st.DrawFn) -> Mapping[str, Orphan]:
    """Resources that nobody stands for, some of which cannot be restarted."""
    chosen = draw(st.sets(st.sampled_from(IDS)))
    return {
        key: Orphan(
            key,
            draw(st.sampled_from(GROUPS)),
            draw(st.sampled_from(["c", "c", "opts out"])),
            draw(st.sampled_from([2, 2, None])),
            0,
            draw(st.sampled_from(["{}", "{}", "{"])),
        )
        for key in sorted(chosen)
    }


@st.composite
def incidents(draw: st.DrawFn) -> list[Incident]:
    """Open ones in any state, claimed or not, of this mode or of a dry run."""
    names = draw(st.lists(st.sampled_from(IDS), unique=True))
    return [
        Incident(
            incident_id=number,
            resource_id=key,
            group_name=draw(st.sampled_from(GROUPS)),
            container_name="c",
            thread_count=2,
            detected_at=draw(moments),
            state=draw(st.sampled_from(OPEN)),
            attempts=draw(st.integers(0, 4)),
            claimed_by=draw(st.sampled_from([None, "run", "ended"])),
            claimed_until=NOW + GRACE,
            last_error=draw(st.sampled_from([None, None, "no room"])),
            operator_request=draw(st.sampled_from([None, None, *OperatorRequest])),
            newest_start=draw(st.sampled_from([None, "1", "2"])),
            dry_run=draw(st.booleans()),
        )
        for number, key in enumerate(names, start=3)
    ]


@st.composite
def scale_ups(draw: st.DrawFn) -> Mapping[str, ScaleUp]:
    """Rounds of some groups, in any state."""
    return {
        name: ScaleUp(
            name,
            draw(st.integers(1, 6)),
            rounds=draw(st.integers(0, 3)),
            state=draw(st.sampled_from(ScaleUpState)),
            claimed_by=draw(st.sampled_from([None, "run", "ended"])),
            claimed_until=NOW + GRACE,
            next_at=draw(moments),
        )
        for name in draw(st.sets(st.sampled_from(GROUPS)))
    }


@st.composite
def all_inputs(draw: st.DrawFn) -> TickInputs:
    """All that a tick can read."""
    found, sized = draw(orphans()), draw(st.sets(st.sampled_from(GROUPS)))
    snapshot = RegistrySnapshot(
        resources=9,
        groups=tuple(GROUPS),
        orphans=found,
        sized={name: draw(groups(name)) for name in sorted(sized)},
        live={name: draw(st.integers(0, 4)) for name in GROUPS},
    )
    pauses = [
        Pause(target=target, author="ann", reason="", paused_at=NOW, until=None)
        for target in (
            EVERYTHING,
            Target(scope=Scope.GROUP, name="a"),
            Target(scope=Scope.RESOURCE, name="r1"),
        )
        if draw(st.integers(0, 5)) == 0
    ]
    return replace(
        INPUTS,
        snapshot=snapshot,
        incidents=draw(incidents()),
        policy=RestartPolicy(
            enabled=draw(st.integers(0, 9)) > 0,
            max_retries=draw(st.integers(0, 3)),
            grace_period=draw(st.sampled_from([GRACE, timedelta(0)])),
            on_exhausted=draw(st.sampled_from(OnExhausted)),
        ),
        limits=Limits(
            max_restarts=draw(st.sampled_from([None, 1, 2])),
            max_orphaned=draw(st.sampled_from([1.0, 1.0, 0.3])),
        ),
        obstacle=lambda name: None if name == "c" else "it opts out",
        count=lambda: dict.fromkeys(GROUPS, 5),
        scale_ups=draw(scale_ups()),
        pauses=Pauses(pauses, NOW),
        runs={"run": RunState.ACTIVE, "ended": RunState.ENDED},
        last_served_group=draw(st.sampled_from([None, *GROUPS])),
        attached=draw(st.booleans()),
        dry_run=draw(st.booleans()),
        newcomers=newcomers(draw(st.booleans()), draw(st.integers(0, 8))),
        changes=Changes(
            present=draw(st.sets(st.sampled_from(IDS))) - set(found),
            prior_attempts=draw(st.dictionaries(st.sampled_from(IDS), st.integers(0, 3))),
            newest_starts=dict.fromkeys(draw(st.sets(st.sampled_from(GROUPS))), "2"),
        ),
    )


def groups(name: str) -> st.SearchStrategy[Group]:
    """One that says something about its size."""
    floors = st.integers(0, 8).map(lambda threads: group(name, min_parallelism=str(threads)))
    return floors | floors | st.just(dynamic(name))


def newcomers(registered: bool, live: int) -> Any:  # noqa: ANN401, FBT001 - a question's answer
    """One new resource in each group that is asked for."""

    def ask(since: Mapping[str, str]) -> Newcomers:
        found = [NewResource(f"new {name}", name, 2, "3", registered) for name in since]
        return Newcomers(found, dict.fromkeys(since, live))

    return ask


def rest_of(plan: TickPlan) -> TickPlan:
    """What of a plan is left once its steps were taken."""
    return replace(plan, steps=())


@given(all_inputs())
def test_a_plan_is_the_same_once_its_steps_are_recorded(inputs: TickInputs) -> None:
    """The ledger gives the numbers that the plan foresaw; what follows is what it said."""
    plan = plan_tick(inputs)
    numbers = iter(range(max((i.incident_id for i in inputs.incidents), default=0) + 1, 99))
    results = [
        step.after if step.before else step.after._replace(incident_id=next(numbers))
        for step in plan.steps
    ]
    recorded = inputs.after_steps(plan.steps, results)
    assert plan_tick(recorded) == rest_of(plan)


@given(all_inputs())
def test_a_plan_is_the_same_once_its_rounds_are_recorded(inputs: TickInputs) -> None:
    """The orphans that a new resource is to replace have moved, and are left to it."""
    settled = replace(inputs, changes=None)
    plan = plan_tick(settled)
    starting = [each for each in plan.scaling if each.starts]
    moved = {
        each.incident_id: replacement(each, "", NOW).after
        for plan_of_group in starting
        for each in plan_of_group.failed
    }
    begun = frozenset(each.group.name for each in starting)
    recorded = settled.after_rounds(moved, begun)
    assert replace(plan_tick(recorded), scaling=plan.scaling) == plan


@given(all_inputs())
def test_a_second_look_at_the_same_registry_takes_no_step(inputs: TickInputs) -> None:
    """Every open incident has its place in the plan, and none is there twice."""
    plan = plan_tick(inputs)
    later = inputs.after_steps(plan.steps, [step.after for step in plan.steps])
    again = replace(later, changes=inputs.changes, dry_run=True)
    assert [step for step in plan_tick(again).steps if step.before is None] == []
    placed = [*plan.due, *(incident for incident, _ in plan.waiting)]
    names = [incident.resource_id for incident in placed]
    assert len(names) == len(set(names))
    closed = {step.after.resource_id for step in plan.steps if not step.after.is_open}
    known = {incident.resource_id for incident in inputs.incidents} | set(inputs.snapshot.orphans)
    assert set(names) == known - closed
