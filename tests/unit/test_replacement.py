"""Whether others came to a group in the place of an orphan."""

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.policy import Replacement
from dagster_amoro.core.replacement import Newcomers, NewResource, Replacements, hopeless
from tests.helpers.inputs import INPUTS, group

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
BEFORE, THEN, AFTER = "2026-03-01 11:00:00", "2026-03-01 11:30:00", "2026-03-01 11:45:00"


def orphan(threads: int = 4, newest: str | None = THEN) -> Incident:
    """The incident of `dead`, whose group's newest resource was started then."""
    return Incident(
        incident_id=1,
        resource_id="dead",
        group_name="g",
        container_name="c",
        thread_count=threads,
        detected_at=NOW,
        newest_start=newest,
    )


def new_resource(
    threads: int = 4, *, registered: bool = True, at: str = AFTER, name: str = "new"
) -> NewResource:
    """One that came after the detection and registered, unless told otherwise."""
    return NewResource(name, "g", threads, at, registered)


def came(
    *new_resources: NewResource,
    value: Incident | None = None,
    lost: frozenset[str] = frozenset(),
    live: int = 8,
    min_parallelism: int = 8,
) -> Replacement:
    """What came in the place of an orphan of four threads."""
    orphaned = value or orphan()
    gone = [orphaned._replace(resource_id=name, state=State.KEPT) for name in lost]
    found = Replacements(
        {"g": group(min_parallelism=str(min_parallelism))},
        [orphaned, *gone],
        scaling_up=frozenset(),
        policy=INPUTS.policy,
        attached=True,
        now=NOW,
        newcomers=lambda _: Newcomers(new_resources, {"g": live}),
    )
    return found.of(orphaned)


def test_as_many_threads_that_reach_the_floor_took_its_place() -> None:
    """One resource or several, with as many threads as were lost at least."""
    assert came(new_resource()) is Replacement.LIVE
    assert came(new_resource(3, name="n1"), new_resource(1, name="n2")) is Replacement.LIVE
    assert came(new_resource(9)) is Replacement.LIVE
    assert came(new_resource(3)) is Replacement.NONE


def test_a_group_that_still_misses_threads_needs_its_orphan_back() -> None:
    """A thread below the min-parallelism nobody took its place; exactly at it somebody did."""
    assert came(new_resource(), live=7) is Replacement.NONE
    assert came(new_resource(), live=8) is Replacement.LIVE
    assert came(new_resource(), live=0, min_parallelism=0) is Replacement.LIVE


def test_what_has_not_registered_yet_is_waited_for() -> None:
    """Also where only a part of it has."""
    assert came(new_resource(registered=False), live=0) is Replacement.COMING
    half, other = new_resource(2, name="n1"), new_resource(2, name="n2", registered=False)
    assert came(half, other, live=0) is Replacement.COMING
    assert came(new_resource(3, registered=False), live=0) is Replacement.NONE


@pytest.mark.parametrize("at", [BEFORE, THEN])
def test_what_was_there_before_took_nobodys_place(at: str) -> None:
    """It was at work, or dead, when the orphan was found."""
    assert came(new_resource(at=at)) is Replacement.NONE


def test_where_nobody_adds_resources_nobody_took_its_place() -> None:
    """The ledger then knows no newest resource."""
    assert came(new_resource(), value=orphan(newest=None)) is Replacement.NONE


def test_an_orphan_takes_not_its_own_place() -> None:
    """A restart may write a new start time."""
    assert came(new_resource(name="dead")) is Replacement.NONE


def test_what_will_never_register_takes_nobodys_place() -> None:
    """Nor does one that is being removed."""
    lost = frozenset({"new"})
    assert came(new_resource(registered=False), lost=lost) is Replacement.NONE


def several(
    *dead: Incident, live: int, came: tuple[NewResource, ...] = (), min_parallelism: int = 8
) -> list[Replacement]:
    """What came in the place of each of these, in one group."""
    found = Replacements(
        {"g": group(min_parallelism=str(min_parallelism))},
        dead,
        scaling_up=frozenset(),
        policy=INPUTS.policy,
        attached=True,
        now=NOW,
        newcomers=lambda _: Newcomers(came, {"g": live}),
    )
    return [found.of(each) for each in dead]


def dead(number: int, threads: int = 2, **changes: Any) -> Incident:  # noqa: ANN401
    """One of several that died."""
    return orphan(threads)._replace(incident_id=number, resource_id=f"r{number}", **changes)


