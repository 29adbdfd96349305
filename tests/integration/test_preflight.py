"""`dagster-amoro check`: what it shows, what it hides, and that it changes nothing."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
import yaml
from click.testing import Result

from dagster_amoro.cli import UNUSABLE, main
from dagster_amoro.core.model import Resource
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.migrations import VERSION_TABLE
from dagster_amoro.stores.registry import Registry, resource_group
from tests.helpers.attached import Amoro, amoro
from tests.helpers.commands import command_runner
from tests.helpers.waiting import wait_until

SECRET = "hunter2-s3cret"  # noqa: S105 - it is what must not be seen
FLINK = "org.apache.amoro.server.manager.FlinkOptimizerContainer"


@pytest.fixture
def running(postgresql_url: sa.URL, tmp_path: Path) -> Iterator[Amoro]:
    """An Amoro with an orphan in group g and a healthy resource in group h."""
    with amoro(postgresql_url, tmp_path) as found:
        found.resources("dead")
        found.resources("alive", group="h")
        found.optimizers("alive", group="h")
        found.execute(
            sa.insert(resource_group),
            [{"group_name": name, "container_name": "local"} for name in ("h", "empty")],
        )
        yield found


def check(running: Amoro, *options: str) -> Result:
    """The command, as a terminal runs it."""
    arguments = ["--conf-dir", str(running.folder / "conf"), "check", *options]
    return command_runner().invoke(main, arguments)


def reconfigure(running: Amoro, change: Callable[[dict[str, Any]], object]) -> None:
    """The operator edits config.yaml."""
    file = running.folder / "conf/config.yaml"
    conf = yaml.safe_load(file.read_text())
    change(conf)
    file.write_text(yaml.safe_dump(conf))


def tables(running: Amoro) -> list[str]:
    """The tables of the database."""
    engine = sa.create_engine(running.url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        return sa.inspect(connection).get_table_names()


def test_it_shows_what_would_be_restarted_with_which_command(running: Amoro) -> None:
    """Per group: the orphans, else an example; and that all is well."""
    result = check(running)
    assert result.exit_code == 0, result.output
    java, conf = running.folder / "jdk", running.folder / "conf"
    log = "OPTIMIZER_LOG_DIR_NAME=optimizer-g-dead"
    sets = f"{log} AMORO_CONF_DIR={conf} JAVA_HOME={java}"
    script = running.folder / "bin/optimizer.sh"
    address = f"thrift://127.0.0.1:{running.ams.thrift_port}"
    for line in (
        f"ok       AMS: answers at 127.0.0.1:{running.ams.thrift_port}",
        "ok       version of AMS: 0.9.0-incubating(abc1234)",
        "group g: 1 resource, 1 orphan",
        "  orphan dead would be started with",
        f"    {sets} {script} start 128 -a {address} -p 2 -g g -id dead",
        "    unlike AMS: AMS would not set JAVA_HOME: it gives local optimizers no export.*",
        "group h: 1 resource, 0 orphans",
        "  if it died, alive would be started with",
        "group empty: 0 resources, 0 orphans",
        "nothing to be put right; nothing was changed",
    ):
        assert line in result.output.splitlines(), result.output


def test_it_names_what_programs_get_and_shows_no_value(
    running: Amoro, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And which Java that is, compared with AMS's own where AMS runs here."""
    monkeypatch.setenv("https_proxy", f"http://u:{SECRET}@proxy")
    monkeypatch.setenv("AMS_OTHER", SECRET)
    output = check(running).output
    (line,) = (each for each in output.splitlines() if "its programs get" in each)
    assert line.startswith("ok       container local: its programs get AMORO_CONF_DIR, ")
    assert {"HOME", "JAVA_HOME", "PATH", "https_proxy"} <= set(re.split(r"[, ]+", line))
    assert "AMS_OTHER" not in line
    assert SECRET not in output
    java = running.folder / "jdk/bin/java"
    assert f"container local: Java is {java}; no process of AMS can be read here" in output


def test_the_java_of_ams_is_compared(running: Amoro) -> None:
    """A process of AMS hands its environment on to its optimizers, so that one is looked at."""
    ours, theirs = running.folder / "jdk", running.folder / "other"
    (theirs / "bin").mkdir(parents=True)
    main = "org.apache.amoro.server.AmoroServiceContainer"
    argv = [sys.executable, "-c", "import time; time.sleep(120)", main]
    for home, grade in ((ours, "ok"), (theirs, "warning")):
        amoro_home = {"AMORO_HOME": str(running.folder)}  # that of an AMS of another test differs
        with subprocess.Popen(argv, env={"JAVA_HOME": str(home), **amoro_home}) as ams:
            wait_until(lambda: main in psutil.Process(ams.pid).cmdline())
            output = check(running).output
            ams.kill()
        line = f"{grade:8} container local: Java is {ours}/bin/java; AMS (process {ams.pid}) gives"
        assert f"{line} its own {home}/bin/java" in output, output


