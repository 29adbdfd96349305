"""What operators told the keeper to leave alone: for how long, how far, and which word is told."""

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.pauses import EVERYTHING, Pause, Pauses, Scope, Target

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
ETL: Final = Target(scope=Scope.GROUP, name="etl")
ETL_1: Final = Target(scope=Scope.RESOURCE, name="etl-1")


def pause(target: Target, until: datetime | None = None, reason: str = "") -> Pause:
    """One that ann made an hour ago."""
    return Pause(
        target=target,
        author="ann",
        reason=reason,
        paused_at=NOW - timedelta(hours=1),
        until=until,
    )


def test_a_pause_ends_on_the_microsecond() -> None:
    """It holds until its end and no longer at that moment; without one it holds for ever."""
    ending = pause(ETL, NOW)
    assert ending.holds(NOW - MICROSECOND)
    assert not ending.holds(NOW)
    assert pause(ETL).holds(NOW + timedelta(days=100_000))


@pytest.mark.parametrize(
    ("target", "until", "reason", "message"),
    [
        (EVERYTHING, None, "", "everything is paused by ann"),
        (ETL, None, "moving hosts", "group etl is paused by ann: moving hosts"),
        (
            ETL_1,
            NOW,
            "moving hosts",
            "resource etl-1 is paused by ann until 2026-03-01 12:00:00 UTC: moving hosts",
        ),
    ],
)
def test_a_pause_says_who_what_until_when_and_why(
    target: Target, until: datetime | None, reason: str, message: str
) -> None:
    """As far as it was given."""
    assert str(pause(target, until, reason)) == message


@given(
    targets=st.sets(st.sampled_from([EVERYTHING, ETL, ETL_1])),
    others=st.sets(
        st.sampled_from(
            [
                Target(scope=Scope.GROUP, name="etl-1"),
                Target(scope=Scope.GROUP, name=""),
                Target(scope=Scope.RESOURCE, name="etl"),
                Target(scope=Scope.RESOURCE, name="etl-2"),
            ]
        )
    ),
    over=st.sets(st.sampled_from([EVERYTHING, ETL, ETL_1])),
)
def test_the_widest_pause_that_holds_is_told(
    targets: set[Target], others: set[Target], over: set[Target]
) -> None:
    """Everything, then the group, then the resource; others of the same name, or over, are not."""
    made = [pause(t, NOW if t in over else NOW + MICROSECOND) for t in sorted(targets, key=str)]
    pauses = Pauses([*made, *map(pause, others)], NOW)
    holding = targets - over
    chosen = next((t for t in (EVERYTHING, ETL, ETL_1) if t in holding), None)
    found = pauses.of("etl-1", "etl")
    assert (found.target if found else None) == chosen
    group = pauses.of_group("etl")
    assert (group.target if group else None) == (None if chosen == ETL_1 else chosen)


def test_without_pauses_nothing_is_paused() -> None:
    """Nor where nobody says what time it is."""
    for pauses in (Pauses(), Pauses([], NOW), Pauses([pause(EVERYTHING)])):
        assert pauses.of("etl-1", "etl") is None
        assert pauses.of_group("etl") is None
