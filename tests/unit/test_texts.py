"""Texts of others, made harmless in one place; and that there is no other way out."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.asset_keys import group_name, partition_key
from dagster_amoro.core.errors import ContainerError, describe
from dagster_amoro.core.texts import (
    CONTINUED,
    Shown,
    fenced,
    harmless,
    in_one_line,
    shown,
    shown_json,
    shown_lines,
)
from tests.helpers.attacks import FORGED, TEXTS, acts

ROOT: Final = Path(__file__).parents[2]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_no_text_acts_on_what_shows_it(text: str) -> None:
    """Nor does an error, a line of a report, a cell, or a name."""
    for made in (
        shown(text),
        describe(ContainerError(text)),
        describe(ValueError(text)),
        shown_lines([text]),
        shown_json({"x": [text]}),
        partition_key(text),
    ):
        assert acts(made) == []
    assert "\n" not in in_one_line(text)
    assert group_name(partition_key(text)) == text


@given(st.text())
def test_whatever_is_shown_is_harmless(text: str) -> None:
    """And stays as it is when it is shown again."""
    once = harmless(text)
    assert acts(once) == []
    assert harmless(once) == once
    assert all(line.startswith(CONTINUED) for line in once.split("\n")[1:])
    assert acts(in_one_line(text)) == []
    assert "\n" not in in_one_line(text)


@given(st.text(st.characters(categories=["L", "M", "N", "P", "S", "Zs"], codec="utf-8")))
def test_what_people_write_stays_as_it_is(text: str) -> None:
    """In every script there is."""
    assert harmless(text) == text


def test_what_was_hidden_can_be_seen() -> None:
    """Somebody wonders why an id is not found; the answer must not be invisible."""
    assert harmless("a\x1b[31m\u202eb\tc\x9b\n\nd\r\ne\n") == (
        r"a\x1b[31m\u202eb    c\x9b" + "\n  | \n  | d\n  | e"
    )


@given(st.recursive(st.text() | st.integers() | st.none(), st.lists))
def test_json_holds_what_it_held(value: object) -> None:
    """Programs read it: what people must not see raw is escaped, not replaced."""
    text = shown_json({"x": value})
    assert json.loads(text) == {"x": value}
    assert acts(text) == []


def test_json_holds_no_secrets() -> None:
    """Wherever they stand in it."""
    told = shown_json({"a": [{"b": "password=hunter2"}]}, indent=2)
    assert "hunter2" not in told


@given(st.text(st.sampled_from("`~a\n ")))
def test_no_text_ends_the_block_that_it_is_in(text: str) -> None:
    """A fence is longer than every run of backticks within it."""
    first, *lines, last = fenced(text).split("\n")
    assert first == last
    assert set(first) == {"`"}
    assert not [line for line in lines if line.strip().startswith(first)]


def test_what_is_ours_is_not_marked_as_continued() -> None:
    """A report of several lines goes out as it was made, and its parts do not."""
    report = shown_lines(["ours", f"theirs\n{FORGED}"])
    assert shown(report) is report
    assert report == f"ours\ntheirs\n{CONTINUED}{FORGED}"
    assert shown(f"{report}!") == f"ours\n{CONTINUED}theirs\n{CONTINUED}{FORGED}!"


# What hands a text to somebody, and the only functions that may, by their modules.
SINKS: Final = {
    *("echo", "secho", "print", "Failure", "RunRequest", "get_dagster_logger", "SkipReason"),
    *("SensorResult", "AssetObservation", "AssetCheckResult", "AssetCheckEvaluation"),
    *("log.info", "log.warning", "log.error", "log.debug", "log.exception", "log.critical"),
    *("_LOG.info", "_LOG.warning", "_logger.info", "_logger.warning", "logger.warning"),
    *(
        "MetadataValue.text",
        "MetadataValue.md",
        "MetadataValue.json",
        "MetadataValue.path",
        "stdout.write",
    ),
}
EXITS: Final = {
    "orchestration/dagster_amoro/telling.py": {
        *("log: log.info", "warn: get_dagster_logger", "failure: Failure"),
        *("text: MetadataValue.text", "block: MetadataValue.md"),
    },
    "orchestration/dagster_amoro/cli/__init__.py": {"_say: echo"},
    # Dagster's records with parts that are texts; `shown`, or `telling`, stands at each.
    "orchestration/dagster_amoro/defs/sensor.py": {
        *("_request: RunRequest", "_idle: SensorResult", "_result: SensorResult"),
    },
    "orchestration/dagster_amoro/defs/fleet_sensor.py": {
        *("fleet_sensor: SensorResult", "_request: RunRequest"),
    },
    "orchestration/dagster_amoro/defs/restart_job.py": {"restart_orphan: AssetObservation"},
    "orchestration/dagster_amoro/defs/metrics.py": {"news: AssetObservation"},
    "assets/dagster_amoro_audit/checks.py": {
        *("audit_checks: AssetCheckResult", "evaluation: AssetCheckEvaluation"),
    },
    "assets/dagster_amoro_audit/audit_sensor.py": {
        *("_request: RunRequest", "audit_sensor: SensorResult"),
    },
    "assets/dagster_amoro_audit/alert_sensor.py": {"alert_sensor: SensorResult"},
    "orchestration/dagster_amoro/defs/operator_jobs.py": {"_show_status: MetadataValue.json"},
    # Constant texts, or errors that `describe` has been through.
    "client/dagster_amoro_worker/cli.py": {"_beat: echo"},
    "client/dagster_amoro_worker/heartbeat.py": {
        *("_try_to_beat: _LOG.warning", "_try_to_beat: _LOG.info", "_unregister: _LOG.info"),
    },
    "orchestration/dagster_amoro/containers/amoro/base.py": {"request_resource: _logger.warning"},
    "orchestration/dagster_amoro/containers/command/container.py": {"_spawn: _logger.warning"},
    "orchestration/dagster_amoro/containers/amoro/flink_conf.py": {"read_conf: _logger.warning"},
    "orchestration/dagster_amoro/config/__main__.py": {": print"},
    "orchestration/dagster_amoro/demo/__main__.py": {"_say: print"},
    "orchestration/dagster_amoro/demo/worker.py": {"_work: print", "main: print"},
    # Of a console that only captures.
    "orchestration/dagster_amoro/healing/status_table.py": {"render: print"},
    "assets/dagster_amoro_audit/metadata.py": {"_sketch: MetadataValue.md"},
    "assets/dagster_amoro_audit/fleet_status.py": {"summary: MetadataValue.md"},
    "assets/dagster_amoro_audit/pictures.py": {"keep: MetadataValue.path"},
}


def sinks(file: Path) -> Iterator[str]:
    """The calls of a module that hand out a text, each with the innermost function it stands in."""
    inside: dict[ast.AST, str] = {}
    for node in ast.walk(ast.parse(file.read_text())):  # outer ones come first
        name = node.name if isinstance(node, ast.FunctionDef) else inside.get(node, "")
        for child in ast.iter_child_nodes(node):
            inside[child] = name
        if isinstance(node, ast.Call):
            called = ".".join(ast.unparse(node.func).split(".")[-2:])
            found = {called, called.rpartition(".")[2]} & SINKS
            yield from (f"{inside.get(node, '')}: {each}" for each in found)


def test_texts_go_out_through_few_doors() -> None:
    """Whoever adds another one makes sure that `shown` stands at it, and names it here."""
    found = {
        str(file.relative_to(ROOT)): exits
        for package in ("orchestration", "assets", "client")
        for file in (ROOT / package).rglob("*.py")
        if (exits := set(sinks(file)))
    }
    assert found == EXITS


def test_nothing_calls_itself_shown_but_here() -> None:
    """Only what went through the one place, or is made of such texts, says it is harmless."""
    makers = {
        "/".join(file.relative_to(ROOT).parts[1:])
        for package in ("orchestration", "assets", "client")
        for file in (ROOT / package).rglob("*.py")
        if "Shown(" in file.read_text()
    }
    assert makers == {
        *("dagster_amoro_worker/texts.py", "dagster_amoro_worker/errors.py"),
        *("dagster_amoro/core/texts.py", "dagster_amoro/config/load.py"),
        "dagster_amoro/healing/status_table.py",  # a table of cells, each of which is
        "dagster_amoro/healing/openmetrics.py",  # words of ours and labels, each of which is
    }
    assert isinstance(shown("x"), Shown)
