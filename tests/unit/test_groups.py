"""What groups say about themselves, against the rules of AMS written down as tables."""

import json
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core import groups
from dagster_amoro.core.groups import (
    Group,
    absence_obstacle,
    heartbeat_obstacle,
    is_dynamic,
    min_parallelism,
)
from dagster_amoro.core.values import parse_duration
from dagster_amoro_worker.durations import UNITS
from tests.helpers.inputs import SETTINGS

FLAT: Final = "min-parallelism"
DYNAMIC: Final = "dynamic-allocation."
ENABLED: Final = {f"{DYNAMIC}enabled": "true", f"{DYNAMIC}max-parallelism": "16"}
BACKLOG, SUSTAINED, IDLE, COOLDOWN, DRAIN = (
    f"{DYNAMIC}{name}"
    for name in (
        "scheduler-backlog-timeout",
        "sustained-backlog-timeout",
        "executor-idle-timeout",
        "scale-down-cooldown",
        "drain-timeout",
    )
)
LONG_MAX: Final = 9_223_372_036_854_775_807


def group(properties: str | None, container_name: str | None = "flink") -> Group:
    """A group with this text."""
    return Group(name="a", container_name=container_name, properties=properties)


def saying(properties: dict[str, str | None], container_name: str | None = "flink") -> Group:
    """A group with these properties."""
    return group(json.dumps(properties), container_name)


def enabled(**changed: str | None) -> Group:
    """A group under dynamic allocation, with these keys (`_` for `-`) besides."""
    keys = {DYNAMIC + name.replace("_", "-"): value for name, value in changed.items()}
    return saying({**ENABLED, **keys})


# A text and the number that Java reads in it; None: it is no number.
INTEGERS: Final[dict[str, int | None]] = {
    "0": 0,
    "4": 4,
    "+4": 4,
    "-4": -4,
    "-0": 0,
    "0004": 4,
    "0" * 5000 + "4": 4,
    "\u0664": 4,  # an Arabic digit
    "\U0001d7d2": None,  # a digit that takes two of Java's characters
    "2147483647": 2_147_483_647,
    "2147483648": None,
    "-2147483648": -2_147_483_648,
    "-2147483649": None,
    "9" * 5000: None,
    "": None,
    "+": None,
    "-": None,
    "--4": None,
    "4.0": None,
    "1e2": None,
    "0x4": None,
    "1_0": None,
    "\u00b2": None,
    "4 4": None,
    "four": None,
    "\u00a04": None,  # a blank that Java does not trim
    "4\u2003": None,
    "4\x85": None,
}
TRIMMED: Final = ("", " ", "\t", "\r\n", "\x00", "\x1f", "   ")
integers: Final = st.sampled_from(list(INTEGERS)) | st.integers(0, 40).map(str)
trimmed: Final = st.sampled_from(TRIMMED)


def number(text: str) -> int | None:
    """What Java reads in one of the drawn texts."""
    return INTEGERS[text] if text in INTEGERS else int(text)


@pytest.mark.parametrize(("text", "expected"), INTEGERS.items())
def test_a_floor_is_what_java_reads(text: str, expected: int | None) -> None:
    """What is no number asks for nothing, and so does less than nothing."""
    assert min_parallelism(saying({FLAT: text})) == max(expected or 0, 0)


@given(trimmed, st.sampled_from([DYNAMIC + FLAT, FLAT]), integers, trimmed)
def test_a_floor_is_trimmed(before: str, key: str, text: str, after: str) -> None:
    """Under either key."""
    assert min_parallelism(saying({key: before + text + after})) == max(number(text) or 0, 0)


@given(st.none() | integers, st.none() | integers)
def test_the_namespaced_floor_wins(namespaced: str | None, flat: str | None) -> None:
    """Even if it cannot be read; null is as good as missing."""
    given = [text for text in (namespaced, flat) if text is not None]
    expected = max(number(given[0]) or 0, 0) if given else None
    assert min_parallelism(saying({FLAT: flat, DYNAMIC + FLAT: namespaced})) == expected


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        "null",
        "{}",
        '{"memory":"1"}',
        '{"min-parallelism":',
        '["min-parallelism"]',
        '{"min-parallelism":{}}',
        '{"min-parallelism":null}',
        '{"a":"min-parallelism"}',
        '{"min-parallelism-":"4"}',
    ],
)
def test_no_floor(text: str | None) -> None:
    """Nobody asked for one, or nobody can say what was asked."""
    assert min_parallelism(group(text)) is None


