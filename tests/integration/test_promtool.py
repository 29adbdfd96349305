"""What Prometheus's own tool says of the metrics, and of the rules on the page on alerting."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from dagster_amoro.healing import openmetrics
from tests.helpers.fleet import fleet, with_settings

PAGE: Final = (Path(__file__).parents[2] / "docs" / "alerting.md").read_text(encoding="utf-8")
(RULES,) = (text for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if "alert: " in text)
OF_ETL: Final = '{keeper="fleet", group="etl"}'
# The series of a rule, a value a minute; when it is quiet and when it fires, with which labels.
SERIES: Final[Mapping[str, tuple[Mapping[str, str], str, str, Mapping[str, str]]]] = {
    "KeeperIsGone": (
        {'dagster_amoro_last_survey_timestamp_seconds{keeper="fleet"}': "0x30"},
        "15m",
        "16m",
        {"keeper": "fleet"},
    ),
    "MetricsAreOld": (
        {'node_textfile_mtime_seconds{file="/var/lib/dagster_amoro.prom"}': "0x30"},
        "15m",
        "16m",
        {"file": "/var/lib/dagster_amoro.prom"},
    ),
    # The group is new, and its first loss is its first incident: nothing was counted before.
    "GivenUp": (
        {f"dagster_amoro_lost_resources{OF_ETL}": "_x4 1x30"},
        "3m",
        "5m",
        {"keeper": "fleet", "group": "etl"},
    ),
    "ThreadsMissing": (
        {
            f"dagster_amoro_threads_live{OF_ETL}": "2x60",
            f"dagster_amoro_threads_wanted{OF_ETL}": "4x60",
        },
        "29m",
        "31m",
        {"keeper": "fleet", "group": "etl"},
    ),
}


def promtool(*arguments: str | Path, given: str = "") -> str:
    """What the tool says; an AssertionError where it finds a fault."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("there is no promtool on PATH (Debian: apt-get install prometheus)")
    done = subprocess.run(
        [tool, *arguments],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_it_finds_no_fault_in_the_metrics(tmp_path: Path) -> None:
    """In their format, names, texts and units."""
    with fleet(tmp_path) as world:
        world.services = with_settings(world.services, notes_surveys=True)
        world.worker("w-1")
        world.tick()
        file = tmp_path / "dagster_amoro.prom"
        openmetrics.write(world.services.metrics.read(), file)
    assert "dagster_amoro_orphans" in file.read_text()
    assert promtool("check", "metrics", given=file.read_text()) == ""


def test_each_rule_fires_when_it_is_to(tmp_path: Path) -> None:
    """And not before; what it then says has numbers."""
    (tmp_path / "rules.yaml").write_text(RULES)
    rules: Sequence[dict[str, Any]] = yaml.safe_load(RULES)["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == SERIES.keys()
    promtool("check", "rules", tmp_path / "rules.yaml")
    tests = [_test_of(rule) for rule in rules]
    (tmp_path / "tests.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests})
    )
    assert "SUCCESS" in promtool("test", "rules", tmp_path / "tests.yaml")


def _test_of(rule: Mapping[str, Any]) -> dict[str, Any]:
    name = rule["alert"]
    series, quiet, loud, labels = SERIES[name]
    summary = (
        rule["annotations"]["summary"]
        .replace("{{ $value | humanizeDuration }}", "16m 0s")
        .replace("{{ $labels.group }}", "etl")
        .replace("{{ $value }}", {"GivenUp": "1", "ThreadsMissing": "2"}.get(name, ""))
    )
    alert = {
        "exp_labels": {**labels, **rule["labels"]},
        "exp_annotations": {"summary": summary},
    }
    return {
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "alert_rule_test": [
            {"eval_time": quiet, "alertname": name, "exp_alerts": []},
            {"eval_time": loud, "alertname": name, "exp_alerts": [alert]},
        ],
    }
