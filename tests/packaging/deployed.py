"""What `deploy/` describes: its processes, as Compose and systemd have them, and on this host."""

import os
import re
import shlex
import signal
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, Final

import psutil
import yaml

from dagster_amoro.containers.processes import LAUNCH_VARIABLE, WITNESS_VARIABLE
from tests.helpers.waiting import wait_until
from tests.packaging.environments import CHECKOUT

DEPLOY: Final = CHECKOUT / "deploy"
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
# The service of Compose and the unit of systemd that are one process.
UNITS: Final = {"code-location": "code", "daemon": "daemon", "web-server": "web"}
_SET_BY_HAND: Final = re.compile(r"\$\{(\w+):\?[^}]*\}")
_STOP_SECONDS: Final = 60


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process of a deployment, as a file describes it."""

    command: Sequence[str]
    environment: Mapping[str, str]
    check: Sequence[str] = ()  # a command that ends with 0 where it is well
    needs: Sequence[str] = ()  # what is to be well before it starts


def of_compose(secrets: Mapping[str, str]) -> dict[str, Process]:
    """The services of Compose by name, but for PostgreSQL; `secrets` are what `.env` has."""
    return {
        name: Process(
            command=service["command"],
            environment={
                key: _SET_BY_HAND.sub(lambda found: secrets[found[1]], value)
                for key, value in service["environment"].items()
            },
            check=service["healthcheck"]["test"][1:],
            needs=[each for each in service["depends_on"] if each != "postgres"],
        )
        for name, service in COMPOSE["services"].items()
        if name != "postgres"
    }


def unit(name: str) -> Mapping[str, Sequence[str]]:
    """The settings of a unit of systemd, each with all that is said of it."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in (DEPLOY / f"systemd/dagster-amoro-{name}.service").read_text().splitlines():
        key, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found[key].append(value)
    return found


def of_systemd() -> dict[str, Process]:
    """The units of systemd, by the name of the service of Compose that is the same process."""
    found = {}
    for service, name in UNITS.items():
        settings = unit(name)
        lines = list(settings["Environment"])
        for file in settings["EnvironmentFile"]:
            lines += (DEPLOY / "systemd" / Path(file).name).read_text().splitlines()
        pairs = (line.split("=", 1) for line in lines if not line.startswith("#"))
        (command,) = settings["ExecStart"]
        found[service] = Process(command=shlex.split(command), environment=dict(pairs))
    return found


@dataclass
class Deployed:
    """The services of Compose as processes of this host, without containers around them.

    What is a path, an address or a port in a container is another one here, as `here` says.
    """

    folder: Path
    programs: Path  # the folder of the programs that the image would have
    services: Mapping[str, Process]
    here: Mapping[str, str]  # by what the files have, what stands for it
    quicker: Mapping[str, str]  # variables of the environment of the code location
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)

    @property
    def order(self) -> list[str]:
        """The services, each after those that it needs."""
        needs = {name: service.needs for name, service in self.services.items()}
        return list(TopologicalSorter(needs).static_order())

    def placed(self, text: str) -> str:
        """A text of the files, with what is here."""
        names = "|".join(map(re.escape, sorted(self.here, key=len, reverse=True)))
        return re.sub(rf"(?<!\w)(?:{names})(?!\w)", lambda found: self.here[found[0]], text)

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a service, and what a system gives each program."""
        given = {key: self.placed(text) for key, text in self.services[name].environment.items()}
        quicker = self.quicker if name == "code-location" else {}
        path = f"{self.programs}{os.pathsep}{os.defpath}"
        return {**given, **quicker, "PATH": path, "HOME": str(self.folder), "LANG": "C.UTF-8"}

    def start(self, name: str) -> None:
        """Starts a service, and waits until its own check says that it is well."""
        service = self.services[name]
        with self._log(name).open("ab") as log:
            self._running[name] = process = subprocess.Popen(
                [self.placed(each) for each in service.command],
                cwd=self.folder / "home",
                env=self.environment(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                executable=self.programs / service.command[0],
            )
        wait_until(lambda: process.poll() is not None or not self.run(name, *service.check)[0])
        assert process.poll() is None, self.log(name)

    def run(self, name: str, *command: str) -> tuple[int, str]:
        """The exit code and the output of a command in the place of a service."""
        program, *arguments = map(self.placed, command)
        done = subprocess.run(
            [self.programs / program, *arguments],
            cwd=self.folder / "home",
            env=self.environment(name),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout

    def stop(self, name: str) -> None:
        """Ends the process of a service alone, as systemd does with `KillMode=process`."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_SECONDS)

    def end_container(self, name: str) -> None:
        """Ends a service with all that it has started, as the end of its container does."""
        while found := [each for each in self.processes() if self._is_within(each, name)]:
            _kill(found)
        self._running.pop(name).wait()

    def end(self) -> None:
        """Ends all of it, wherever it is."""
        while found := [*self.processes()]:
            _kill(found)
        for process in self._running.values():
            process.wait()

    def processes(self) -> dict[psutil.Process, str]:
        """All that runs with the programs of this deployment on its PATH.

        With the id of the launch of a worker that it belongs to; empty: to none.
        """
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables, is_over = process.environ(), process.status() == psutil.STATUS_ZOMBIE
                if variables.get("PATH", "").startswith(str(self.programs)) and not is_over:
                    marks = map(variables.get, (LAUNCH_VARIABLE, WITNESS_VARIABLE))
                    found[process] = next(filter(None, marks), "")
        return found

    def log(self, name: str) -> str:
        """What a service has printed."""
        return self._log(name).read_text(errors="replace")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _is_within(self, process: psutil.Process, name: str) -> bool:
        """Whether a process was started by a service: all but what the other services are."""
        others = {each.pid for other, each in self._running.items() if other != name}
        with suppress(psutil.NoSuchProcess):
            lineage = {process.pid, *(each.pid for each in process.parents())}
            return not lineage & others
        return False


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=_STOP_SECONDS)
