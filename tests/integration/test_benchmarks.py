"""Every benchmark in small: whether it runs. Whether its bounds hold is for `make bench` to say."""

from datetime import timedelta
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks import idle_day
from benchmarks.__main__ import BENCHMARKS
from tests.helpers.databases import NO_MARIADB

pytestmark = pytest.mark.long
# What each measures, instead of its usual number.
SMALL: dict[str, dict[str, object]] = {
    "imports": {"_REPETITIONS": 1},
    "survey": {"_REPETITIONS": {100: 1, 1_000: 1}},
    "attached": {"_RESOURCES": 1_000, "_REPETITIONS": 1},
    "quiet_tick": {},
    "restart": {"_ORPHANS": 3, "_REPETITIONS": 1},
    "thousand": {"_MANY": 6, "_FEW": 2, "_REPETITIONS": 1},
    "side_by_side": {"_ORPHANS": 6, "_SECONDS": 0.1, "_CONCURRENCY": 2},
    "workers": {"_WORKERS": 4, "_FEW": 1, "_REPETITIONS": 1},
    "stored_events": {"_ORPHANS": 3},
    "hand_over": {"_REPETITIONS": 1, "_QUIET_SECONDS": 0},
    "waves": {"_ORPHANS": 10, "_WAVE": 2, "_WAVES": 5, "_REPETITIONS": 1},
    "mass": {"_ORPHANS": 3_000},
    "sizes": {"_GROUPS": 20, "_RESOURCES": 400},
    "past": {"_INCIDENTS": 1_000, "_OVER": timedelta(days=10), "_REPETITIONS": 1},
    "past_checks": {"_REPETITIONS": 1},
    "past_reliability": {"_LIVE": 20, "_REPETITIONS": 1},
    "history": {"_INCIDENTS": 1_000, "_LONG": 10},
    "idle_day": {"_SECONDS": 3600, "_RESOURCES": 20},
    "heal": {"_RESOURCES": 3, "_WARM_UPS": 0},
}
# What one database with a past is filled for.
PARTS = {"past": ["past", "past_checks", "past_reliability"]}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_it_takes_its_figures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with a name of its own, and with what both sides took."""
    if name == "attached" and NO_MARIADB:
        pytest.skip(NO_MARIADB)
    for part in PARTS.get(name, [name]):
        for constant, value in SMALL[part].items():
            monkeypatch.setattr(import_module(f"benchmarks.{part}"), constant, value)
    figures = list(BENCHMARKS[name](tmp_path))
    assert figures
    assert len({figure.name for figure in figures}) == len(figures)
    assert all(figure.bare > 0 and figure.ours >= 0 for figure in figures)


def test_a_tick_with_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    """The one benchmark whose figures no machine changes."""
    assert all(figure.held for figure in BENCHMARKS["quiet_tick"](tmp_path))


def test_an_idle_hour_takes_no_run_and_next_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than a day may take, with the answers that are told once a day."""
    for constant, value in SMALL["idle_day"].items():
        monkeypatch.setattr(idle_day, constant, value)
    assert all(figure.held for figure in BENCHMARKS["idle_day"](tmp_path))
