"""Which groups are below their min-parallelism, what is done for each, and what a tick says."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import Incident, Orphan, ScaleUp, ScaleUpState, State
from dagster_amoro.core.pauses import EVERYTHING, Pause, Pauses, Scope, Target
from dagster_amoro.core.policy import RestartPolicy, RunState
from dagster_amoro.core.scale_up import ScaleDecision, ScalePlan, plan_scaling
from dagster_amoro.core.tick_inputs import RegistrySnapshot, TickInputs
from tests.helpers.inputs import GRACE, INPUTS, NOW, dynamic, inputs_of

AROUND: Final = replace(
    INPUTS,
    policy=RestartPolicy(enabled=True, max_retries=3, grace_period=GRACE),
    runs={"run": RunState.ACTIVE},
)
ROUND: Final = ScaleUp("g", 8, rounds=1, state=ScaleUpState.STARTED, next_at=NOW + GRACE)
CLAIMED: Final = ROUND._replace(
    state=ScaleUpState.REQUESTED, claimed_by="run", claimed_until=NOW + GRACE, fence=1
)


def group(min_parallelism: object = 8, name: str = "g", container: str | None = "c") -> Group:
    """A group with this min-parallelism."""
    return Group(
        name=name,
        container_name=container,
        properties=f'{{"min-parallelism": "{min_parallelism}"}}',
    )


def orphan(key: str, threads: int | None = 4, name: str | None = "g") -> Orphan:
    """A dead resource of a group."""
    return Orphan(key, name, "c", threads, 0, "{}")


def incident(key: str, state: State = State.WAITING, error: str | None = None) -> Incident:
    """That of an orphan which is due."""
    return Incident(
        incident_id=1,
        resource_id=key,
        group_name="g",
        container_name="c",
        thread_count=4,
        detected_at=NOW - GRACE,
        state=state,
        last_error=error,
    )


def survey(*groups: Group, orphans: tuple[Orphan, ...] = (), **live: int) -> RegistrySnapshot:
    """These groups with so many live threads each, and these orphans."""
    return RegistrySnapshot(
        resources=9,
        groups=tuple(each.name for each in groups),
        orphans={each.resource_id: each for each in orphans},
        sized={each.name: each for each in groups},
        live=live,
    )


def sized(
    seen: RegistrySnapshot,
    *incidents: Incident,
    scale_ups: Mapping[str, ScaleUp] | None = None,
    around: TickInputs = AROUND,
) -> list[ScalePlan]:
    """What the tick makes of it, three rounds being the most."""
    return plan_scaling(inputs_of(seen, incidents, around, scale_ups=scale_ups or {}))


def paused(target: Target) -> TickInputs:
    """Somebody paused this."""
    pause = Pause(target=target, author="ann", reason="", paused_at=NOW, until=None)
    return replace(AROUND, pauses=Pauses([pause], NOW))


def test_a_group_below_its_floor_gets_what_it_misses() -> None:
    """The min-parallelism less the live threads, and less those of orphans that can come back."""
    seen = survey(group(), orphans=(orphan("a", 2), orphan("b", 1)), g=3)
    (found,) = sized(seen, incident("a"))
    assert (found.min_parallelism, found.live, found.coming, found.missing) == (8, 3, 3, 2)
    assert (found.decision, found.acts, found.scale_up) == (ScaleDecision.START, True, None)
    assert found.message(3) == "g has 3 of 8 threads, a new resource of 2 is started"


def test_an_orphan_whose_restart_failed_is_no_capacity_and_is_named() -> None:
    """The new resource takes its place, so its incident is told; what is removed or kept is not."""
    seen = survey(group(), orphans=tuple(orphan(key, 2) for key in "abcd"))
    failed = incident("a", error="no such image")
    kept = incident("c", State.KEPT, error="no such image")
    (found,) = sized(seen, failed, incident("b"), kept, incident("d", State.GIVING_UP, "no"))
    assert (found.coming, found.missing, found.failed) == (2, 6, (failed,))


def test_a_group_at_its_floor_rests_in_silence() -> None:
    """With live threads, or with those that come back."""
    for seen in (survey(group(), g=8), survey(group(), orphans=(orphan("a", 8),))):
        (found,) = sized(seen)
        assert (found.decision, found.missing, found.acts) == (ScaleDecision.REST, 0, False)
        assert found.message(3) is None


@pytest.mark.parametrize("min_parallelism", [0, -3, "many"])
def test_a_group_that_asks_for_nothing_is_not_looked_at(min_parallelism: object) -> None:
    """Nor one whose min-parallelism makes no sense."""
    assert sized(survey(group(min_parallelism))) == []


@pytest.mark.parametrize("seen", [survey(), survey(group(0), g=3), survey(group(0))])
def test_rounds_of_a_group_without_a_floor_are_settled(seen: RegistrySnapshot) -> None:
    """Its min-parallelism was removed, or the group itself; nothing is started for it any more."""
    (found,) = sized(seen, scale_ups={"g": ROUND})
    assert (found.group.name, found.decision, found.obstacle) == (
        "g",
        ScaleDecision.SETTLE,
        None,
    )
    assert found.acts
    assert found.message(3) is None


def test_rounds_of_a_group_that_has_its_threads_are_settled() -> None:
    """In silence."""
    (found,) = sized(survey(group(), g=8), scale_ups={"g": ROUND})
    assert (found.decision, found.message(3)) == (ScaleDecision.SETTLE, None)


@pytest.mark.parametrize("target", [EVERYTHING, Target(scope=Scope.GROUP, name="g")])
def test_a_paused_group_is_left_alone(target: Target) -> None:
    """Its rounds are neither continued nor forgotten."""
    for seen in (survey(group()), survey(group(), g=8), survey()):
        assert sized(seen, scale_ups={"g": ROUND}, around=paused(target)) == []


@pytest.mark.parametrize(
    "target", [Target(scope=Scope.GROUP, name="h"), Target(scope=Scope.RESOURCE, name="g")]
)
def test_a_pause_of_something_else_does_not_matter(target: Target) -> None:
    """A resource may be called like a group."""
    assert len(sized(survey(group()), around=paused(target))) == 1


def test_a_group_that_ams_sizes_is_left_alone() -> None:
    """Two that start resources for it would not know of each other."""
    found = sized(survey(dynamic("g"), group(name="h")), scale_ups={"g": ROUND})
    assert [each.group.name for each in found] == ["h"]


def test_an_obstacle_is_told_instead_of_a_start() -> None:
    """The container is asked by the group's; where nothing is to be started, it is not."""
    around = replace(AROUND, obstacle=lambda name: f"container {name!r} opts out")
    (found,) = sized(survey(group(), g=1), around=around)
    assert (found.decision, found.acts) == (ScaleDecision.REST, False)
    assert found.message(3) == (
        "g has 1 of 8 threads and cannot be scaled up (container 'c' opts out)"
    )
    (resting,) = sized(survey(group(), g=8), around=around)
    assert (resting.obstacle, resting.message(3)) == (None, None)
    (over,) = sized(survey(group()), scale_ups={"g": ROUND}, around=around)
    assert (over.decision, over.obstacle) == (ScaleDecision.WAIT, None)


