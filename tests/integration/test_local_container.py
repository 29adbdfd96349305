import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import uuid4

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dagster_amoro.containers import processes
from dagster_amoro.containers.amoro import local
from dagster_amoro.containers.amoro.local import LocalContainer
from dagster_amoro.containers.processes import end, started_with
from dagster_amoro.core.errors import ContainerError, ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.testing import ContainerContract
from tests.helpers.waiting import wait_until

# No other test's, so that what is left of this one can be found.
URI = f"thrift://127.0.0.1:1261?connectTimeout={os.getpid()}&socketTimeout=2"
GROUP = f"group-{os.getpid()}"

# Stands for the optimizer. Says what it got, and runs until it is ended.
OPTIMIZER: Final = """
import json, os, signal, sys, time
from pathlib import Path
variables = ("OPTIMIZER_LOG_DIR_NAME", "JAVA_HOME", "INHERITED")
arguments = sys.argv[2:]
with Path(sys.argv[1]).open("a") as file:
    got = {"arguments": arguments, **{name: os.environ.get(name) for name in variables}}
    file.write(json.dumps({**got, "pid": os.getpid()}) + "\\n")
if "deaf" in arguments:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "dies" not in arguments:
    time.sleep(120)
"""
# Stands for Amoro's script: starts it in the background, with its arguments as they are, or split
# once more as Amoro's does.
SCRIPT: Final = """#!/bin/bash
HERE="$(cd "$(dirname "$0")"; pwd -P)"
MEMORY=$2
{before}
ARGS=${{@:3}}
nohup "{python}" "$HERE/optimizer.py" "$HERE/got" {arguments} > /dev/null 2>&1 &
echo "Amoro Optimizer started in background with PID $!"
{after}
"""


@dataclass
class Home:
    """An installation of Amoro, as far as starting local optimizers needs one."""

    folder: Path
    extra: dict[str, str] = field(default_factory=dict)  # properties of the container

    def script(
        self,
        *,
        before: str = "",
        after: str = "",
        arguments: str = '"${@:3}" -Xmx"$MEMORY"m',
    ) -> "Home":
        """Writes `optimizer.sh`, with lines of the test's own before and after the start."""
        bin_folder = self.folder / "bin"
        bin_folder.mkdir(parents=True, exist_ok=True)
        (bin_folder / "optimizer.py").write_text(OPTIMIZER)
        script = bin_folder / "optimizer.sh"
        script.write_text(
            SCRIPT.format(before=before, after=after, arguments=arguments, python=sys.executable)
        )
        script.chmod(0o755)
        return self

    @property
    def container(self) -> LocalContainer:
        """The container of this installation."""
        properties = {"ams-home": str(self.folder), "ams-optimizing-uri": URI, **self.extra}
        return LocalContainer("local", properties)

    def starts(self) -> list[dict[str, object]]:
        """What each of the optimizers got, in the order in which they came up."""
        file = self.folder / "bin" / "got"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        return [json.loads(line) for line in lines]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look-alike that ends does so at once."""
    monkeypatch.setattr(local, "_STAYS_FOR", 0.3)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An installation whose optimizers are ended after the test."""
    yield Home(tmp_path / "amoro").script()
    end(started_with({"-a": URI}), 0)


def resource(resource_id: str = "abc", group: str = GROUP, **properties: str) -> Resource:
    """A row; underscores in the names of its properties stand for hyphens."""
    return Resource(
        resource_id=resource_id,
        group_name=group,
        container_name="local",
        thread_count=2,
        memory_mb=0,
        properties={
            "memory": "512",
            **{key.replace("_", "-"): value for key, value in properties.items()},
        },
    )


@pytest.mark.long
class TestContract(ContainerContract):
    """What every container has to do, with processes that a script leaves in the background."""

    container_class = LocalContainer

    @pytest.fixture
    def properties(self, home: Home) -> Mapping[str, str]:
        """Those of this installation."""
        return home.container.properties

    @pytest.fixture
    def hopeless(self, home: Home) -> Mapping[str, str]:
        """Amoro is not there."""
        return {**home.container.properties, "ams-home": str(home.folder / "elsewhere")}

    @pytest.fixture
    def resource(self) -> Resource:
        """Its row says how much memory it gets, as those of AMS do."""
        return resource(f"contract-{uuid4().hex[:8]}")

    @pytest.fixture
    def count(self) -> Callable[[Resource], int]:
        """Optimizers by their command lines."""
        return lambda row: len(local.processes_of(row))

    @pytest.fixture
    def kill(self) -> Callable[[Resource], object]:
        """SIGKILL."""
        return lambda row: end(local.processes_of(row), 0)