def test_a_java_home_without_java_is_warned_of(
    running: Amoro, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of AMS's own file; the good one that is there is kept."""
    monkeypatch.setenv("JAVA_HOME", str(running.folder / "jdk"))
    properties = {"export.JAVA_HOME": "/opt/no-java"}
    reconfigure(running, lambda conf: conf["containers"][0].update(properties=properties))
    result = check(running)
    note = "JAVA_HOME of export.JAVA_HOME is left out: there is no /opt/no-java/bin/java"
    assert f"warning  container local: {note}" in result.output
    assert f"container local: Java is {running.folder}/jdk/bin/java" in result.output
    assert "unlike AMS" not in result.output
    assert result.exit_code == 0


def test_what_a_shell_would_make_of_a_command_is_told(running: Amoro) -> None:
    """AMS quotes nothing; here each value stays one argument."""
    running.resources("odd", group="empty", **{"shutdown-timeout-ms": "1;reboot"})
    output = check(running).output
    assert "unlike AMS: AMS's shell would not pass on as they stand: '1;reboot'" in output
    entry = {
        "name": "local",
        "container-impl": FLINK,
        "properties": {"flink-home": "/opt/flink", "flink-conf.a": "$b"},
    }
    reconfigure(running, lambda conf: conf.update(containers=[entry]))
    output = check(running).output
    assert "unlike AMS: AMS's shell would expand the options a" in output
    assert "unlike AMS: AMS would start nothing: without any export.* its command line" in output


def test_a_dry_run_shows_the_same(running: Amoro) -> None:
    """What it would do were it none: that is what one looks for before one ends it."""
    before = check(running).output.partition("ok       registry")
    reconfigure(running, lambda conf: conf.update(keeper={"mode": "dry-run"}))
    assert check(running).output.partition("ok       registry") == before


def test_it_changes_nothing(running: Amoro) -> None:
    """No table is created, no row written, nothing started."""
    before = tables(running)
    assert check(running).exit_code == 0
    assert tables(running) == before
    assert "keeper_incident" not in before
    assert running.ams.registrations == []


def test_programs_get_json(running: Amoro) -> None:
    """With the same content."""
    message = json.loads(check(running, "--json").output)
    assert message["good"] is True
    groups = {group["name"]: group for group in message["groups"]}
    (restart,) = groups["g"]["restarts"]
    assert restart["command"].endswith("-g g -id dead")
    assert groups["h"]["example"]["resource_id"] == "alive"


def test_many_orphans_are_counted_and_some_shown(running: Amoro) -> None:
    """A terminal is not for a thousand commands."""
    running.resources(*(f"d{number}" for number in range(20)))
    output = check(running).output
    assert "group g: 21 resources, 21 orphans" in output
    assert output.count("would be started with") == 6
    assert "and 16 more orphans" in output


def test_a_silent_ams_is_a_problem(running: Amoro) -> None:
    """The exit code says so to scripts, and the text where it was looked for."""
    running.ams.stop()
    result = check(running)
    assert result.exit_code == 1
    assert f"problem  AMS: 127.0.0.1:{running.ams.thrift_port}" in result.output
    assert "set keeper.ams-version" in result.output
    assert "2 to be put right" in result.output or "3 to be put right" in result.output


def test_a_database_that_is_away_is_a_problem(running: Amoro) -> None:
    """Nothing else is hidden by it."""
    reconfigure(
        running,
        lambda conf: conf["ams"].update(
            database={"type": "postgres", "url": "jdbc:postgresql://127.0.0.1:1/amoro"}
        ),
    )
    result = check(running)
    assert result.exit_code == 1
    assert "problem  registry postgresql+psycopg://127.0.0.1:1/amoro: " in result.output
    assert "ok       AMS: answers" in result.output


def test_secrets_are_hidden(running: Amoro) -> None:
    """In commands, requests, errors and addresses."""
    running.execute(sa.insert(resource_group), {"group_name": "s", "container_name": "local"})
    running.resources("s", group="s", **{"flink-conf.s3.secret-key": SECRET})
    entry = {
        "name": "local",
        "container-impl": FLINK,
        "properties": {
            "flink-home": "/opt/flink",
            "export.AWS_SECRET_ACCESS_KEY": SECRET,
            "export.JVM_ARGS": f"-Dpassword={SECRET}",
            "flink-conf.security.ssl.rest.keystore-password": SECRET,
        },
    }
    reconfigure(running, lambda conf: conf.update(containers=[entry]))
    for options in ((), ("--json",)):
        output = check(running, *options).output
        assert "AWS_SECRET_ACCESS_KEY=***" in output
        assert "s3.secret-key=***" in output
        assert SECRET not in output


def test_what_a_shell_would_have_expanded_is_pointed_out(running: Amoro) -> None:
    """AMS's shell did; here nothing does."""
    properties = {"flink-home": "/opt/flink", "export.HADOOP_CLASSPATH": "$(hadoop classpath)"}
    entry = {"name": "local", "container-impl": FLINK, "properties": properties}
    reconfigure(running, lambda conf: conf.update(containers=[entry]))
    result = check(running)
    assert "warning  container local: property export.HADOOP_CLASSPATH" in result.output
    assert result.exit_code == 0


def test_an_unusable_configuration_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    """And the error that names file and key."""
    (tmp_path / "config.yaml").write_text("ams: {database: {type: oracle}}")
    result = command_runner().invoke(main, ["--conf-dir", str(tmp_path), "check"])
    assert result.exit_code == UNUSABLE
    assert "ams.database.type is 'oracle'" in result.stderr


def test_a_standalone_fleet_that_never_ran_is_well(tmp_path: Path) -> None:
    """Its database does not exist yet, and does not after the check."""
    (tmp_path / "config.yaml").write_text(
        """
        ams:
          database: {type: sqlite, url: "sqlite:///r.db"}
          optimizer: {auto-restart-enabled: true}
        containers:
          - name: w
            container-impl: dagster_amoro.CommandContainer
            properties: {command: [sleep, "{resource_id}"]}
        """
    )
    result = command_runner().invoke(main, ["--conf-dir", str(tmp_path), "check"])
    assert result.exit_code == 0, result.output
    assert "the first tick creates" in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


def test_a_program_that_is_not_there_is_a_problem(tmp_path: Path) -> None:
    """Before a worker dies; and the check says how many are declared."""
    (tmp_path / "config.yaml").write_text(
        """
        ams:
          database: {type: sqlite, url: "sqlite:///r.db"}
          optimizer: {auto-restart-enabled: true}
        containers:
          - name: w
            container-impl: dagster_amoro.CommandContainer
            properties: {command: [no-such-worker]}
        fleet:
          groups:
            - {name: g, container: w, workers: 3}
        """
    )
    result = command_runner().invoke(main, ["--conf-dir", str(tmp_path), "check"])
    assert result.exit_code == 1
    assert "container w: its program 'no-such-worker' is not there" in result.output
    assert "fleet: 3 workers in 1 group declared; dagster-amoro apply --dry-run" in result.output
    assert [file.name for file in tmp_path.iterdir()] == ["config.yaml"]


@pytest.fixture
def standalone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fleet of processes with an SQLite file, and the home of a Dagster."""
    (tmp_path / "config.yaml").write_text(
        """
        ams:
          database: {type: sqlite, url: "sqlite:///r.db"}
          optimizer: {auto-restart-enabled: true}
        containers:
          - name: w
            container-impl: dagster_amoro.CommandContainer
            properties: {command: [sleep, "600"]}
        """
    )
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return tmp_path


def test_what_belongs_to_one_host_is_warned_of_where_runs_have_hosts_of_their_own(
    standalone: Path,
) -> None:
    """By what Dagster's own file says of its run launcher: it works, but not as it was meant."""
    (standalone / "dagster.yaml").write_text("run_launcher: {class: K8sRunLauncher}")
    result = command_runner().invoke(main, ["--conf-dir", str(standalone), "check"])
    assert result.exit_code == 0, result.output
    doubt = "runs are launched by K8sRunLauncher, each on a host of its own"
    for subject in ("container w", f"registry sqlite:///{standalone}/r.db", "audit"):
        assert f"warning  {subject}: {doubt}: " in result.output


def test_in_a_pod_a_server_and_an_object_store_are_not_warned_of(
    running: Amoro, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others reach them as well."""
    reconfigure(running, lambda conf: conf.update(keeper={"audit-storage": "s3://b/audit"}))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert "this host is a pod" not in check(running).output


def test_workers_of_another_host_are_warned_of(standalone: Path) -> None:
    """By what their rows say: from here nobody sees or stops them."""
    database = Database(sa.URL.create("sqlite", database=str(standalone / "r.db")), "registry")
    registry = Registry(database, timedelta(minutes=1))
    worker = Resource(
        resource_id="w-1",
        group_name="g",
        container_name="w",
        thread_count=1,
        memory_mb=0,
        properties={"command-host": "elsewhere"},
    )
    add(registry, worker)
    database.close()
    result = command_runner().invoke(main, ["--conf-dir", str(standalone), "check"])
    assert result.exit_code == 0, result.output
    line = "warning  container w: its workers were started on 1 other host (elsewhere) as well"
    assert line in result.output


def test_what_ams_would_refuse_is_left_alone(running: Amoro) -> None:
    """The check says it, as a tick would."""
    running.execute(sa.delete(resource_group).where(resource_group.c.group_name == "g"))
    lines = check(running).output.splitlines()
    why = "its group g is not in resource_group, so that AMS would refuse its registration"
    assert f"  orphan dead would be left alone: {why}" in lines
    assert "  if it died, alive would be started with" in lines


def test_a_ledger_that_a_newer_version_wrote_is_a_problem(running: Amoro) -> None:
    """As after a step back to an older version, whose ticks would all abstain."""
    with closing(Database(running.url, "ledger")) as database:
        assert Ledger(database).open_incidents() == []
    assert check(running).exit_code == 0
    running.execute(sa.text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))  # noqa: S608
    result = check(running)
    assert result.exit_code == 1
    assert (
        "the ledger has schema version '9999', which this dagster-amoro does not" in result.output
    )