@pytest.mark.parametrize("text", ['{"min-parallelism":4}', "{min-parallelism:'4'}"])
def test_a_floor_in_lenient_json(text: str) -> None:
    """As AMS reads the column."""
    assert min_parallelism(group(text)) == 4


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"enabled": "TRUE"}, True),
        ({"enabled": " true"}, False),
        ({"enabled": "yes"}, False),
        ({"enabled": ""}, False),
        ({"enabled": None}, False),
        ({"max_parallelism": None}, False),
        ({"max_parallelism": " 16"}, False),
        ({"max_parallelism": "1024"}, True),
        ({"max_parallelism": "1025"}, False),
        ({"max_parallelism": "2048"}, False),
        ({"max_parallelism": "0"}, False),  # less than one executor
        ({"max_parallelism": "1"}, True),
        ({"min_parallelism": "abc"}, False),
        ({"min_parallelism": ""}, False),
        ({"min_parallelism": "-3"}, False),
        ({"min_parallelism": " 5 "}, True),
        ({"min_parallelism": "16"}, True),
        ({"min_parallelism": "17"}, False),
        ({"executor_parallelism": "4"}, True),
        ({"executor_parallelism": "4 "}, False),
        ({"executor_parallelism": "0"}, False),
        ({"executor_parallelism": "16"}, True),
        ({"executor_parallelism": "17"}, False),
        ({"executor_parallelism": "32"}, False),
        ({"executor_parallelism": "abc"}, False),
        ({"min_parallelism": "5", "max_parallelism": "6", "executor_parallelism": "4"}, False),
        ({"min_parallelism": "5", "max_parallelism": "8", "executor_parallelism": "4"}, True),
        ({"executor_idle_timeout": "10s"}, False),
        ({"executor_idle_timeout": "59999ms"}, False),  # less than twice 30 s
        ({"executor_idle_timeout": "60 s"}, True),
        ({"executor_idle_timeout": "30s", "sustained_backlog_timeout": "15s"}, True),
        ({"executor_idle_timeout": "29999999999ns", "sustained_backlog_timeout": "1s"}, False),
        ({"executor_idle_timeout": "300s", "sustained_backlog_timeout": "150s"}, True),
        ({"executor_idle_timeout": "300s", "sustained_backlog_timeout": "150000999us"}, False),
        ({"executor_idle_timeout": "300s", "sustained_backlog_timeout": "150000999\u00b5s"}, True),
        ({"executor_idle_timeout": "300s", "sustained_backlog_timeout": "150001ms"}, False),
        ({"executor_idle_timeout": "300s", "sustained_backlog_timeout": "200s"}, False),
        ({"sustained_backlog_timeout": "150s"}, True),  # half of the usual idle timeout
        ({"sustained_backlog_timeout": "150001ms"}, False),
        ({"scheduler_backlog_timeout": "not-a-duration"}, False),
        ({"scheduler_backlog_timeout": "0s"}, False),
        ({"scheduler_backlog_timeout": ""}, False),
        ({"scheduler_backlog_timeout": "1ns"}, True),
        ({"sustained_backlog_timeout": "0"}, False),
        ({"scale_down_cooldown": "0d"}, False),
        ({"scale_down_cooldown": "-1s"}, False),
        ({"scale_down_cooldown": "+1s"}, False),
        ({"drain_timeout": "0ms"}, False),
        ({"drain_timeout": "1.5h"}, False),
        ({"drain_timeout": "1m"}, False),
        ({"drain_timeout": " 2\x01HOURS\x00"}, True),
        ({"drain_timeout": "2\u00a0h"}, False),
        ({"drain_timeout": "0" * 5000 + "2h"}, True),
        ({"drain_timeout": f"{LONG_MAX}"}, True),
        ({"drain_timeout": f"{LONG_MAX + 1}ns"}, False),
        ({"drain_timeout": f"{LONG_MAX}min"}, False),
    ],
)
def test_whether_dynamic_allocation_holds(changed: dict[str, str | None], expected: bool) -> None:  # noqa: FBT001 - what a table expects
    """The cases of AMS's own tests, and both sides of each limit."""
    assert is_dynamic(enabled(**changed)) is expected


