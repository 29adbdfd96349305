"""What the charts show, and that they show it whatever the history is."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from io import BytesIO
from itertools import pairwise
from typing import Any

import matplotlib.image as mpimg
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dagster_amoro_audit import charts

pytestmark = pytest.mark.long

NOW = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)
GRACE = timedelta(minutes=5)
OUTCOMES = ["recovered", "exhausted", "released", "superseded", None]
HOSTILE = ["a" * 100, "$x^2$ $", "new\nline", "\U0001f419 \u4e16\u754c", "../../etc", "", "'\"<b>"]
TYPES = {"detected": "datetime64[us, UTC]", "closed": "datetime64[us, UTC]"}


def frames(rows: list[dict[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Incidents and their events, with the columns that charts look at."""
    columns = ["incident", "resource", "detected", "attempts", "outcome", "closed"]
    incidents = pd.DataFrame(rows, columns=columns).astype({**TYPES, "outcome": "string"})
    recovered = incidents["outcome"] == "recovered"
    incidents["time_to_recover"] = (incidents["closed"] - incidents["detected"]).where(recovered)
    events = [
        {"incident": row["incident"], "resource": row["resource"], "kind": kind, "at": at}
        | {"attempt": 1, "wanted": 4, "live": live}
        for row in rows
        for kind, at, live in (
            ("detected", row["detected"], 2),
            ("attempt", row["detected"], None),
            ("attempt-failed", row["detected"], None),
            (row["outcome"] or "claimed", row["closed"] or NOW, 4),
        )
    ]
    columns = ["incident", "resource", "kind", "at", "attempt", "wanted", "live"]
    message = pd.DataFrame(events, columns=columns).astype(
        {"at": "datetime64[us, UTC]", "wanted": "Int64", "live": "Int64"}
    )
    return incidents, message.assign(event=range(len(message)))


def incident(  # noqa: PLR0913 - what tests vary
    number: int = 1,
    *,
    age: float = 3600,
    took: float = 60,
    outcome: str | None = "recovered",
    attempts: int = 1,
    resource: str = "r",
) -> dict[str, Any]:
    """An incident that was detected `age` seconds ago and took `took` seconds."""
    detected = NOW - timedelta(seconds=age)
    closed = None if outcome is None else detected + timedelta(seconds=took)
    named = {"incident": number, "resource": resource, "attempts": attempts}
    return {**named, "detected": detected, "outcome": outcome, "closed": closed}


def advised(graces: list[float], orphans: int = 10) -> pd.DataFrame:
    """The advice on some grace periods."""
    share = orphans / 7
    ends = ("by_itself", "restarted", "unneeded_restarts", "given_up", "otherwise", "open")
    numbers = dict.fromkeys((*ends, "unknown"), share)
    rows = [
        {"grace_seconds": g, "in_force": g == 300, "median_wait": g + 1, "orphans": orphans}
        | numbers
        for g in graces
    ]
    return pd.DataFrame(rows)


def drawn(rows: list[dict[str, Any]]) -> list[bytes | None]:
    """All charts of a history."""
    incidents, events = frames(rows)
    return [
        charts.timeline(incidents, events, NOW),
        charts.capacity(events, NOW),
        charts.recovery_times(incidents, GRACE),
        charts.outcomes_per_day(incidents, NOW),
    ]


def size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels; it is an image, then."""
    height, width, _ = mpimg.imread(BytesIO(png)).shape
    return width, height


def test_without_a_history_there_is_nothing_to_show() -> None:
    """Not even axes."""
    assert drawn([]) == [None] * 4
    assert charts.advice_chart(advised([0.0], orphans=0)) is None


def test_one_incident_is_enough() -> None:
    """Images fit the UI's dialog, which is some 1,000 pixels wide and does not scale them."""
    for png in drawn([incident()]):
        assert png is not None
        width, height = size(png)
        assert width == 960
        assert 90 < height < 400


def test_ten_thousand_incidents_are_shown_like_one() -> None:
    """In a size that an event log can hold; what is left out is counted."""
    rows = [
        incident(n, age=n * 60.0, took=n % 997, attempts=n % 4, resource=f"r{n % 60}")
        | ({"outcome": None, "closed": None} if n % 5 == 4 else {})
        for n in range(10_000)
    ]
    for png in drawn(rows):
        assert png is not None
        assert len(png) < 100_000


def pixels(png: bytes) -> Counter[str]:
    """How many pixels of each colour a finished file has."""
    image = Image.open(BytesIO(png)).convert("RGB")
    values = image.tobytes()
    return Counter(f"#{values[at : at + 3].hex()}" for at in range(0, len(values), 3))


def of_all_kinds() -> list[dict[str, Any]]:
    """Incidents of every ending, of several resources on several days."""
    ends = [("recovered", 0), ("recovered", 1), ("recovered", 2), *((o, 1) for o in OUTCOMES[1:])]
    return [
        incident(n, age=9000.0 * n + 60, took=1200, outcome=o, attempts=a, resource=f"r{n}")
        for n, (o, a) in enumerate(ends * 3)
    ]


