"""Whether others came to a group in the place of an orphan."""

from datetime import UTC, datetime
from typing import Final

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
    assert hopeless(everyone) == {"unsupported", "kept", "giving-up", "superseding"}