@pytest.mark.parametrize(("flat", "expected"), [("16", True), ("17", False), ("abc", False)])
def test_the_flat_floor_counts_for_dynamic_allocation(flat: str, *, expected: bool) -> None:
    """Unless there is the other one."""
    assert is_dynamic(saying({**ENABLED, FLAT: flat})) is expected
    assert is_dynamic(saying({**ENABLED, FLAT: flat, DYNAMIC + FLAT: "1"}))


@pytest.mark.parametrize(
    ("container_name", "expected"),
    [("external", False), ("External", True), ("flink", True), (None, True)],
)
def test_ams_sizes_no_external_group(container_name: str | None, *, expected: bool) -> None:
    """It cannot start what registers by itself."""
    assert is_dynamic(saying({**ENABLED}, container_name)) is expected


@pytest.mark.parametrize("text", [None, "", "null", "{}", json.dumps(ENABLED)[:-1]])
def test_unreadable_groups_are_not_dynamic(text: str | None) -> None:
    """Nor are those that say nothing."""
    assert is_dynamic(group(text)) is False


# Seconds by label, as Amoro documents them.
SECONDS: Final = {
    **dict.fromkeys(["d", "day", "days"], Fraction(86_400)),
    **dict.fromkeys(["h", "hour", "hours"], Fraction(3_600)),
    **dict.fromkeys(["min", "minute", "minutes"], Fraction(60)),
    **dict.fromkeys(["s", "sec", "secs", "second", "seconds"], Fraction(1)),
    **dict.fromkeys(["", "ms", "milli", "millis", "millisecond"], Fraction(1, 1000)),
    **dict.fromkeys(["milliseconds"], Fraction(1, 1000)),
    **dict.fromkeys(["\u00b5s", "micro", "micros", "microsecond"], Fraction(1, 10**6)),
    **dict.fromkeys(["microseconds"], Fraction(1, 10**6)),
    **dict.fromkeys(["ns", "nano", "nanos", "nanosecond", "nanoseconds"], Fraction(1, 10**9)),
}
NO_UNITS: Final = ("m", "us", "\u03bcs", "w", "s.", "\u017f", ".0 s", "-")


@st.composite
def spans(draw: st.DrawFn) -> tuple[str, Fraction | None]:
    """A duration's text and its seconds; None: Amoro refuses it."""
    length = draw(st.sampled_from([0, 1, 14, 15, 16, 29, 30, 31, 60, 61]) | st.integers(0, 10**9))
    label = draw(st.sampled_from([*SECONDS, *SECONDS, *NO_UNITS]))
    gap = draw(trimmed)
    cased = label.upper() if draw(st.booleans()) and label.isascii() else label
    text = draw(trimmed) + str(length) + gap + cased + draw(trimmed)
    return text, length * SECONDS[label] if label in SECONDS else None


@st.composite
def sizes(draw: st.DrawFn) -> tuple[dict[str, str], bool]:
    """Numbers of threads, and whether they go together: the least, the most, and a unit."""
    texts = [draw(st.none() | integers) for _ in range(3)]
    keys = [DYNAMIC + FLAT, f"{DYNAMIC}max-parallelism", f"{DYNAMIC}executor-parallelism"]
    properties = {key: text for key, text in zip(keys, texts, strict=True) if text is not None}
    least, most, unit = (
        default if text is None else number(text)
        for text, default in zip(texts, (0, None, 1), strict=True)
    )
    if least is None or most is None or unit is None:
        return properties, False
    # Whole executors, put side by side within the limit, and at least one fits.
    covered = range(0, min(most, 1024) + 1, unit) if unit > 0 else range(0)
    return properties, most <= 1024 and len(covered) > 1 and 0 <= least <= covered[-1]