def test_a_start_runs_the_script_as_ams_does(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its arguments and the name of the log folder, and nothing of Dagster's environment."""
    monkeypatch.setenv("INHERITED", "1")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert home.container.request_resource(resource(heart_beat_interval="9000")) == {}
    [got] = home.starts()
    assert got["arguments"] == [
        *("-a", URI, "-p", "2", "-g", GROUP, "-hb", "9000", "-id", "abc", "-Xmx1024m")
    ]
    assert got["OPTIMIZER_LOG_DIR_NAME"] == f"optimizer-{GROUP}-abc"
    assert got["INHERITED"] is None
    assert got["JAVA_HOME"] is None
    assert [process.pid for process in started_with({"-id": "abc", "-g": GROUP})] == [got["pid"]]


def test_exports_are_honoured(home: Home) -> None:
    """AMS documents them for this container and ignores them."""
    java = home.folder / "java 17"
    (java / "bin").mkdir(parents=True)
    (java / "bin" / "java").touch()
    home.extra = {"export.JAVA_HOME": str(java)}
    home.container.request_resource(resource())
    assert home.starts()[0]["JAVA_HOME"] == str(java)


def test_a_life(home: Home) -> None:
    """Not there, running, ended; ending what is not there is no error."""
    container, row = home.container, resource()
    assert container.status(row) == "ended"
    container.release_resource(row)
    container.request_resource(row)
    assert container.status(row) == "running"
    container.release_resource(row)
    assert container.status(row) == "ended"
    container.release_resource(row)


def test_another_container_object_ends_it(home: Home) -> None:
    """Nothing is remembered; the process is found by its command line."""
    home.container.request_resource(resource())
    home.container.release_resource(resource())
    assert home.container.status(resource()) == "ended"


def test_others_are_let_be(home: Home) -> None:
    """Those whose id only begins like this one's, and those of other groups."""
    rows = [resource("abc"), resource("abcd"), resource("ab"), resource("abc", f"{GROUP}x")]
    for row in rows:
        home.container.request_resource(row)
    home.container.release_resource(rows[0])
    assert [home.container.status(row) for row in rows] == ["ended", *["running"] * 3]


def test_another_program_with_these_options_is_let_be(home: Home) -> None:
    """A row says which options are looked for; it cannot make an optimizer of what is none."""
    command = [sys.executable, "-c", "import time; time.sleep(60)", "-g", GROUP, "-id", "abc"]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: found({"-g": GROUP, "-id": "abc"}) == [process.pid])
            home.container.release_resource(resource())
            assert home.container.status(resource()) == "ended"
            assert process.poll() is None
        finally:
            process.kill()


def test_a_start_is_not_refused_because_of_an_old_one(home: Home) -> None:
    """Whoever starts releases first; both are ended later."""
    home.container.request_resource(resource())
    home.container.request_resource(resource())
    assert len(started_with({"-id": "abc", "-g": GROUP})) == 2
    home.container.release_resource(resource())
    assert home.container.status(resource()) == "ended"


