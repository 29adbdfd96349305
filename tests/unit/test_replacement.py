"""Whether others came to a group in the place of an orphan."""

from datetime import UTC, datetime
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.policy import StandIn
from dagster_amoro.core.replacement import Newcomer, hopeless, stand_in

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


def newcomer(
    threads: int = 4, *, registered: bool = True, at: str = AFTER, name: str = "new"
) -> Newcomer:
    """One that came after the detection and registered, unless told otherwise."""
    return Newcomer(name, "g", threads, at, registered)


def came(
    *newcomers: Newcomer,
    value: Incident | None = None,
    lost: frozenset[str] = frozenset(),
    live: int = 8,
    floor: int = 8,
) -> StandIn:
    """What came in the place of an orphan of four threads."""
    return stand_in(value or orphan(), newcomers, hopeless=lost, live=live, floor=floor)


def test_as_many_threads_that_reach_the_floor_took_its_place() -> None:
    """One resource or several, with as many threads as were lost at least."""
    assert came(newcomer()) is StandIn.LIVE
    assert came(newcomer(3, name="n1"), newcomer(1, name="n2")) is StandIn.LIVE
    assert came(newcomer(9)) is StandIn.LIVE
    assert came(newcomer(3)) is StandIn.NONE


def test_a_group_that_still_misses_threads_needs_its_orphan_back() -> None:
    """A thread below the floor nobody took its place; exactly at the floor somebody did."""
    assert came(newcomer(), live=7) is StandIn.NONE
    assert came(newcomer(), live=8) is StandIn.LIVE
    assert came(newcomer(), live=0, floor=0) is StandIn.LIVE


def test_what_has_not_registered_yet_is_waited_for() -> None:
    """Also where only a part of it has."""
    assert came(newcomer(registered=False), live=0) is StandIn.COMING
    half, other = newcomer(2, name="n1"), newcomer(2, name="n2", registered=False)
    assert came(half, other, live=0) is StandIn.COMING
    assert came(newcomer(3, registered=False), live=0) is StandIn.NONE


@pytest.mark.parametrize("at", [BEFORE, THEN])
def test_what_was_there_before_took_nobodys_place(at: str) -> None:
    """It was at work, or dead, when the orphan was found."""
    assert came(newcomer(at=at)) is StandIn.NONE


def test_where_nobody_adds_resources_nobody_took_its_place() -> None:
    """The ledger then knows no newest resource."""
    assert came(newcomer(), value=orphan(newest=None)) is StandIn.NONE


def test_an_orphan_takes_not_its_own_place() -> None:
    """A restart may write a new start time."""
    assert came(newcomer(name="dead")) is StandIn.NONE


def test_what_will_never_register_takes_nobodys_place() -> None:
    """Nor does one that is being removed."""
    lost = frozenset({"new"})
    assert came(newcomer(registered=False), lost=lost) is StandIn.NONE


@given(
    threads=st.integers(0, 6),
    came_in=st.lists(
        st.builds(
            Newcomer,
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
    floor=st.integers(0, 9),
)
def test_a_second_reckoning_agrees(
    threads: int, came_in: list[Newcomer], lost: frozenset[str], live: int, floor: int
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
    expected = StandIn.NONE
    if on_its_way > 0 and at_work + on_its_way >= threads:
        expected = StandIn.COMING
    if at_work >= max(threads, 1) and live >= floor:
        expected = StandIn.LIVE
    assert came(*came_in, value=orphan(threads), lost=lost, live=live, floor=floor) is expected


def test_no_optimizer_comes_of_what_is_left_alone_or_removed() -> None:
    """Of all others one may come."""
    everyone = [orphan()._replace(resource_id=str(state), state=state) for state in State]
    assert hopeless(everyone) == {"unsupported", "kept", "giving-up", "superseding"}
