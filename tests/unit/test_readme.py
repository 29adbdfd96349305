"""The README and the page on operating, as far as they can be wrong."""

import re
from pathlib import Path

import dagster as dg
import pytest

from dagster_amoro.cli import main
from dagster_amoro.core.groups import min_parallelism
from dagster_amoro.healing.assembly import Services

CHECKOUT = Path(__file__).parents[2]
README = (CHECKOUT / "README.md").read_text()
OPERATING = (CHECKOUT / "docs" / "operations.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README + OPERATING, re.DOTALL)


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuration, workers and a merged code location, as written there."""
    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "config.yaml").write_text(
        text.replace("/var/lib/fleet", str(tmp_path)).replace(
            "command: [my-worker,",
            f"log-dir: {tmp_path}\n      start-check: 0s\n      command: ['true',",
        )
    )
    monkeypatch.setenv("AMORO_CONF_DIR", str(tmp_path))
    names: dict[str, object] = {}
    for block in CODE:
        exec(block, names)  # noqa: S102 - our own words
    keeper = names["keeper"]
    assert isinstance(keeper, Services)
    assert keeper.registry.read_snapshot().resources == 4
    assert [min_parallelism(group) for group in keeper.registry.sized_groups().values()] == [8]
    keeper.registry.database.close()
    defs = names["defs"]
    assert isinstance(defs, dg.Definitions)
    assert defs.resolve_sensor_def("orphan_sensor").default_status is dg.DefaultSensorStatus.RUNNING


def test_the_commands_and_jobs_are_there() -> None:
    """Whatever is to be typed can be typed, and each verb is a job as well."""
    commands = set(re.findall(r"(?m)(?:^|`)dagster-amoro ([a-z-]+)", README + OPERATING))
    assert commands == set(main.commands)
    jobs = set(re.findall(r"`(keeper_\w+)`", OPERATING))
    assert jobs == {f"keeper_{name.replace('-', '_')}" for name in main.commands} - {"keeper_check"}
