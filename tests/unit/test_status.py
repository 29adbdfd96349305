"""What `status` shows of what it found: on a terminal, in a pipe and to programs."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from dagster_amoro.config import Mode
from dagster_amoro.core.model import ScaleUpState, State
from dagster_amoro.core.pauses import Pause, Scope, Target
from dagster_amoro.healing.status import (
    Acting,
    GroupStatus,
    OrphanStatus,
    Rounds,
    Status,
    as_json,
)
from dagster_amoro.healing.status_table import SHOWN, render

NOW = datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
PAUSE = Pause(
    target=Target(scope=Scope.GROUP, name="g"),
    author="ann",
    reason="upgrade",
    paused_at=NOW,
    until=NOW + timedelta(hours=1),
)
ROUNDS = Rounds(rounds=2, most=3, state=ScaleUpState.FAILED, next_at=NOW, last_error="no room")
GROUP = GroupStatus(
    name="g",
    resources=3,
    wanted=6,
    live=4,
    min_parallelism=None,
    orphans=1,
    starting=0,
    given_up=0,
    kept=0,
    lost_threads=0,
    trouble="orphans",
    message=None,
    scale_up=None,
)


def orphan(resource_id: str = "r-1", group: str = "g") -> OrphanStatus:
    """An orphan in its grace period."""
    return OrphanStatus(
        resource_id=resource_id,
        group_name=group,
        incident_id=7,
        state=State.WAITING,
        orphaned_since=NOW - timedelta(minutes=5),
        attempts_used=2,
        max_attempts=5,
        cause=None,
        death=None,
        last_error=None,
        next="attempt 3 of 5 after 2026-03-29 01:00:05 UTC",
        next_at=NOW + timedelta(seconds=5),
    )


CALM = Status(
    at=NOW,
    acting=Acting(deployment="", holder=None, until=None, message="this deployment"),
    mode=Mode.ENFORCE,
    auto_restart=True,
    attached=False,
    silence=None,
    doubt=None,
    pauses=(),
    groups=(GROUP,),
    orphans=(orphan(),),
    losses=(),
)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests do not depend on where they run."""
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def cells(line: str) -> list[str]:
    """What stands in the columns of a line."""
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_table_has_a_line_for_each_group_and_each_orphan() -> None:
    """With all that an operator asks first."""
    lines = [cells(line) for line in render(CALM).splitlines()]
    assert ["acts", "this deployment"] in lines
    assert ["mode", "enforce"] in lines
    assert ["auto-restart", "on"] in lines
    assert ["AMS", "none"] in lines
    assert [
        "group",
        "resources",
        "wanted",
        "live",
        "min-parallelism",
        "orphans",
        "starting",
        "scale-ups",
        "state",
    ] in lines
    assert ["g", "3", "6", "4", "1", "0", "orphans"] in lines
    assert ["r-1", "waiting", "5 min", "2 of 5", orphan().next] in lines


def test_what_is_out_of_the_ordinary_stands_at_the_head() -> None:
    """A dry run, restarts that are off, a silent AMS, pauses, and what groups have to say."""
    group = replace(GROUP, trouble="held", message="7 of 9 orphaned, allowed 50%", scale_up=ROUNDS)
    status = replace(
        CALM,
        mode=Mode.DRY_RUN,
        auto_restart=False,
        attached=True,
        silence="no answer",
        doubt="a standby",
        pauses=(PAUSE,),
        groups=(group,),
    )
    lines = [cells(line) for line in render(status).splitlines()]
    assert ["mode", "dry run: nothing is started or removed"] in lines
    assert ["auto-restart", "off"] in lines
    assert [
        "AMS",
        "does not answer, nothing is concluded before it does: no answer",
    ] in lines
    assert ["registry", "nothing is concluded from it: a standby"] in lines
    assert ["pause", str(PAUSE)] in lines
    assert ["g", "7 of 9 orphaned, allowed 50%"] in lines
    assert ["g", "3", "6", "4", "1", "0", "2 of 3", "held"] in lines


def test_nothing_at_all_can_be_shown() -> None:
    """A fleet that never ran has neither groups nor orphans."""
    shown = render(replace(CALM, attached=True, groups=(), orphans=()))
    assert ["AMS", "answers"] in [cells(line) for line in shown.splitlines()]
    assert "resources" not in shown
    assert "group" not in shown


def test_an_orphan_that_is_new_has_no_past() -> None:
    """Its cells stay empty, and its error with them."""
    new = replace(orphan(), incident_id=None, state=None, orphaned_since=None, attempts_used=None)
    shown = render(replace(CALM, orphans=(replace(new, next="found by the next tick"),)))
    assert ["r-1", "new", "found by the next tick"] in [cells(x) for x in shown.splitlines()]


