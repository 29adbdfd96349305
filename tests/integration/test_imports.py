"""What a command loads, as a fresh process; and the benchmark that says what it costs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    *("dagster", "pandas", "numpy", "matplotlib", "pyarrow", "alembic", "thriftpy2"),
    *("kubernetes", "requests"),
)
SCRIPT = """
import json, sys
from dagster_amoro.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""
BUILD = """
import json, sys
from pathlib import Path
from dagster_amoro.config import load_settings
from dagster_amoro.code_location import build_definitions
build_definitions(load_settings(Path(sys.argv[1]))).resolve_all_job_defs()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
CONFIG = """
ams:
  database: {type: sqlite, url: "sqlite:///registry.db"}
containers:
  - name: local
    container-impl: dagster_amoro.CommandContainer
    properties: {command: [sleep, "{resource_id}"]}
"""


def loaded_by(*arguments: str) -> set[str]:
    """The packages that a command has loaded when it ends."""
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


def test_help_loads_no_database_either() -> None:
    """It is shown at once."""
    assert loaded_by("--help").isdisjoint((*HEAVY, "sqlalchemy", "yaml", "pydantic", "rich"))


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_status_loads_nothing_heavy(tmp_path: Path, options: tuple[str, ...]) -> None:
    """What draws tables is loaded for a table only."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    loaded = loaded_by("--conf-dir", str(tmp_path), "status", *options)
    assert loaded.isdisjoint(HEAVY)
    assert ("rich" in loaded) is not bool(options)


@pytest.mark.parametrize("options", [(), ("--file", "amoro.prom")])
def test_metrics_load_nothing_heavy(tmp_path: Path, options: tuple[str, ...]) -> None:
    """They are asked for again and again."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    named = [str(tmp_path / each) if each.endswith(".prom") else each for each in options]
    assert loaded_by("--conf-dir", str(tmp_path), "metrics", *named).isdisjoint((*HEAVY, "rich"))


def test_definitions_load_nothing_heavy_before_it_is_used(tmp_path: Path) -> None:
    """Neither Dagster nor we load what draws charts, holds frames, migrates, starts or pings."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    heavy = {*HEAVY, "PIL", "upath", "fsspec", "rich"} - {"dagster"}
    assert heavy.intersection(json.loads(done.stdout)) == set()