@pytest.mark.parametrize("number", [0, 3])
def test_the_colours_of_the_endings_are_in_the_finished_file(number: int) -> None:
    """Exactly, each over an area: a file of few colours must not turn one ending into another."""
    png = drawn(of_all_kinds())[number]
    assert png is not None
    found = pixels(png)
    for kind, colour in charts.COLOURS.items():
        assert found[colour] > 50, kind


def test_the_colours_of_the_advice_are_in_the_finished_file() -> None:
    """What was restarted in vain is not given up, and what is open did not end otherwise."""
    png = charts.advice_chart(advised([0.0, 60.0, 300.0, 900.0], orphans=70))
    assert png is not None
    found = pixels(png)
    assert all(found[colour] > 500 for colour in charts.COLOURS.values())


def test_the_colours_of_recoveries_and_of_threads_are_in_the_finished_file() -> None:
    """Live threads are green, and an outage is not: none of it is where nothing lives."""
    rows = of_all_kinds()
    incidents, events = frames(rows)
    recoveries = charts.recovery_times(incidents, GRACE)
    assert recoveries is not None
    kinds = (charts.ITSELF, charts.FIRST, charts.LATER)
    assert all(pixels(recoveries)[charts.COLOURS[kind]] > 50 for kind in kinds)
    green = charts.COLOURS[charts.FIRST]
    outage = events.assign(live=events["live"].where(events["live"].isna(), 0).astype("Int64"))
    alive, dead = (charts.capacity(each, NOW) for each in (events, outage))
    assert alive is not None
    assert dead is not None
    assert pixels(alive)[green] > 5 * pixels(dead)[green]


def test_the_card_and_its_texts_have_their_colours() -> None:
    """So that what is measured of contrast is what is seen."""
    for png in drawn(of_all_kinds()):
        assert png is not None
        found = pixels(png)
        assert found.most_common(1)[0][0] == charts.CARD
        assert found[charts.TEXT] > 20


def test_hostile_names_are_names() -> None:
    """No mathematics, no missing glyphs (warnings are errors here), no line breaks."""
    rows = [incident(n, resource=name) for n, name in enumerate(HOSTILE)]
    assert None not in drawn(rows)
    assert charts.printable("a" * 100) == "a" * 29 + "…"
    assert charts.printable("new\nline \U0001f419") == "new line \u25a1"


def test_incidents_of_one_moment_and_of_all_lengths() -> None:
    """Three seconds beside three weeks, all at once, and one that closed before it began."""
    assert None not in drawn([incident(n, age=60, took=0) for n in range(3)])
    assert None not in drawn([incident(1, took=3), incident(2, age=9e5, took=1_814_400)])
    assert None not in drawn([incident(1, took=-0.5)])


def with_notes(events: pd.DataFrame) -> pd.DataFrame:
    """The same with events of the group, which belong to no incident, as the audit stores them."""
    note = {"kind": "paused", "at": NOW - timedelta(minutes=9), "event": len(events)}
    notes = pd.DataFrame([note], columns=events.columns).astype({"at": "datetime64[us, UTC]"})
    types = {"incident": "Int64", "attempt": "Int64", "wanted": "Int64", "live": "Int64"}
    return pd.concat([events.astype(types), notes.astype(types)], ignore_index=True)


def test_events_of_the_group_change_no_chart() -> None:
    """A timeline shows incidents, and threads are noted by ticks."""
    incidents, events = frames([incident(), incident(2, outcome=None, resource="s")])
    message = with_notes(events)
    assert message["incident"].isna().sum() == 1
    assert charts.timeline(incidents, message, NOW) == charts.timeline(incidents, events, NOW)
    assert charts.capacity(message, NOW) == charts.capacity(events, NOW)
    alone = message.tail(1)
    assert charts.timeline(incidents.head(0), alone, NOW) is None
    assert charts.capacity(alone, NOW) is None


@pytest.mark.parametrize("grace", [timedelta(0), timedelta(days=3)])
def test_any_grace_period_has_its_place(grace: timedelta) -> None:
    """Also none, and one that is longer than all recoveries."""
    assert charts.recovery_times(frames([incident()])[0], grace) is not None


def test_advice_without_any_attempt_has_no_wait() -> None:
    """Where nothing would ever have been restarted."""
    rows = advised([0.0, 300.0]).assign(median_wait=float("nan"))
    assert charts.advice_chart(rows) is not None


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.builds(
            incident,
            st.integers(0, 10**9),
            age=st.floats(0, 10**8),
            took=st.floats(0, 10**7),
            outcome=st.sampled_from(OUTCOMES),
            attempts=st.integers(0, 9),
            resource=st.text(max_size=12),
        ),
        max_size=5,
    )
)
def test_any_history_can_be_drawn(rows: list[dict[str, Any]]) -> None:
    """It never fails: a chart is the last thing that may stop a refresh."""
    for png in drawn(rows):
        assert png is None or png.startswith(b"\x89PNG")


def luminance(colour: str) -> float:
    """Of a colour, as WCAG has it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [charts.TEXT, charts.QUIET_TEXT])
def test_texts_can_be_read(colour: str) -> None:
    """On the card, which is there in the light and in the dark theme."""
    assert (luminance(charts.CARD) + 0.05) / (luminance(colour) + 0.05) >= 4.5


def test_colours_differ() -> None:
    """No two endings look alike."""
    values = sorted(charts.COLOURS.values())
    assert all(one != other for one, other in pairwise(values))
