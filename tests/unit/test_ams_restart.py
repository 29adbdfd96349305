"""When does a look at AMS's registry count, and when may AMS have forgotten its optimizers?"""

from datetime import UTC, datetime, timedelta

import pytest

from dagster_amoro.core.ams_restart import (
    SAMPLE_SIZE,
    AmsRestartDetector,
    look_again,
    settling_time,
)

NOW = datetime(2026, 10, 25, 0, 59, 50, tzinfo=UTC)
SETTLING = timedelta(seconds=75)
THREE = ("a", "b", "c")


def look(
    watch: AmsRestartDetector, still_there: str = "", registered: str = "", at: float = 0
) -> tuple[AmsRestartDetector, float | None]:
    """A look `at` seconds after NOW; returns the end of the doubt in the same measure."""
    following, until = look_again(
        watch,
        still_there=set(still_there),
        registered=list(registered),
        settling=SETTLING,
        now=NOW + timedelta(seconds=at),
    )
    return following, None if until is None else (until - NOW).total_seconds()


def test_the_first_look_counts() -> None:
    """Nobody was there to be forgotten; the grace period protects who is about to register."""
    assert look(AmsRestartDetector(), registered="xy") == (
        AmsRestartDetector(sample_tokens=("x", "y")),
        None,
    )


@pytest.mark.parametrize("still_there", ["a", "c", "abc"])
def test_one_witness_is_enough(still_there: str) -> None:
    """AMS forgets all of them or none, so that one proves that the others died."""
    watch = AmsRestartDetector(sample_tokens=THREE)
    assert look(watch, still_there, "cde") == (
        AmsRestartDetector(sample_tokens=("c", "d", "e")),
        None,
    )


def test_one_witness_is_enough_after_ams_was_away() -> None:
    """It was away for less than its timeout, and forgot nobody."""
    watch = AmsRestartDetector(sample_tokens=THREE).seen_away()
    assert look(watch, "b", "bx") == (AmsRestartDetector(sample_tokens=("b", "x")), None)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_few_may_die_between_two_looks(number: int) -> None:
    """The last one or two of a small fleet are as mortal as all others."""
    watch = AmsRestartDetector(sample_tokens=THREE[:number])
    assert look(watch) == (AmsRestartDetector(), None)


def test_three_that_are_gone_at_once_raise_a_doubt() -> None:
    """It lasts for the settling time, to the second, and ends by itself."""
    first, until = look(AmsRestartDetector(sample_tokens=THREE), registered="x", at=10)
    assert (first.settling_since, until) == (NOW + timedelta(seconds=10), 85)
    second, until = look(first, registered="xyz", at=84.999)
    assert (second, until) == (first, 85)
    assert look(second, registered="xyz", at=85) == (
        AmsRestartDetector(sample_tokens=("x", "y", "z")),
        None,
    )


def test_a_fleet_that_is_really_dead_is_believed_after_the_settling_time() -> None:
    """And is not doubted again at every look from then on."""
    doubted, _ = look(AmsRestartDetector(sample_tokens=THREE))
    believed, until = look(doubted, at=75)
    assert (believed, until) == (AmsRestartDetector(), None)
    assert look(believed, at=80) == (AmsRestartDetector(), None)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_an_ams_that_was_seen_away_is_doubted_however_few_it_had(number: int) -> None:
    """The settling time begins with the first look at which it answers, not when it went."""
    away = AmsRestartDetector(sample_tokens=THREE[:number]).seen_away().seen_away()
    first, until = look(away, at=600)
    assert until == 675
    assert look(first, registered="x", at=675)[1] is None


def test_an_ams_that_goes_again_while_optimizers_register_is_waited_for_again() -> None:
    """The settling time begins anew."""
    settling, _ = look(AmsRestartDetector(sample_tokens=THREE))
    again, until = look(settling.seen_away(), at=60)
    assert until == 135
    assert again.settling_since == NOW + timedelta(seconds=60)


def test_one_that_is_back_is_not_all_that_are_back() -> None:
    """The settling time is waited out, whoever comes first."""
    settling, _ = look(AmsRestartDetector(sample_tokens=THREE))
    assert look(settling, "a", "a", at=74) == (settling, 75)
    assert look(settling, "a", "a", at=75) == (AmsRestartDetector(sample_tokens=("a",)), None)


def test_no_more_tokens_are_remembered_than_are_needed() -> None:
    """They are kept in the sensor's cursor."""
    tokens = [f"t{number}" for number in range(1000)]
    following, _ = look_again(
        AmsRestartDetector(), still_there=set(), registered=tokens, settling=SETTLING, now=NOW
    )
    assert following.sample_tokens == tuple(tokens[:SAMPLE_SIZE])


def test_the_settling_time_covers_a_heartbeat_and_the_retries() -> None:
    """A heartbeat may be as long as the timeout; an optimizer's retries are 5 s apart."""
    assert settling_time(timedelta(minutes=1)) >= timedelta(minutes=1, seconds=10)
