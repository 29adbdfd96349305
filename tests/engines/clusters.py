"""Which engines are there for the tests, and how does a test get a cluster of its own?

`make engines` installs them. The clusters listen on loopback addresses only, on ports of their own.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import requests
import yaml

from tests.helpers.waiting import wait_until

_ROOT: Final = Path(__file__).parents[2]
_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 90  # several times what a busy machine needs
_LOG_CHARACTERS: Final = 3_000  # how much of a log explains why something did not start
_OPEN_BUFFERS: Final = "--add-opens=java.base/sun.nio.ch=ALL-UNNAMED"
_ON_PATH: Final = {"java": "openjdk-17-jdk-headless", "node": "nodejs"}  # and Debian's package
_INSTALLED: Final = {
    "flink": ("Flink", "flink/bin/flink"),
    "spark": ("Spark", "spark/bin/spark-submit"),
    "kubernetes": ("Kubernetes", "kubernetes/node_modules/@ngrok/webernetes/package.json"),
    "job": ("optimizer job", "optimizer-job.jar"),
}
_NEEDS: Final = {
    "java": ("java",),
    "flink": ("java", "flink", "job"),
    "spark": ("java", "spark", "job"),
    "kubernetes": ("node", "kubernetes"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class FlinkSession:
    """A Flink session cluster that runs."""

    home: Path  # FLINK_HOME
    conf_dir: Path  # FLINK_CONF_DIR; its config.yaml names the REST port
    rest_port: int

    @property
    def rest_url(self) -> str:
        """Where its REST API is, without a slash at the end."""
        return f"http://{_HOST}:{self.rest_port}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SparkStandalone:
    """A Spark standalone cluster that runs."""

    home: Path  # SPARK_HOME
    master_url: str  # for spark-submit in client mode
    rest_port: int  # `spark://` with this port is for spark-submit in cluster mode

    @property
    def rest_url(self) -> str:
        """Where its submissions API is, without a slash at the end."""
        return f"http://{_HOST}:{self.rest_port}"

    @property
    def rest_master_url(self) -> str:
        """The `--master` of spark-submit in cluster mode with `spark.master.rest.enabled`."""
        return f"spark://{_HOST}:{self.rest_port}"


def engines_folder() -> Path:
    """Where the engines are: `DAGSTER_AMORO_ENGINES`, or where `make engines` puts them."""
    return Path(os.environ.get("DAGSTER_AMORO_ENGINES") or _ROOT / ".dagster-amoro" / "engines")


def job_jar() -> Path:
    """The optimizer job, which has the main classes that Amoro's own jars have."""
    return engines_folder() / "optimizer-job.jar"


def missing(*parts: str) -> str | None:
    """Why a test cannot run that needs these parts: java, flink, spark or kubernetes."""
    reasons = (_reason(need) for part in parts for need in _NEEDS[part])
    return next((reason for reason in reasons if reason), None)


