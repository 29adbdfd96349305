"""What the checks find, and what they tell whoever gets the alert."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.looks import Look
from dagster_amoro.core.model import Incident, ScaleUp, ScaleUpState, State
from dagster_amoro.core.pauses import EVERYTHING, Pause, Pauses
from dagster_amoro.core.policy import Backoff, RestartPolicy
from dagster_amoro.healing.losses import Ended
from dagster_amoro_audit.findings import (
    BlockedRestarts,
    below_min_parallelism,
    doubled,
    flapping,
    freshness,
    given_up,
    overdue,
    restarts,
    unblocked,
)

NOW = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
POLICY = RestartPolicy(enabled=True, max_retries=3, grace_period=timedelta(minutes=5))
MINUTE = timedelta(minutes=1)
NOT_PAUSED = Pauses()


def ended(number: int, state: State = State.EXHAUSTED, attempts: int = 3) -> Ended:
    """An incident that is over, since as many seconds after 1970 as its number says."""
    return Ended(
        closed_at=datetime.fromtimestamp(number, UTC),
        resource_id=f"r{number}",
        group_name="g",
        state=state,
        attempts=attempts,
    )


def opened(number: int, age: timedelta) -> Incident:
    """An incident that is open for so long."""
    return Incident(number, f"r{number}", "g", "c", 1, NOW - age)


def test_what_was_given_up_is_named_with_why_it_died() -> None:
    """As long as nobody has seen to it; a person is needed for what is kept as well."""
    death = "its last worker was killed by SIGKILL 2 s after its start"
    finding = given_up([ended(1), replace(ended(3), death=death), ended(2, State.KEPT)])
    assert not finding.passed
    assert finding.severity is dg.AssetCheckSeverity.ERROR
    assert finding.description == (
        f"2 resources given up and removed: r1 (group g), r3 (group g; {death}); 1 resource out of "
        "attempts and kept: r2 (group g). Find out why, then restore each, or acknowledge it"
    )
    assert finding.metadata == {"given up": 2, "kept": 1}
    assert finding.answer == given_up([ended(2, State.KEPT), ended(3), ended(1)]).answer
    assert finding.answer != given_up([ended(1), ended(3)]).answer


def test_nothing_is_given_up() -> None:
    """Or somebody has seen to it."""
    finding = given_up([])
    assert finding.passed
    assert finding.description == "nothing was given up that nobody has seen to"
    assert finding.metadata == {"given up": 0, "kept": 0}


def test_many_names_are_counted() -> None:
    """An alert is not for a thousand names."""
    message = given_up([ended(n) for n in range(1, 1001)]).description
    assert message.startswith("1,000 resources given up and removed: r1 (group g), r2")
    assert " and 990 more. " in message
    assert len(message) < 500


@pytest.mark.parametrize(("seconds", "passed"), [(1200, True), (1200.001, False)])
def test_an_orphan_is_overdue_after_all_its_attempts(*, seconds: float, passed: bool) -> None:
    """Grace period x (max-retries + 1): 20 minutes here."""
    finding = overdue([opened(1, timedelta(seconds=seconds))], POLICY, NOW, NOT_PAUSED)
    assert finding.passed is passed
    assert ("r1 (since 2026-03-29 00:39:59 UTC, waiting)" in finding.description) is not passed


def test_the_longest_overdue_is_named_first() -> None:
    """With the reason, where it cannot be restarted."""
    stuck = opened(2, timedelta(days=2))._replace(state=State.UNSUPPORTED, note="it opts out")
    message = overdue([opened(1, timedelta(hours=1)), stuck], POLICY, NOW, NOT_PAUSED).description
    assert message.startswith("2 orphans open for longer than 20 min: r2 (since ")
    assert "it opts out), r1 (" in message


def test_nothing_is_overdue_where_nothing_is_restarted() -> None:
    """Auto-restart is off: orphans are recorded only."""
    off = RestartPolicy(enabled=False, max_retries=3, grace_period=timedelta(minutes=5))
    assert overdue([opened(1, timedelta(days=9))], off, NOW, NOT_PAUSED).passed


def test_what_is_left_alone_on_purpose_is_not_overdue() -> None:
    """Paused, kept without attempts left, or noted by a dry run; it is open all the same."""
    pause = Pause(target=EVERYTHING, author="ann", reason="", paused_at=NOW, until=None)
    old = opened(1, timedelta(days=1))
    assert not overdue([old], POLICY, NOW, NOT_PAUSED).passed
    assert overdue([old], POLICY, NOW, Pauses([pause], NOW)).passed
    left = [old._replace(state=State.KEPT), old._replace(dry_run=True)]
    finding = overdue(left, POLICY, NOW, NOT_PAUSED)
    assert finding.passed
    assert finding.metadata == {"overdue": 0, "open incidents": 2}


@given(
    retries=st.integers(0, 1000),
    grace=st.integers(0, 10**6),
    cap=st.integers(1, 10**7),
    jitter=st.floats(0, 1),
)
def test_growing_pauses_take_longer(retries: int, grace: int, cap: int, jitter: float) -> None:
    """One second more than all pauses together, each at its longest, is too long."""
    policy = RestartPolicy(
        enabled=True,
        max_retries=retries,
        grace_period=timedelta(seconds=grace),
        backoff=Backoff.EXPONENTIAL,
        backoff_cap=timedelta(seconds=cap),
        backoff_jitter=jitter,
    )
    longest, pause = 0.0, grace
    for _ in range(retries + 1):
        longest += min(pause, cap) * (1 + jitter)
        pause *= 2
    open_for = [opened(1, timedelta(seconds=longest + more)) for more in (-1, 1)]
    assert overdue(open_for[:1], policy, NOW, NOT_PAUSED).passed
    assert not overdue(open_for[1:], policy, NOW, NOT_PAUSED).passed


NOTHING = BlockedRestarts(limited={}, held=[], failed=[], stopped=[], pauses=[])


def test_where_nothing_is_refused_the_check_passes() -> None:
    """Also where something is paused, which is said."""
    assert unblocked(NOTHING).description == "no restart is refused"
    pause = Pause(target=EVERYTHING, author="ann", reason="upgrade", paused_at=NOW, until=None)
    finding = unblocked(replace(NOTHING, pauses=[pause]))
    assert finding.passed
    assert finding.description.endswith("is no refusal: everything is paused by ann: upgrade")
    assert finding.metadata == {"refused restarts": 0, "groups not scaled up": 0, "paused": 1}


def test_every_kind_of_refusal_fails_the_check() -> None:
    """Each by itself, and told with its reason; together, an orphan is counted once."""
    orphan = opened(1, MINUTE)._replace(last_error="exit code 3")
    stuck = ScaleUp("etl", 4, rounds=3, state=ScaleUpState.STOPPED, last_error="no image")
    limited = {"g": "7 of 9 orphaned, allowed 50%"}
    kinds = {
        "the limits hold 1 orphan back: g (7 of 9 orphaned, allowed 50%)": replace(
            NOTHING, limited=limited, held=[orphan]
        ),
        "the last start of 1 orphan failed: r1; newest error: exit code 3": replace(
            NOTHING, failed=[orphan]
        ),
        "1 group could not be scaled up: etl (below 4 threads after 3 rounds; newest error: "
        "no image)": replace(NOTHING, stopped=[stuck]),
    }
    for message, found in kinds.items():
        finding = unblocked(found)
        assert not finding.passed
        assert finding.severity is dg.AssetCheckSeverity.ERROR
        assert finding.description == message
    together = unblocked(
        replace(NOTHING, limited=limited, held=[orphan], failed=[orphan], stopped=[stuck])
    )
    assert together.description == "; ".join(kinds)
    assert together.metadata == {"refused restarts": 1, "groups not scaled up": 1, "paused": 0}


def test_ten_of_those_whose_start_failed_are_named() -> None:
    """With the newest error, cut where it is long."""
    failed = [opened(n, MINUTE)._replace(last_error="x" * 9999) for n in range(12)]
    message = unblocked(replace(NOTHING, failed=failed)).description
    assert "r9 and 2 more; newest error: xxx" in message
    assert len(message) < 400


@pytest.mark.parametrize(("lost", "passed"), [(1, True), (2, True), (3, False), (4, False)])
def test_the_share_of_restarts_that_helped(*, lost: int, passed: bool) -> None:
    """A half of four is enough where a half is asked for."""
    of_four = [ended(n, State.EXHAUSTED if n <= lost else State.RECOVERED) for n in range(1, 5)]
    others = [ended(9, State.RECOVERED, attempts=0), ended(10, State.RELEASED)]
    finding = restarts([*of_four, *others], 0.5)
    assert finding.passed is passed
    assert finding.metadata == {"success": 1 - lost / 4}
    assert ("not r1" in finding.description) is not passed


def test_without_restarts_there_is_no_share() -> None:
    """And nothing to warn of."""
    assert restarts([ended(1, State.RECOVERED, attempts=0)], 1.0).passed


def test_a_resource_that_flaps_is_named_with_its_number() -> None:
    """The worst first."""
    finding = flapping({"calm": 2, "bad": 3, "worse": 7}, 3)
    assert not finding.passed
    assert finding.severity is dg.AssetCheckSeverity.WARN
    assert "2 resources" in finding.description
    assert "worse (7 times), bad (3 times)" in finding.description
    assert flapping({"calm": 2}, 3).passed


def test_a_group_below_its_min_parallelism_is_named_with_its_threads() -> None:
    """A group without any optimizer has none."""
    finding = below_min_parallelism({"a": 4, "b": 2, "c": 1}, {"a": 3, "b": 2})
    assert not finding.passed
    assert "a (3 of 4 threads), c (0 of 1 threads)" in finding.description
    assert below_min_parallelism({"b": 2}, {"b": 2}).passed
    assert below_min_parallelism({}, {}).passed


def test_a_group_that_is_too_large_since_ams_refilled_it_is_named() -> None:
    """A warning: nothing is broken, and nobody else makes it smaller."""
    finding = doubled([Look("a", "2026"), Look("b", "2026", 2), Look("c", "2026", 1)])
    assert (finding.passed, finding.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert finding.description.startswith("2 groups above min-parallelism since AMS refilled")
    assert finding.description.endswith(": b (2 threads), c (1 thread)")
    assert doubled([Look("a", "2026")]).passed


@pytest.mark.parametrize(("minutes", "passed"), [(0, True), (15, True), (15.1, False)])
def test_a_survey_is_fresh_for_three_intervals(*, minutes: float, passed: bool) -> None:
    """Whatever came after it."""
    ticks = [(NOW - MINUTE * minutes, ""), (NOW - timedelta(days=1), "")]
    assert freshness(ticks, 5 * MINUTE, NOW).passed is passed


def test_a_keeper_that_abstains_all_the_time_is_no_keeper() -> None:
    """The check says what the sensor said last."""
    ticks = [(NOW - MINUTE * n, "Abstained, nothing was changed: AMS is away") for n in range(30)]
    finding = freshness([*ticks, (NOW - timedelta(hours=2), "")], 5 * MINUTE, NOW)
    assert not finding.passed
    assert "completed no survey for 2 h, allowed are 15 min: Abstained" in finding.description
    assert finding.description.endswith("(30 abstentions in a row)")
    assert finding.metadata == {
        "seconds since the last completed survey": 7200,
        "abstentions in a row": 30,
    }
    assert "in its newest ticks" in freshness(ticks, MINUTE, NOW).description


def test_a_sensor_that_is_stopped_is_noticed() -> None:
    """It has no ticks, or none that are new."""
    assert "is the sensor running" in freshness([], MINUTE, NOW).description
    assert (
        "is the sensor running"
        in freshness([(NOW - timedelta(days=3), "")], MINUTE, NOW).description
    )


def test_abstentions_in_a_row_are_counted_while_the_survey_is_fresh() -> None:
    """Before three intervals are over, they are told and not more."""
    ticks = [(NOW - MINUTE * n, "Abstained, nothing was changed: AMS is away") for n in range(2)]
    finding = freshness([*ticks, (NOW - 2 * MINUTE, ""), *ticks], 5 * MINUTE, NOW)
    assert finding.passed
    assert finding.description == "the last survey is 2 min old (2 abstentions in a row)"


def test_a_standby_is_fresh_while_it_watches() -> None:
    """Not if it failed to take over, and not if it is stopped."""
    watching = "Watching: blue acts, and its lease runs until 12:00"
    ticks = [(NOW - MINUTE * n, watching) for n in range(100)]
    finding = freshness(ticks, MINUTE, NOW)
    assert finding.passed
    assert finding.description == f"on standby, 0 s ago: {watching}"
    in_vain = [(NOW - MINUTE * n, "Abstained, nothing was changed: no answer") for n in range(4)]
    finding = freshness([*in_vain, *((at - 4 * MINUTE, why) for at, why in ticks)], MINUTE, NOW)
    assert not finding.passed
    assert "no answer" in finding.description
    assert "is the sensor running" in freshness(ticks[4:], MINUTE, NOW).description


def test_a_very_short_interval_is_not_taken_literally() -> None:
    """The daemon starts a tick every few seconds at most."""
    assert freshness([(NOW - timedelta(seconds=59), "")], timedelta(seconds=1), NOW).passed