@given(sizes())
def test_sizes_of_dynamic_allocation(drawn: tuple[dict[str, str], bool]) -> None:
    """They hold if some number of whole executors lies between minimum and limit."""
    properties, expected = drawn
    assert is_dynamic(saying({f"{DYNAMIC}enabled": "true", **properties})) is expected


@given(st.dictionaries(st.sampled_from([BACKLOG, SUSTAINED, IDLE, COOLDOWN, DRAIN]), spans()))
def test_spans_of_dynamic_allocation(drawn: dict[str, tuple[str, Fraction | None]]) -> None:
    """All are positive, and an executor is idle for 30 s or longer, and for two looks at it."""
    usual = {BACKLOG: 60, SUSTAINED: 30, IDLE: 300, COOLDOWN: 60, DRAIN: 900}
    seconds = {**usual, **{key: length for key, (_, length) in drawn.items()}}
    known = [length for length in seconds.values() if length is not None]
    expected = len(known) == 5 and min(known) > 0 and (seconds[IDLE] or 0) >= 30
    if expected:
        look, idle = (int((seconds[key] or 0) * 1000) for key in (SUSTAINED, IDLE))
        expected = look + look <= idle
    texts = {key: text for key, (text, _) in drawn.items()}
    assert is_dynamic(saying({**ENABLED, **texts})) is expected


@pytest.mark.parametrize("label", SECONDS)
def test_units_are_those_of_the_configuration(label: str) -> None:
    """A duration means the same in a group as in AMS's configuration."""
    assert Fraction(UNITS[label], 10**9) == SECONDS[label]
    exact = 5_000_000 * SECONDS[label]
    assert parse_duration(f"5000000{label}") == timedelta(microseconds=int(exact * 10**6))


def test_groups_without_such_keys_are_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are many, and asked at every tick."""
    monkeypatch.setattr(groups, "parse_properties", None)
    plain = saying({"memory": "1024", f"{DYNAMIC}drain-timeout": "1h"})
    assert min_parallelism(plain) is None
    assert not is_dynamic(plain)


# What AMS refuses.

OF_AMS: Final = replace(SETTINGS, ams_heartbeat_timeout=timedelta(minutes=1))


def test_a_group_without_a_row_is_an_obstacle_where_there_is_an_ams() -> None:
    """A fleet of ours asks for no group: whoever writes heartbeats is there."""
    assert absence_obstacle("g", OF_AMS) == (
        "its group g is not in resource_group, so that AMS would refuse its registration"
    )
    for name in (None, ""):
        assert str(absence_obstacle(name, OF_AMS)).startswith("it has no group, so that AMS")
    assert absence_obstacle("g", SETTINGS) is None


# An interval as a resource has it, a timeout in seconds, and whether AMS would take it.
HEARTBEATS: Final[list[tuple[str | None, float, bool]]] = [
    (None, 60, True),  # 10 s, the default of Amoro's optimizers
    (None, 10.001, True),
    (None, 10, False),
    ("59999", 60, True),
    ("60000", 60, False),
    ("60001", 60, False),
    ("0060000", 60, False),
    ("+5000", 60, True),
    ("999999999999999", 60, False),
    ("9" * 30, 60, False),
    ("10s", 60, False),
    ("", 60, False),
    (" 5000", 60, False),
    ("5e3", 60, False),
]


@pytest.mark.parametrize(("interval", "timeout", "taken"), HEARTBEATS)
def test_heartbeats_have_to_come_more_often_than_they_expire(
    interval: str | None, timeout: float, *, taken: bool
) -> None:
    """As AMS compares them; without an AMS nobody does."""
    properties = {} if interval is None else {"heart-beat-interval": interval}
    settings = replace(SETTINGS, ams_heartbeat_timeout=timedelta(seconds=timeout))
    assert (heartbeat_obstacle(properties, settings) is None) == taken
    assert heartbeat_obstacle(properties, SETTINGS) is None