@contextmanager
def flink_session(folder: Path) -> Iterator[FlinkSession]:
    """A session cluster with eight slots, whose files are all in `folder`."""
    home = engines_folder() / "flink"
    rpc_port, rest_port = _free_ports(2)
    session = FlinkSession(home=home, conf_dir=folder / "conf", rest_port=rest_port)
    shutil.copytree(home / "conf", session.conf_dir)
    config = _flink_config(home, folder, rpc_port, rest_port)
    (session.conf_dir / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {
        "FLINK_CONF_DIR": str(session.conf_dir),
        "FLINK_LOG_DIR": str(folder / "log"),
        "FLINK_PID_DIR": str(folder),
    }
    commands = {
        name: [str(home / "bin" / f"{name}.sh"), "start-foreground"]
        for name in ("jobmanager", "taskmanager")
    }
    with _running(commands, environment, folder) as processes:
        _wait_for(processes, f"{session.rest_url}/overview", "slots-total")
        yield session


@contextmanager
def spark_standalone(folder: Path) -> Iterator[SparkStandalone]:
    """A master with its REST port, and a worker that pretends to have room for many drivers."""
    home = engines_folder() / "spark"
    port, rest_port, web_port = _free_ports(3)
    spark = SparkStandalone(home=home, master_url=f"spark://{_HOST}:{port}", rest_port=rest_port)
    for name in ("conf", "tmp"):
        (folder / name).mkdir(parents=True)
    environment = {
        "SPARK_HOME": str(home),
        "SPARK_CONF_DIR": str(folder / "conf"),
        "SPARK_LOCAL_IP": _HOST,
        "SPARK_LOCAL_DIRS": str(folder / "tmp"),
        # for drivers too: without the first, none starts in cluster mode on Java 17
        "JDK_JAVA_OPTIONS": f"{_OPEN_BUFFERS} -Djava.io.tmpdir={folder / 'tmp'}",
        "SPARK_MASTER_OPTS": _java_properties(_spark_config(rest_port)),
    }
    deploy = [str(home / "bin" / "spark-class"), "org.apache.spark.deploy"]
    listening = ["--host", _HOST, "--port", str(port), "--webui-port", str(web_port)]
    room = ["--cores", "16", "--memory", "32g", "--work-dir", str(folder / "work")]
    worker = ["--host", _HOST, "--webui-port", "0", *room, spark.master_url]
    commands = {
        "master": [deploy[0], f"{deploy[1]}.master.Master", *listening],
        "worker": [deploy[0], f"{deploy[1]}.worker.Worker", *worker],
    }
    with _running(commands, environment, folder) as processes:
        _wait_for(processes, f"http://{_HOST}:{web_port}/json/", "aliveworkers")
        yield spark


@dataclass(frozen=True, slots=True)
class _Process:
    started: subprocess.Popen[bytes]
    log: Path

    def check(self) -> None:
        """Fails where it has ended."""
        code = self.started.poll()
        if code is not None:
            log = self.log.read_text(errors="replace")[-_LOG_CHARACTERS:]
            raise AssertionError(f"{self.log.stem} ended with {code}: {log}")


def _reason(need: str) -> str | None:
    if need in _ON_PATH:
        found = shutil.which(need) is not None
        package = _ON_PATH[need]
        return None if found else f"there is no {need} on PATH (Debian: apt-get install {package})"
    name, path = _INSTALLED[need]
    folder = engines_folder()
    if (folder / path).exists():
        return None
    shown = folder.relative_to(_ROOT) if folder.is_relative_to(_ROOT) else folder
    return f"there is no {name} in {shown} (make engines)"


def _flink_config(home: Path, folder: Path, rpc_port: int, rest_port: int) -> dict[str, Any]:
    shipped = yaml.safe_load((home / "conf" / "config.yaml").read_text())
    (folder / "tmp").mkdir()
    return {
        "env.java.opts.all": shipped["env"]["java"]["opts"]["all"],  # needed by Java 17
        "io.tmp.dirs": str(folder / "tmp"),
        "web.tmpdir": str(folder / "tmp"),
        "jobmanager.rpc.address": _HOST,
        "jobmanager.rpc.port": rpc_port,
        "jobmanager.bind-host": _HOST,
        "jobmanager.memory.process.size": "1024m",
        "taskmanager.host": _HOST,
        "taskmanager.bind-host": _HOST,
        "taskmanager.numberOfTaskSlots": 8,
        "taskmanager.memory.process.size": "1024m",
        "taskmanager.memory.managed.size": "16m",
        "cluster.registration.error-delay": "200ms",  # not 10 s for who comes before the other
        "rest.address": _HOST,
        "rest.bind-address": _HOST,
        "rest.port": rest_port,
        "web.refresh-interval": 100,  # ms; otherwise a cancelled job reads RUNNING for seconds
    }


def _spark_config(rest_port: int) -> dict[str, object]:
    return {
        "spark.master.rest.enabled": "true",
        "spark.master.rest.host": _HOST,
        "spark.master.rest.port": rest_port,
        "spark.deploy.defaultCores": 1,  # or the first application takes all
    }


def _java_properties(config: Mapping[str, object]) -> str:
    return " ".join(f"-D{key}={value}" for key, value in config.items())


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _running(
    commands: Mapping[str, Sequence[str]], environment: Mapping[str, str], folder: Path
) -> Iterator[list[_Process]]:
    """Processes side by side, each with a log in `folder`; they end with all their children."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(_process(command, environment, folder / f"{name}.log"))
            for name, command in commands.items()
        ]


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[_Process]:
    with log.open("wb") as output:
        started = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a group of its own: drivers and executors are in it
        )
    try:
        yield _Process(started, log)
    finally:
        with suppress(ProcessLookupError):  # it ended by itself
            os.killpg(started.pid, signal.SIGKILL)  # nothing of it is to be kept
        started.wait()


def _wait_for(processes: Sequence[_Process], url: str, count: str) -> None:
    """Until the JSON at `url` has a `count` above zero."""
    with requests.Session() as session:
        session.trust_env = False  # no proxy stands before a loopback address

        def ready() -> bool:
            for process in processes:
                process.check()
            try:
                answer = session.get(url, timeout=5)
                return answer.ok and answer.json()[count] > 0
            except (requests.ConnectionError, requests.Timeout):
                return False

        wait_until(ready, _START_SECONDS)