@pytest.mark.parametrize(("number", "more"), [(SHOWN, None), (SHOWN + 1, "1"), (5000, "4,980")])
def test_the_first_twenty_orphans_of_a_group_are_shown(number: int, more: str | None) -> None:
    """The rest is counted, for each group by itself; programs get all."""
    many = tuple(orphan(f"r-{each}") for each in range(number))
    status = replace(CALM, orphans=(*many, orphan("other", group="h")))
    shown = render(status)
    assert shown.count("  waiting ") == SHOWN + 1
    assert f"r-{SHOWN - 1} " in shown
    assert f"r-{SHOWN} " not in shown
    assert shown.count(" more") == (more is not None)
    assert more is None or f"and {more} more" in shown
    assert shown.index("group g") < shown.index("group h") < shown.index("other")
    assert len(json.loads(as_json(status))["orphans"]) == number + 1


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Long and wide characters included; ids are folded, not cut."""
    monkeypatch.setenv("COLUMNS", str(width))
    wide = replace(orphan("ä" * 50 + "資" * 20), last_error="word " * 100, next="x" * 300)
    shown = render(replace(CALM, orphans=(wide,)))
    assert max(sum(1 + (each == "資") for each in line) for line in shown.splitlines()) <= width
    assert shown.count("資") == 20
    assert shown.count("x") >= 300


def test_nothing_that_is_shown_drives_the_terminal() -> None:
    """Neither escapes and line breaks in names nor what rich takes for its own markup."""
    evil = replace(orphan("r\x1b[31m\nx[bold]y"), last_error="a\rb\nc\x07 :smile:")
    shown = render(replace(CALM, orphans=(evil,)))
    assert "\x1b" not in shown
    assert r"r\x1b[31m\nx[bold]y" in shown
    assert r"a\rb\nc\x07 :smile:" in shown


def test_why_its_worker_died_stands_beside_what_is_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sentence; programs get a few words to count by as well."""
    monkeypatch.setenv("COLUMNS", "250")
    death = "its last worker was killed by SIGKILL 2 s after its start"
    found = replace(orphan(), cause="killed", death=death)
    lines = [cells(line) for line in render(replace(CALM, orphans=(found,))).splitlines()]
    assert ["r-1", "waiting", "5 min", "2 of 5", orphan().next, death] in lines


def test_a_long_error_is_cut_in_the_table_only() -> None:
    """Its ends tell most."""
    status = replace(CALM, orphans=(replace(orphan(), last_error=f"begin{'-' * 1000}end"),))
    shown = render(status)
    assert "begin" in shown
    assert "end" in shown
    assert shown.count("-") < 300
    assert len(json.loads(as_json(status))["orphans"][0]["last_error"]) == 1008


def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe gets plain text, in wide lines."""
    monkeypatch.setenv("TERM", "xterm-256color")
    assert "\x1b" not in render(CALM)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b[1m" in render(CALM)


def test_programs_get_every_field_under_its_name() -> None:
    """The keys are documented by the records; a change of them breaks whoever reads them."""
    status = replace(CALM, pauses=(PAUSE,), groups=(replace(GROUP, scale_up=ROUNDS),))
    assert json.loads(as_json(status)) == {
        "at": "2026-03-29T01:00:00Z",
        "acting": {"deployment": "", "holder": None, "until": None, "message": "this deployment"},
        "mode": "enforce",
        "auto_restart": True,
        "attached": False,
        "silence": None,
        "doubt": None,
        "pauses": [
            {
                "target": {"scope": "group", "name": "g"},
                "author": "ann",
                "reason": "upgrade",
                "paused_at": "2026-03-29T01:00:00Z",
                "until": "2026-03-29T02:00:00Z",
            }
        ],
        "groups": [
            {
                "name": "g",
                "resources": 3,
                "wanted": 6,
                "live": 4,
                "min_parallelism": None,
                "orphans": 1,
                "starting": 0,
                "given_up": 0,
                "kept": 0,
                "lost_threads": 0,
                "trouble": "orphans",
                "message": None,
                "scale_up": {
                    "rounds": 2,
                    "most": 3,
                    "state": "failed",
                    "next_at": "2026-03-29T01:00:00Z",
                    "last_error": "no room",
                },
            }
        ],
        "orphans": [
            {
                "resource_id": "r-1",
                "group_name": "g",
                "incident_id": 7,
                "state": "waiting",
                "orphaned_since": "2026-03-29T00:55:00Z",
                "attempts_used": 2,
                "max_attempts": 5,
                "cause": None,
                "death": None,
                "last_error": None,
                "next": "attempt 3 of 5 after 2026-03-29 01:00:05 UTC",
                "next_at": "2026-03-29T01:00:05Z",
            }
        ],
        "losses": [],
    }


def test_times_are_utc_to_the_second() -> None:
    """Whatever zone they come in, and however fine they are."""
    elsewhere = datetime(2026, 3, 29, 3, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert json.loads(as_json(replace(CALM, at=elsewhere)))["at"] == "2026-03-29T01:00:00Z"