def test_of_those_that_died_around_a_refill_as_many_come_back_as_are_missing() -> None:
    """AMS refilled for one of two; the other one, it does not matter which, is restarted."""
    came_for_one = (new_resource(2),)
    assert several(dead(1), dead(2), live=6, came=came_for_one).count(Replacement.NONE) == 1
    assert several(dead(1), dead(2), live=8, came=came_for_one) == [Replacement.LIVE] * 2
    assert several(dead(1), dead(2), live=4, came=came_for_one) == [Replacement.NONE] * 2
    assert several(dead(1), dead(2), live=4) == [Replacement.NONE] * 2


def test_the_last_that_died_comes_back_first() -> None:
    """For the others AMS had more time to refill already."""
    later = dead(2, detected_at=NOW + timedelta(minutes=1))
    found = several(dead(1), later, live=6, came=(new_resource(2),))
    assert found == [Replacement.COMING, Replacement.NONE]


def test_those_in_whose_place_nobody_came_are_restarted_before_others() -> None:
    """Nobody came for a larger one, and with it the group has its threads."""
    found = several(dead(1), dead(2, 4), live=4, came=(new_resource(2),))
    assert found == [Replacement.COMING, Replacement.NONE]


def test_of_several_those_come_back_that_fit() -> None:
    """Two threads are missing, of which one of four would be two too many."""
    found = several(dead(1, 4), dead(2, 2), live=6, came=(new_resource(4),))
    assert found == [Replacement.COMING, Replacement.NONE]
    found = several(dead(1, 4), dead(2, 3), live=6, came=(new_resource(4),))
    assert found == [Replacement.COMING, Replacement.NONE]


def test_one_that_cannot_be_expected_is_not_waited_for() -> None:
    """Its attempts are used up: the other one comes back."""
    lost = dead(2, last_error="no room", detected_at=NOW + timedelta(minutes=1))
    assert several(dead(1), lost, live=6, came=(new_resource(2),))[0] is Replacement.NONE


def test_one_that_was_just_restarted_counts() -> None:
    """It may register at any moment; if it does not until its pause is over, others may."""
    begun = dead(1, attempts=1, attempted_at=NOW)
    later = dead(2, detected_at=NOW + timedelta(minutes=1))
    found = several(begun, later, live=6, came=(new_resource(2),))
    assert found == [Replacement.NONE, Replacement.COMING]
    begun = begun._replace(attempted_at=NOW - INPUTS.policy.grace_period)
    found = several(begun, later, live=6, came=(new_resource(2),))
    assert found == [Replacement.COMING, Replacement.NONE]


def test_of_two_that_came_at_the_same_time_one_waits_for_the_other() -> None:
    """Neither registered: there is no circle, and one of them is restarted."""
    came_since = tuple(new_resource(2, registered=False, name=f"r{n}") for n in (1, 2))
    found = several(dead(1), dead(2), live=6, came=came_since)
    assert found == [Replacement.COMING, Replacement.NONE]


@given(
    threads=st.integers(0, 6),
    came_in=st.lists(
        st.builds(
            NewResource,
            st.sampled_from(["dead", "n1", "n2", "n3"]),
            st.just("g"),
            st.integers(0, 6),
            st.sampled_from([BEFORE, THEN, AFTER]),
            st.booleans(),
        ),
        max_size=5,
    ),
    lost=st.frozensets(st.sampled_from(["n1", "n2"])),
    live=st.integers(0, 9),
    min_parallelism=st.integers(0, 9),
)
def test_a_second_reckoning_agrees(
    threads: int, came_in: list[NewResource], lost: frozenset[str], live: int, min_parallelism: int
) -> None:
    """Threads at work come first, then those on their way; none counts as something."""
    at_work = on_its_way = 0
    for each in came_in:
        if each.resource_id == "dead" or each.resource_id in lost or each.start_time != AFTER:
            continue
        if each.registered:
            at_work += each.thread_count
        else:
            on_its_way += each.thread_count
    expected = Replacement.NONE
    if on_its_way > 0 and at_work + on_its_way >= threads:
        expected = Replacement.COMING
    if at_work >= max(threads, 1) and live >= min_parallelism:
        expected = Replacement.LIVE
    assert (
        came(*came_in, value=orphan(threads), lost=lost, live=live, min_parallelism=min_parallelism)
        is expected
    )


def test_no_optimizer_comes_of_what_is_left_alone_or_removed() -> None:
    """Of all others one may come."""
    everyone = [orphan()._replace(resource_id=str(state), state=state) for state in State]
    assert hopeless(everyone) == {*("unsupported", "kept", "giving-up", "superseding", "releasing")}
