"""From nothing, with the tools of Dagster: a project, a component; a killed worker comes back."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
import sqlalchemy as sa
import yaml

from dagster_amoro.demo import fleet as demo
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import optimizer
from tests.helpers.waiting import wait_until
from tests.packaging.environments import build, clean_environment, environment, install, run

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("packaging")]

_RELEASE: Final = version("dagster")
_TOOLS: Final = tuple(
    f"{name}=={_RELEASE}" for name in ("create-dagster", "dagster-dg-cli", "dagster-webserver")
)
_START: Final = """
from dagster_amoro import Resource, declare, load_settings
worker = Resource(
    resource_id="compaction-1", group_name="compaction", container_name="local", thread_count=2,
    memory_mb=0,
)
declare(load_settings(), worker)
"""


class Project:
    """A project that `create-dagster` made, with the programs of its environment."""

    def __init__(self, folder: Path, programs: Path, home: Path) -> None:
        self.folder = folder
        self.programs = programs
        self.home = home
        self.registry = home / "registry.db"
        self.file = folder / "src" / "amoro_project" / "defs" / "fleet" / "defs.yaml"

    @property
    def variables(self) -> dict[str, str]:
        """What its commands find in the environment."""
        marked = demo.environment(self.home)
        del marked["AMORO_CONF_DIR"]  # everything is said in the project
        path = os.pathsep.join([str(self.programs), os.environ["PATH"]])
        return {**marked, "PATH": path, "VIRTUAL_ENV": str(self.programs.parent)}

    def dg(self, *arguments: str) -> str:
        """What a command of `dg` prints."""
        return run([self.programs / "dg", *arguments], self.folder, **self.variables)

    def refused(self, *arguments: str) -> str:
        """What a command of `dg` prints that fails."""
        with pytest.raises(AssertionError) as caught:
            self.dg(*arguments)
        return str(caught.value)

    def python(self, script: str) -> None:
        """Runs a script where the project's packages are."""
        run([self.programs / "python", "-c", script], self.folder, **self.variables)

    def write(self, **attributes: Any) -> None:  # noqa: ANN401 - of YAML
        """Writes the component's file."""
        document = {
            "type": "dagster_amoro.KeeperComponent",
            "attributes": attributes,
            "requirements": {"env": ["AMS_DATABASE_URL"]},
        }
        self.file.write_text(yaml.safe_dump(document, sort_keys=False))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project from nothing, with a component from the scaffolder."""
    wheel = build("wheel", tmp_path_factory.mktemp("wheel"))
    folder = tmp_path_factory.mktemp("component").resolve()
    programs = environment(folder / "venv", wheel, *_TOOLS, locked=False)
    run([programs / "create-dagster", "project", "amoro-project", "--no-uv-sync"], folder)
    home = folder / "home"
    (home / "dagster").mkdir(parents=True)
    made = Project(folder / "amoro-project", programs, home)
    (home / "dagster" / "dagster.yaml").write_text((demo.CONF / "dagster.yaml").read_text())
    install(programs, "--no-deps", "--editable", str(made.folder))
    made.dg("scaffold", "defs", "dagster_amoro.KeeperComponent", "fleet")
    return made


def of_the_demo() -> dict[str, Any]:
    """The settings of the demo, as the attributes of a component."""
    settings = yaml.safe_load((demo.CONF / "config.yaml").read_text(encoding="utf-8"))
    settings["ams"]["database"]["url"] = "{{ env.AMS_DATABASE_URL }}"
    return {"name": "fleet", **settings}


def test_dg_knows_the_component(project: Project) -> None:
    """It is in the list, and what the scaffolder writes is right."""
    assert "dagster_amoro.KeeperComponent" in project.dg("list", "components")
    assert "name: fleet" in project.file.read_text()
    project.dg("check", "yaml")
    project.dg("check", "defs")


def test_a_typo_is_told_with_its_line(project: Project) -> None:
    """Of a key, at any depth, however it is written."""
    for wrong, right in (
        ("auto-restart-enabeld: true", "auto-restart-enabled: true"),
        ("claim-timout: 1min", "claim-timeout: 1min"),
        ("conatiner-impl:", "container-impl:"),
    ):
        project.write(**of_the_demo())
        text = project.file.read_text()
        assert right in text
        project.file.write_text(text.replace(right, wrong))
        line = next(n for n, each in enumerate(text.splitlines(), 1) if right in each)
        said = project.refused("check", "yaml")
        assert wrong.partition(":")[0] in said
        assert re.search(rf"defs\.yaml:{line}\b", said) or f"{line} |" in said, said


def test_the_definitions_are_listed(project: Project) -> None:
    """All of them load, under the name of the keeper."""
    project.write(**of_the_demo())
    project.dg("check", "yaml")
    project.dg("check", "defs")
    listed = json.dumps(json.loads(project.dg("list", "defs", "--json")))
    for name in ("fleet/orphan_history", "fleet_restart_orphans", "fleet_orphan_sensor"):
        assert f'"{name}"' in listed


@contextmanager
def developing(project: Project) -> Iterator[Path]:
    """Runs `dg dev`; gives the file with what it prints."""
    said = project.home / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [str(project.programs / "dg"), "dev", "--port", "0"],
            cwd=project.folder,
            env=clean_environment(**project.variables),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield said
        assert process.poll() is None, said.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        finally:
            demo.stop_all(project.home)


def test_a_killed_worker_comes_back(project: Project) -> None:
    """Under `dg dev`, with nothing but the attributes of the component."""
    project.write(**of_the_demo())
    project.python(_START)
    database = Database(sa.URL.create("sqlite", database=str(project.registry)), "registry")

    def registered() -> str:
        """The token of the worker; "" where none is registered."""
        with database.reading() as connection:
            return connection.scalar(sa.select(optimizer.c.token)) or ""

    try:
        with developing(project):
            wait_until(lambda: registered() != "")
            before = registered()
            killed: list[str] = []
            wait_until(lambda: kill(project.home, killed))
            wait_until(lambda: registered() not in {"", before})
    finally:
        database.close()


def kill(home: Path, killed: list[str]) -> bool:
    """Kills the worker, once it is known which process that is."""
    for process in demo.processes(home):
        try:
            if "dagster_amoro.demo.worker" in process.cmdline():
                process.kill()
                killed.append(str(process.pid))
        except psutil.Error:
            continue
    return bool(killed)