def test_a_round_that_is_under_way_is_waited_for() -> None:
    """While its run holds it; under another lease it does not."""
    (found,) = sized(survey(group()), scale_ups={"g": CLAIMED})
    assert (found.decision, found.acts) == (ScaleDecision.WAIT, False)
    assert found.message(3) == "g has 0 of 8 threads, round 1 of 3 was begun"
    lapsed = CLAIMED._replace(next_at=NOW)
    for fence, decision in (
        (None, ScaleDecision.WAIT),
        (1, ScaleDecision.WAIT),
        (2, ScaleDecision.START),
    ):
        around = replace(AROUND, fence=fence)
        (found,) = sized(survey(group()), scale_ups={"g": lapsed}, around=around)
        assert found.decision is decision


def test_rounds_that_did_not_help_are_told_for_as_long_as_they_are_over() -> None:
    """The first time it is written down as well."""
    over = ROUND._replace(rounds=3, next_at=NOW)
    (found,) = sized(survey(group(), g=1), scale_ups={"g": over})
    assert (found.decision, found.acts) == (ScaleDecision.STOP, True)
    stopped = over._replace(state=ScaleUpState.STOPPED)
    (again,) = sized(survey(group(), g=1), scale_ups={"g": stopped})
    assert (again.decision, again.acts) == (ScaleDecision.STOPPED, False)
    assert (
        found.message(3)
        == again.message(3)
        == ("g has 1 of 8 threads, and 3 rounds did not help: a person is needed")
    )


def test_each_group_has_its_own_orphans_threads_and_rounds() -> None:
    """And they are told by their names."""
    seen = survey(
        group(4, "b"),
        group(8, "a"),
        orphans=(orphan("x", 2, "a"), orphan("y", 9, None), orphan("z", 9, "no group")),
        b=1,
    )
    a, b = sized(seen, scale_ups={"b": ROUND._replace(group_name="b", min_parallelism=4, rounds=2)})
    assert (a.group.name, a.missing, a.decision) == ("a", 6, ScaleDecision.START)
    assert (b.group.name, b.missing, b.decision) == ("b", 3, ScaleDecision.WAIT)


@given(
    min_parallelism=st.integers(1, 20),
    live=st.integers(0, 20),
    dead=st.lists(
        st.tuples(
            st.none() | st.integers(0, 9),
            st.none() | st.sampled_from([state for state in State if state.is_open]),
            st.booleans(),
        ),
        max_size=5,
    ),
)
def test_live_threads_those_that_come_and_those_that_are_started_reach_the_floor(
    min_parallelism: int, live: int, dead: list[tuple[int | None, State | None, bool]]
) -> None:
    """Exactly where a resource is started, and nothing is started otherwise."""
    orphans = tuple(orphan(f"r{n}", threads) for n, (threads, _, _) in enumerate(dead))
    incidents = [
        incident(f"r{n}", state, "no" if failed else None)
        for n, (_, state, failed) in enumerate(dead)
        if state
    ]
    expected = sum(
        threads or 0
        for threads, state, failed in dead
        if state is None
        or (state in {State.WAITING, State.DISPATCHED, State.CLAIMED} and not failed)
    )
    (found,) = sized(survey(group(min_parallelism), orphans=orphans, g=live), *incidents)
    assert found.coming == expected
    if live + expected < min_parallelism:
        assert found.decision is ScaleDecision.START
        assert live + expected + found.missing == min_parallelism
    else:
        assert (found.decision, found.missing) == (ScaleDecision.REST, 0)
