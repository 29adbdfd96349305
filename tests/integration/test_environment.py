"""What workers, `optimizer.sh` and clients get in their environment: real processes dump it."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

from dagster_amoro import CommandContainer, Resource, StartFailedError
from dagster_amoro.containers.amoro import local
from dagster_amoro.containers.amoro.flink import FlinkContainer
from dagster_amoro.containers.amoro.local import LocalContainer
from dagster_amoro.containers.amoro.spark import SparkContainer
from dagster_amoro.containers.isolated import IsolatedContainers
from dagster_amoro.containers.processes import end, started_with
from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.errors import ConfigError
from tests.helpers.commands import write_program
from tests.helpers.installation import install
from tests.helpers.waiting import wait_until

SECRET: Final = "hunter2-s3cret"  # noqa: S105 - it is what no child may see
OURS: Final = {  # what Dagster has in its environment
    "KEEPER_DATABASE_PASSWORD": SECRET,
    "AMS_DATABASE_PASSWORD": SECRET,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "DAGSTER_HOME": "/dagster",
    "AMORO_CONF_DIR": "/etc/copied",
    "FLINK_CONF_DIR": "/etc/other-flink",
    "SPARK_HOME": "/opt/other-spark",
    "PYTHONPATH": "/dagster/code",
    "OURS": "1",
}
HOSTS: Final = {  # what programs of this host need
    "HOME": "/home/amoro",
    "LC_TIME": "C",
    "TZ": "Asia/Tokyo",
    "https_proxy": "http://proxy:3128",
}
DUMP: Final = "import json, os, sys; json.dump(dict(os.environ), open({file!r}, 'w'))"
OPTIMIZER: Final = f"""
{DUMP}
def log(name, text):
    folder = next(each for each in sys.argv if each.startswith("-Dlog.home="))[11:]
    with open(os.path.join(folder, name), "a") as file:
        file.write(text)
{{action}}
import time; time.sleep(120)
"""
URI: Final = f"thrift://127.0.0.1:1261?connectTimeout={os.getpid()}"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Dagster's is; its log folder is the test's."""
    for name in ("JAVA_HOME", "LC_CTYPE"):  # Python sets the latter where nobody set a locale
        monkeypatch.delenv(name, raising=False)
    for name, value in {**OURS, **HOSTS, "DAGSTER_HOME": str(tmp_path / "dagster")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(local, "_STAYS_FOR", 0.3)
    monkeypatch.setattr(local, "_APPEARS_WITHIN", 1.0)


def resource(**properties: str) -> Resource:
    """A resource of group g."""
    return Resource(
        resource_id=f"r-{os.getpid()}",
        group_name="g",
        container_name="c",
        thread_count=2,
        memory_mb=0,
        properties={"memory": "64", **properties},
    )


def worker(folder: Path, **properties: str) -> CommandContainer:
    """A container whose workers dump their environment and end."""
    script = DUMP.format(file=str(folder / "dump")).replace("{", "{{").replace("}", "}}")
    command = json.dumps([sys.executable, "-I", "-S", "-c", script])
    given = {"command": command, "log-dir": str(folder), "start-check": "30s", **properties}
    return CommandContainer("c", given)


def dumped(folder: Path) -> dict[str, str]:
    """What the last child of a test had in its environment."""
    found: dict[str, str] = json.loads((folder / "dump").read_text())
    return {name: text for name, text in found.items() if name not in {"LC_CTYPE", "_", "SHLVL"}}


def passed_on(found: Mapping[str, str]) -> set[str]:
    """Which of Dagster's variables a child has."""
    return found.keys() & OURS.keys()


def test_a_worker_gets_what_programs_of_the_host_need(tmp_path: Path) -> None:
    """And what its container says; neither passwords nor places of Dagster's."""
    container = worker(tmp_path, **{"export.REGISTRY": "sqlite:////r.db"})
    container.request_resource(resource())
    found = dumped(tmp_path)
    assert passed_on(found) == set()
    assert SECRET not in found.values()
    assert found.items() >= {**HOSTS, "PATH": os.environ["PATH"]}.items()
    assert found["REGISTRY"] == "sqlite:////r.db"
    assert found.keys() - {"AMORO_LAUNCH_ID"} == container.environment.variables.keys()


def test_a_worker_may_inherit_what_is_named(tmp_path: Path) -> None:
    """What it needs of Dagster's is passed on without being written down; a typo is told."""
    container = worker(tmp_path, environment='["AWS_SECRET_ACCESS_KEY", "OURS", "NOT_SET"]')
    container.request_resource(resource())
    assert passed_on(dumped(tmp_path)) == {"AWS_SECRET_ACCESS_KEY", "OURS"}
    assert container.environment.notes == ("property environment names NOT_SET, which is not set",)


def test_a_worker_may_inherit_everything(tmp_path: Path) -> None:
    """For those who want that; what the container says comes first."""
    container = worker(tmp_path, environment="inherit", **{"export.OURS": "2"})
    container.request_resource(resource())
    found, wanted = dumped(tmp_path), {**os.environ, "OURS": "2"}
    assert {name: found[name] for name in OURS} == {name: wanted[name] for name in OURS}
    assert found.keys() >= os.environ.keys() - {"LC_CTYPE", "_", "SHLVL"}


@pytest.mark.parametrize("value", ["all", "[1]", '{"A": 1}', "true"])
def test_an_environment_that_makes_no_sense_is_refused(tmp_path: Path, value: str) -> None:
    """With what is accepted."""
    with pytest.raises(ConfigError, match=r"'environment' is .*; accepted is inherit, or a JSON"):
        worker(tmp_path, environment=value)


def test_the_process_of_a_container_hands_on_nothing_either(tmp_path: Path) -> None:
    """The calls are made in a process that has all of Dagster's environment, and forks."""
    script = DUMP.format(file=str(tmp_path / "dump")).replace("{", "{{").replace("}", "}}")
    properties = {
        "command": json.dumps([sys.executable, "-I", "-S", "-c", script]),
        "log-dir": str(tmp_path),
        "start-check": "30s",
    }
    entry = ContainerSettings(
        name="c", implementation="dagster_amoro.CommandContainer", properties=properties
    )
    containers = IsolatedContainers({"c": entry})
    try:
        containers.get("c").request_resource(resource())
    finally:
        containers.close()
    assert passed_on(dumped(tmp_path)) == set()
    assert dumped(tmp_path)["HOME"] == HOSTS["HOME"]


# --- Amoro's containers -------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An installation of Amoro whose optimizers dump their environment."""
    yield installed(tmp_path, "")
    end(started_with({"-a": URI}), 0)


def installed(folder: Path, action: str) -> Path:
    """An installation of Amoro whose optimizers do something after that, and stay."""
    program = OPTIMIZER.replace("{file!r}", repr(str(folder / "dump")))
    return install(folder / "amoro", program.replace("{action}", action))


def container(home: Path, **properties: str) -> LocalContainer:
    """The local container of an installation."""
    given = {"ams-home": str(home), "ams-optimizing-uri": URI}
    return LocalContainer("c", {**given, **properties})


def test_optimizer_sh_gets_what_ams_would_give_it(home: Path, tmp_path: Path) -> None:
    """Its own configuration, whatever folder Dagster reads; so `env.sh` holds there."""
    (home / "conf/env.sh").write_text("export FROM_ENV_SH=1\n")
    container(home, **{"export.JAVA_HOME": str(home / "jdk")}).request_resource(resource())
    wait_until((tmp_path / "dump").exists)
    found = dumped(tmp_path)
    assert passed_on(found) == {"AMORO_CONF_DIR"}
    assert found["AMORO_CONF_DIR"] == str(home / "conf")
    assert found["FROM_ENV_SH"] == "1"
    assert found["HOME"] == HOSTS["HOME"]
    assert SECRET not in found.values()


def test_a_configuration_elsewhere_can_be_named(home: Path, tmp_path: Path) -> None:
    """Where AMS has it in another folder than its home's."""
    exports = {"export.JAVA_HOME": str(home / "jdk"), "export.AMORO_CONF_DIR": "/etc/amoro/conf"}
    container(home, **exports).request_resource(resource())
    wait_until((tmp_path / "dump").exists)
    assert dumped(tmp_path)["AMORO_CONF_DIR"] == "/etc/amoro/conf"


@pytest.mark.parametrize("exists", [False, True])
def test_a_java_home_without_java_replaces_no_good_one(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    exists: bool,  # noqa: FBT001 - a case
) -> None:
    """AMS's own file names /opt/java, which is not there, or the folder above that of a Java."""
    java = tmp_path / "opt" / "java"
    if exists:
        (java / "openjdk").mkdir(parents=True)
    monkeypatch.setenv("JAVA_HOME", str(home / "jdk"))
    container(home, **{"export.JAVA_HOME": str(java)}).request_resource(resource())
    wait_until((tmp_path / "dump").exists)
    assert dumped(tmp_path)["JAVA_HOME"] == str(home / "jdk")
    note = f"JAVA_HOME of export.JAVA_HOME is left out: there is no {java}/bin/java"
    assert caplog.messages == [f"container 'c': {note}"]


def test_without_a_good_java_home_that_of_path_is_taken(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the script does it where the variable is not set."""
    monkeypatch.setenv("PATH", f"{home / 'jdk/bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("JAVA_HOME", "/no/such/folder")
    made = container(home, **{"export.JAVA_HOME": "/opt/no-java"})
    made.request_resource(resource())
    wait_until((tmp_path / "dump").exists)
    assert "JAVA_HOME" not in dumped(tmp_path)
    assert len(made.environment.notes) == 2


def test_clients_of_clusters_get_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their exports and where Hadoop is, but no other Flink or Spark than their own."""
    monkeypatch.setenv("HADOOP_CONF_DIR", "/etc/hadoop")
    program = f"{DUMP.format(file=str(tmp_path / 'dump'))}\n"
    program += "print('submitted application_1700000000000_0001')\n"
    for path in ("bin/flink", "bin/spark-submit"):
        write_program(tmp_path / path, program)
    given = {"ams-home": "/opt/amoro", "ams-optimizing-uri": URI, "export.X": "1"}
    flink = FlinkContainer("c", {**given, "flink-home": str(tmp_path)})
    spark = SparkContainer("c", {**given, "spark-home": str(tmp_path), "deploy-mode": "cluster"})
    for each in (flink, spark):
        each.request_resource(resource())
        found = dumped(tmp_path)
        assert passed_on(found) == {"AMORO_CONF_DIR"}
        assert found["AMORO_CONF_DIR"] == "/opt/amoro/conf"
        assert (found["X"], found["HADOOP_CONF_DIR"]) == ("1", "/etc/hadoop")
        (tmp_path / "dump").unlink()


# --- Why a local start failed -------------------------------------------------------------------


def failure(home: Path, **properties: str) -> str:
    """What a start says that fails."""
    exports = {"export.JAVA_HOME": str(home / "jdk")}
    with pytest.raises(StartFailedError) as caught:
        container(home, **{**exports, **properties}).request_resource(resource(**properties))
    return str(caught.value)


def logs_of(home: Path) -> Path:
    """Where the optimizer of the tests writes to."""
    return home / "logs" / f"optimizer-g-r-{os.getpid()}"


def test_a_failed_start_shows_what_the_optimizer_said(tmp_path: Path) -> None:
    """A wrong option of Java, say, which goes nowhere else; not what an earlier one said."""
    home = installed(tmp_path, "sys.exit('Error: Could not create the Java Virtual Machine.')")
    logs = logs_of(home)
    logs.mkdir(parents=True)
    (logs / "optimizer.log.err").write_text("an old error\n" * 100)
    (logs / "optimizer-error.log").write_text("an old log\n")
    said = failure(home)
    assert said.endswith(
        f"\n  | the end of {logs}/optimizer.log.err:\n"
        "  | Error: Could not create the Java Virtual Machine."
    )
    assert "old" not in said


def test_a_failed_start_shows_the_end_of_the_log(tmp_path: Path) -> None:
    """Of the one that was written last, what is new in it, without secrets, and not too much."""
    home = installed(
        tmp_path,
        "log('gc-1.log', 'GC')\n"
        "log('optimizer-info.log', 'x' * 9000 + '\\npassword=swordfish key hunter3\\nthe end')\n"
        "sys.exit(1)",
    )
    logs_of(home).mkdir(parents=True)
    (logs_of(home) / "optimizer-info.log").write_text("an old log\n")
    said = failure(home, **{"fs.s3a.secret.key": "hunter3"})
    assert said.endswith("xxx\n  | password=*** key ***\n  | the end")
    assert f"the end of {logs_of(home)}/optimizer-info.log:\n  | …xxx" in said
    assert "hunter3" not in said
    assert "old" not in said
    assert "GC" not in said
    assert len(said) < 2500


def test_a_start_that_cannot_find_java_says_so(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script itself ends well; what was left out of the environment is told, too."""
    tools = home / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "date", "nohup"):
        (tools / name).symlink_to(shutil.which(name) or name)
    monkeypatch.setenv("PATH", str(tools))
    said = failure(home, **{"export.JAVA_HOME": "/opt/no-java"})
    assert "optimizer.log.err:\n  | nohup: failed to run command" in said
    assert said.endswith(
        "JAVA_HOME of export.JAVA_HOME is left out: there is no /opt/no-java/bin/java"
    )


def test_an_optimizer_that_says_nothing_is_said_to(tmp_path: Path) -> None:
    """And where one may look."""
    home = installed(tmp_path, "sys.exit(0)")
    assert failure(home).endswith(f"\n  | its logs in {logs_of(home)} say nothing")