def test_an_old_one_is_not_taken_for_the_new(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs, and yet the start failed.

    For a moment the new one can be seen: its shell, forked and not yet replaced by its program.
    """
    monkeypatch.setattr(local, "_APPEARS_WITHIN", 0.5)
    home.container.request_resource(resource())
    home.script(arguments="dies -none")
    seen = "no process of it appeared|its process ended at once"
    with pytest.raises(StartFailedError, match=seen):
        home.container.request_resource(resource())


def test_one_that_does_not_heed_is_killed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time is up."""
    monkeypatch.setattr(local, "_PATIENCE", 0.2)
    home.script(arguments='"${@:3}" deaf').container.request_resource(resource())
    wait_until(lambda: len(home.starts()) == 1)
    time_before = time.monotonic()
    home.container.release_resource(resource())
    assert home.container.status(resource()) == "ended"
    assert time.monotonic() - time_before < 5


def test_what_cannot_be_ended_is_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its process id."""
    monkeypatch.setattr(local, "_PATIENCE", 0.1)
    monkeypatch.setattr(processes, "_KILL_WAIT", 0.1)
    home.container.request_resource(resource())
    [process] = started_with({"-id": "abc", "-g": GROUP})
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "send_signal", lambda *_: None)  # as another user's would
        with pytest.raises(ReleaseFailedError, match=rf"still running .*: {process.pid}$"):
            home.container.release_resource(resource())


@pytest.mark.parametrize(
    ("odd", "group"),
    [
        ("a b", 'it\'s "two" words'),
        ("$(touch executed) `touch executed`", "g;touch executed&"),
        ("x | y > executed", "../../g"),
        ("*", "?"),
        ("new\nline\r\nand\ttab", "\\ \r"),
        ("--help", "-id"),
        ("é\U0001f600", "群"),
        ("", "$HOME ${IFS} ~ !x #"),
    ],
)
def test_odd_values_are_single_arguments(home: Home, odd: str, group: str) -> None:
    """And nothing in them is executed."""
    row = resource(f"{os.getpid()}{odd}", group, extend_disk_storage="true", disk_storage_path=odd)
    home.container.request_resource(row)
    [got] = home.starts()
    assert got["arguments"] == [*home.container.arguments(row), "-Xmx1024m"]
    assert home.container.status(row) == "running"
    assert not list(home.folder.rglob("executed"))
    assert not Path("executed").exists()
    home.container.release_resource(row)
    assert home.container.status(row) == "ended"


ARGUMENTS = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(ARGUMENTS, ARGUMENTS, ARGUMENTS)
def test_any_value_is_a_single_argument(
    home: Home, monkeypatch: pytest.MonkeyPatch, group: str, resource_id: str, interval: str
) -> None:
    """And is found again by its command line."""
    monkeypatch.setattr(local, "_STAYS_FOR", 0.0)
    row = resource(resource_id, GROUP + group, heart_beat_interval=interval)
    home.container.request_resource(row)
    wait_until(lambda: home.starts()[-1:] != [] and home.starts()[-1]["pid"] in pids(row))
    assert home.starts()[-1]["arguments"] == [*home.container.arguments(row), "-Xmx1024m"]
    home.container.release_resource(row)
    assert home.container.status(row) == "ended"


def pids(row: Resource) -> list[int]:
    """The processes of a resource."""
    found = started_with({"-g": row.group_name, "-id": row.resource_id})
    return [process.pid for process in found]


def test_a_script_that_fails_is_a_failed_start(home: Home) -> None:
    """AMS ignores its exit code; its output is shown without the secrets of the row."""
    home.script(before='echo "no jars in $0 for swordfish" >&2; exit 3')
    with pytest.raises(StartFailedError) as caught:
        home.container.request_resource(resource(**{"fs.s3a.access.key": "swordfish"}))
    assert re.fullmatch(
        r"optimizer\.sh ended with exit code 3; the end of its output:\n"
        r"  \| no jars in \S+ for \*\*\*\n"
        rf"  \| its logs in {home.folder}/logs/optimizer-{GROUP}-abc say nothing",
        str(caught.value),
    )


def test_an_optimizer_that_dies_at_once_is_a_failed_start(home: Home) -> None:
    """The error says where its logs are, and what the script said."""
    home.script(arguments='"${@:3}" dies', after="echo token=abc")
    with pytest.raises(StartFailedError) as caught:
        home.container.request_resource(resource())
    told = r"background with PID \d+\n  \| token=\*\*\*\n  \| its logs in "
    assert re.search(told, str(caught.value))
    assert "blanks" not in str(caught.value)


def test_its_logs_may_say_why_it_ended(home: Home) -> None:
    """Nobody waits for a process that a script has left in the background."""
    home.container.request_resource(resource())
    wait_until(lambda: home.starts() != [])
    found = home.container.post_mortem(resource())
    assert found is not None
    assert found.text.startswith("its last optimizer, process ")
    home.container.release_resource(resource())
    folder = home.folder / "logs" / f"optimizer-{GROUP}-abc"
    folder.mkdir(parents=True)
    (folder / "optimizer.log.err").write_text("java.lang.OutOfMemoryError: Java heap space\n")
    found = home.container.post_mortem(resource())
    assert found is not None
    assert found.cause == "unknown"
    assert found.text == "its last optimizer is gone from this host; its log may say why"
    assert "java.lang.OutOfMemoryError: Java heap space" in found.log


def test_values_that_amoro_s_script_splits_are_hinted_at(home: Home) -> None:
    """It does so with blanks and wildcards; the optimizer then knows neither option nor group."""
    home.script(arguments="$ARGS dies")
    row = resource(extend_disk_storage="true", disk_storage_path="/data/my folder")
    with pytest.raises(StartFailedError, match="splits arguments at blanks and expands wildcards"):
        home.container.request_resource(row)


def test_a_script_that_hangs_is_killed(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it started."""
    monkeypatch.setattr(local, "_SCRIPT_TIMEOUT", 0.5)
    home.script(after="sleep 60")
    with pytest.raises(StartFailedError, match=r"optimizer\.sh was not over after 0\.5 s"):
        home.container.request_resource(resource())
    wait_until(lambda: home.container.status(resource()) == "ended")


def make_missing(script: Path) -> None:
    """No Amoro here."""
    script.unlink()


def make_plain(script: Path) -> None:
    """It lost its mode."""
    script.chmod(0o644)


def make_folder(script: Path) -> None:
    """Something else is in its place."""
    script.unlink()
    script.mkdir()


@pytest.mark.parametrize("spoil", [make_missing, make_plain, make_folder])
def test_amoro_elsewhere_is_an_obstacle(home: Home, spoil: Callable[[Path], None]) -> None:
    """Not an attempt that fails; what runs nevertheless is seen."""
    assert home.container.supports_auto_restart
    home.container.request_resource(resource("running"))
    spoil(home.folder / "bin" / "optimizer.sh")
    with pytest.raises(ContainerError, match=r"no executable file '.*/bin/optimizer\.sh' on this"):
        assert home.container.supports_auto_restart
    assert home.container.status(resource()) == "unknown"
    assert home.container.status(resource("running")) == "running"
    with pytest.raises(StartFailedError, match="could not be started"):
        home.container.request_resource(resource())


def test_processes_are_found_by_whole_options() -> None:
    """Both of them, each with its value right after it; never this process or its ancestors."""
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    mark = f"mark-{os.getpid()}"
    with subprocess.Popen([*command, "-g", mark, "--", "-id", "1", "x"]) as process:
        try:
            wait_until(lambda: found({"-g": mark, "-id": "1"}) == [process.pid])
            assert found({"-g": mark}) == [process.pid]
            for options in ({"-id": "1", "-g": "1"}, {"-g": mark, "-id": "x"}, {"-g": mark[:-1]}):
                assert found(options) == []
        finally:
            process.kill()
    assert found({"-g": mark}) == []


def found(options: dict[str, str]) -> list[int]:
    """The ids of the processes with these options."""
    return [process.pid for process in started_with(options)]


def test_this_process_and_its_ancestors_are_never_found() -> None:
    """Somebody may have started them with such options."""
    code = (
        "import subprocess, sys, os\n"
        "from dagster_amoro.containers.processes import started_with\n"
        "if len(sys.argv) == 3:\n"
        "    sys.exit(subprocess.run([sys.executable, *sys.orig_argv[1:], 'x']).returncode)\n"
        "sys.exit(len(started_with({'-id': sys.argv[2]})))\n"
    )
    command = [sys.executable, "-c", code, "-id", f"mark-{os.getpid()}"]
    assert subprocess.run(command, check=False).returncode == 0


def test_processes_are_not_looked_for_without_options() -> None:
    """All of them would be found."""
    with pytest.raises(ValueError, match="no option"):
        started_with({})


def test_a_process_is_never_taken_for_another_of_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found once is known by when it was started, too."""
    sleeper = shutil.which("sleep") or ""
    with subprocess.Popen([sleeper, "60"]) as process:
        known = psutil.Process(process.pid)
        began = known.create_time() - 100  # as an earlier process of this id
        monkeypatch.setattr(known, "_ident", (process.pid, began))
        assert end([known], 0) == []
        assert process.poll() is None
        process.kill()


def test_nothing_to_end_takes_no_time() -> None:
    """Neither nothing at all nor what is over."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        known = psutil.Process(process.pid)
    began = time.monotonic()
    assert end([], 60) == end([known], 60) == []
    assert time.monotonic() - began < 5
