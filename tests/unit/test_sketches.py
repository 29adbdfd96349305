"""Small charts on a page itself: short enough to be shown, harmless, and true."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree as ET

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro_audit import sketches
from dagster_amoro_audit.charts import COLOURS, FIRST
from tests.helpers.attacks import TEXTS
from tests.unit.test_charts import HOSTILE, NOW, OUTCOMES, frames, incident

DAY = 86_400
GREEN, RED = COLOURS[FIRST], COLOURS["given up"]


def svg(markdown: str) -> ET.Element:
    """The picture in a Markdown text, which is that and nothing else."""
    assert len(markdown) < 1_000
    found = re.fullmatch(r"!\[\]\(data:image/svg\+xml,([^\s()<>\"`\\]+)\)", markdown)
    assert found is not None, markdown
    return ET.fromstring(unquote(found.group(1)))  # noqa: S314 - our own


def texts(picture: ET.Element) -> list[str]:
    """What is written in a picture."""
    return [each.text or "" for each in picture.iter("{http://www.w3.org/2000/svg}text")]


def strokes(picture: ET.Element) -> dict[str, str]:
    """The lines of a picture by their colour."""
    paths = picture.iter("{http://www.w3.org/2000/svg}path")
    return {each.attrib["stroke"]: each.attrib["d"] for each in paths}


def every(rows: list[dict[str, Any]]) -> list[str]:
    """All sketches of a history."""
    incidents, events = frames(rows)
    return [
        sketches.timeline(incidents, NOW),
        sketches.capacity(events, NOW),
        sketches.outcomes(incidents, NOW),
    ]


def test_where_nothing_happened_a_sentence_says_so() -> None:
    """Of groups that nobody ever counted the threads of, too."""
    assert every([]) == [sketches.QUIET, sketches.NOTHING, sketches.QUIET]
    old = every([incident(age=40 * DAY)])
    assert (old[0], old[2]) == (sketches.QUIET, sketches.QUIET)


@pytest.mark.long
@given(
    st.lists(
        st.builds(
            incident,
            age=st.floats(0, 20 * DAY),
            took=st.floats(0, 2 * DAY),
            outcome=st.sampled_from(OUTCOMES),
            attempts=st.integers(0, 3),
            resource=st.sampled_from([*HOSTILE, *TEXTS.values()]) | st.text(),
        ),
        min_size=1,
        max_size=80,
    )
)
def test_whatever_happened_it_is_a_picture_that_is_shown(rows: list[dict[str, Any]]) -> None:
    """Names of others stay texts in it."""
    for number, row in enumerate(rows):
        row["incident"] = number
    for markdown in every(rows):
        if not markdown.startswith("*"):
            svg(markdown)


def test_a_thousand_incidents_fit_by_the_newest() -> None:
    """A busy day is no reason to show none of it."""
    rows = [
        incident(n, age=80 * n + 1, resource=f"worker-{n % 40}", outcome=OUTCOMES[n % 5])
        for n in range(1000)
    ]
    shown = [svg(markdown) for markdown in every(rows)]
    assert "worker-0" in texts(shown[0])
    assert all(len(strokes(picture)) > 3 for picture in (shown[0], shown[2]))


def test_a_bar_begins_when_the_orphan_was_found_and_ends_when_it_was_over() -> None:
    """A quarter of a day of 500 pixels, in the colour of its end."""
    rows = [
        incident(1, age=DAY / 2, took=DAY / 4),
        incident(2, age=DAY / 4, outcome=None),
        incident(3, age=2 * DAY, outcome="released", took=DAY + 60),
    ]
    drawn = strokes(svg(every(rows)[0]))
    assert drawn[GREEN].startswith("M346,9h125")
    assert drawn[COLOURS["still open"]].startswith("M471,9h125")


def test_a_young_history_fills_the_axis() -> None:
    """Five minutes at least; what happened in the last of 24 hours could not be seen."""
    young, first = svg(every([incident(age=600, took=300)])[0]), svg(every([incident(age=1)])[0])
    assert strokes(young)[GREEN].startswith("M96,9h250")
    assert "10 min: 1 attempt" in texts(young)
    assert "5 min: 1 attempt" in texts(first)


def test_an_outage_is_not_green() -> None:
    """All of it is missing: the area of the live threads has no height."""
    row = incident(age=3600, outcome=None)
    _, events = frames([row])
    events["live"] = events["live"].where(events["live"].isna(), 0)
    picture = svg(sketches.capacity(events.astype({"live": "Int64"}), NOW))
    areas = {
        each.attrib["fill"]: each.attrib["d"]
        for each in list(picture.iter("{http://www.w3.org/2000/svg}path"))[:2]
    }
    assert areas[RED].endswith("H596V74z")
    assert "V18" in areas[RED]
    assert set(re.findall(r"V(\d+)", areas[GREEN])) == {"74"}
    assert texts(picture) == ["1 h, now 0 of 4 threads live, red: missing"]


def test_bars_of_a_day_stand_on_each_other() -> None:
    """Two that came back and one that was given up, of three at most."""
    rows = [incident(n, age=60, outcome=o) for n, o in enumerate(["recovered"] * 2 + ["exhausted"])]
    picture = svg(every(rows)[2])
    drawn = strokes(picture)
    assert drawn[GREEN].startswith("M567,74v-37")
    assert drawn[RED].startswith("M567,37v-19")
    assert texts(picture) == ["14 days, at most 3: 1 attempt given up"]


@pytest.mark.parametrize("draw", [sketches.timeline, sketches.outcomes])
def test_all_kinds_of_ends_are_told_apart(draw: Callable[..., str]) -> None:
    """In seven colours, with seven names."""
    outcomes = [
        ("recovered", 0),
        ("recovered", 1),
        ("recovered", 2),
        *((o, 1) for o in OUTCOMES[1:]),
    ]
    rows = [
        incident(n, age=60 * n + 9, outcome=outcome, attempts=attempts)
        for n, (outcome, attempts) in enumerate(outcomes)
    ]
    incidents, _ = frames(rows)
    picture = svg(draw(incidents, NOW + timedelta(minutes=1)))
    assert set(strokes(picture)) == set(COLOURS.values())
    assert isinstance(incidents, pd.DataFrame)
