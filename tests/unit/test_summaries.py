"""What somebody reads first: short, harmless, and the worst of it first."""

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagster_amoro.config import Mode
from dagster_amoro.core.model import State
from dagster_amoro.core.pauses import EVERYTHING, Pause
from dagster_amoro.core.texts import in_markdown
from dagster_amoro.healing.status import GIVEN_UP, LossStatus, Status
from dagster_amoro_audit import summaries
from tests.helpers.attacks import SPELLINGS, TEXTS, acts
from tests.unit.test_status import CALM, GROUP, NOW, PAUSE, orphan

LINKS = summaries.Links(runs={7: "run-7"})
DEATH = "its last worker was killed by SIGKILL 42 s after its start"
WELL = replace(GROUP, live=6, orphans=0, trouble=None)


def lost(name: str = "l-1", **changes: Any) -> LossStatus:  # noqa: ANN401 - any field
    """A resource of two threads that was given up."""
    made = LossStatus(
        resource_id=name,
        group_name="g",
        incident_id=3,
        state=State.EXHAUSTED,
        threads=2,
        attempts=3,
        lost_at=NOW - timedelta(minutes=9),
        cause="exit 3",
        death="its last worker ended with exit code 3 2 s after its start",
        last_error=None,
    )
    return replace(made, **changes)


def read(status: Status) -> list[str]:
    """The lines as a person reads them: what is escaped as it is, links by their names."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", summaries.of_fleet(status, LINKS))
    return re.sub(r"\\(.)", r"\1", text).replace("*", "").split("\n")


def rows(table: dg.MetadataValue[Any]) -> list[list[str]]:
    """The cells of a table."""
    assert isinstance(table, dg.TableMetadataValue)
    return [[str(cell) for cell in record.data.values()] for record in table.records]


def test_a_fleet_that_is_well_says_so_in_a_line() -> None:
    """With the moment, which is not that at which somebody looks."""
    status = replace(CALM, groups=(WELL,), orphans=())
    assert read(status) == ["all is well; 6 of 6 threads live, at 2026-03-29 01:00:00 UTC"]


def test_the_story_of_an_orphan_is_told_at_once() -> None:
    """Which worker, why, what happens next and when, and where one sees and does more."""
    status = replace(CALM, orphans=(replace(orphan(), death=DEATH),))
    head, _, *lines = read(status)
    assert head.startswith("1 orphan; 4 of 6 threads live")
    assert [line.rstrip() for line in lines] == [
        "r-1 of group g:",
        DEATH,
        "next: attempt 3 of 5 after 2026-03-29 01:00:05 UTC",
        "history of g · run and its log · restart now",
    ]


def test_what_is_lost_is_told_until_somebody_has_seen_to_it() -> None:
    """A group that has lost two workers is not well."""
    group = replace(WELL, given_up=2, lost_threads=4, trouble=GIVEN_UP)
    status = replace(CALM, groups=(group,), orphans=(), losses=(lost(), lost("l-2")))
    head, _, first, *_ = read(status)
    assert head.startswith("2 given up, 4 threads fewer than declared; 6 of 6 threads live")
    assert first.startswith("l-2 given up at 2026-03-29 00:51:00 UTC")
    text = summaries.of_fleet(status, summaries.Links())
    assert "[restore](/guess/keeper_restore/playground/setup?config=" in text
    assert "[acknowledge](/guess/keeper_acknowledge/playground/setup?config=" in text
    assert group.condition == "2 given up, 4 threads fewer than declared"
    kept = replace(group, kept=1, trouble="orphans")
    said = "orphans; 2 given up, 1 out of attempts and kept, 4 threads fewer than declared"
    assert kept.condition == said


def test_what_keeps_things_from_happening_is_told_first() -> None:
    """A dry run, no restarts, no answer of AMS, no writable registry, and pauses."""
    everywhere = replace(PAUSE, target=EVERYTHING, until=None)
    status = replace(
        CALM,
        mode=Mode.DRY_RUN,
        auto_restart=False,
        silence="refused",
        doubt="a standby",
        pauses=(PAUSE, everywhere),
        orphans=(),
    )
    lines = [line.rstrip() for line in read(status) if line]
    assert lines[1:] == [
        "dry run: nothing is started or removed",
        "auto-restart is off: nothing is restarted",
        "AMS does not answer, so nothing is concluded: refused",
        "nothing is concluded from the registry: a standby",
        "group g is paused by ann until 2026-03-29 02:00:00 UTC:",
        "upgrade · resume",
        "everything is paused by ann: upgrade",
    ]


def test_the_worst_comes_first_and_the_rest_is_counted() -> None:
    """By the attempts that are used up, then by age; in the tables as in the lines."""
    orphans = [replace(orphan(f"r-{n}"), attempts_used=n % 5) for n in range(40)]
    groups = [replace(WELL, name=f"g-{n}", orphans=n, trouble="orphans") for n in range(40)]
    status = replace(CALM, orphans=tuple(orphans), groups=tuple(groups))
    assert [each.resource_id for each in summaries.worst(status)][:3] == ["r-14", "r-19", "r-24"]
    assert read(status)[-1].endswith(" more")
    for table, first in (
        (summaries.orphans_table(status), "r-14"),
        (summaries.groups_table(status), "g-39"),
    ):
        records = rows(table)
        assert records[0][0] == first
        assert records[-1] == ["and 30 more", *[""] * (len(records[0]) - 1)]
        assert len(records) == 11


def test_of_one_group_only_that_is_told() -> None:
    """And the pauses that hold there."""
    other = replace(GROUP, name="h", wanted=100, live=1)
    of_others = replace(PAUSE, target=replace(PAUSE.target, name="h"))
    status = replace(
        CALM,
        groups=(GROUP, other),
        orphans=(orphan(), orphan("r-2", "h")),
        losses=(lost(group_name="h"),),
        pauses=(of_others, replace(PAUSE, target=EVERYTHING)),
    )
    only = summaries.only(status, "g")
    assert summaries.headline(only) == "1 orphan, 1 pause; 4 of 6 threads live"
    assert "r-2" not in summaries.of_group(status, "g", LINKS)


NAMES = st.sampled_from([*TEXTS.values(), *SPELLINGS.values()]) | st.text(max_size=120)


@given(names=st.lists(NAMES, max_size=5), error=NAMES, group=NAMES, author=NAMES)
@example(
    names=[],
    error="hunter2\nAbCd==\n-----END OPENSSH PRIVATE KEY-----",
    group="g",
    author="-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----",
)
def test_whatever_is_in_names_and_errors_it_is_shown_and_does_not_act(
    names: list[str], error: str, group: str, author: str
) -> None:
    """Neither as Markdown nor as HTML, nor on a terminal; it is short, and no line is too long."""
    orphans = [
        replace(orphan(name, group), death=error, last_error=error, next=error) for name in names
    ]
    pause = Pause(target=PAUSE.target, author=author, reason=error, paused_at=NOW, until=None)
    status = replace(
        CALM,
        silence=error,
        pauses=(pause,),
        groups=(replace(GROUP, name=group, message=error),),
        orphans=tuple(orphans),
        losses=tuple(lost(name, group_name=group, last_error=error) for name in names),
    )
    text = summaries.of_fleet(status, LINKS)
    assert len(text) < summaries.HIDDEN
    assert acts(text) == []
    assert "hunter2" not in text
    bare = re.sub(r"\]\(/[^)\s]*\)", "]", text)  # links of ours, which `test_pages` looks at
    assert not re.search(r"(?<!\\)[<>`!&#|~]|(?<!\\)https?:", re.sub(r"\\\\", "", bare))
    for line in bare.replace("\\", "").split("\n"):
        assert len(line) < 260
    for table in (summaries.groups_table, summaries.orphans_table, summaries.losses_table):
        for row in rows(table(status)):
            assert acts(" ".join(row)) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("etl-2", r"etl\-2"),
        ("![w](https://x)", r"\!\[w\]\(https\:\/\/x\)"),
        ("<b>&amp;", r"\<b\>\&amp\;"),
        ("a\nb", r"a\\nb"),
        ("`x`", r"\`x\`"),
    ],
)
def test_no_sign_means_anything_in_markdown(text: str, shown: str) -> None:
    """By a backslash before each, as CommonMark has it."""
    assert in_markdown(text) == shown
