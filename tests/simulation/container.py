"""The container: it starts made-up workers, and fails to, as the history says."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn, Protocol

from dagster_amoro.containers.base import Container
from dagster_amoro.core.container_settings import CallLimits
from dagster_amoro.core.errors import (
    ContainerError,
    OverdueError,
    ReleaseFailedError,
    StartFailedError,
)
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import PostMortem
from tests.simulation.actors import Stage, StartOutcome, Telling

TIMEOUT: Final = timedelta(minutes=1)  # of a start, and of a stop
SECRET: Final = "hunter2"  # noqa: S105 - it opens nothing
ENDS: Final = {
    Telling.KILLED: PostMortem("killed", "it was killed", "ready"),
    Telling.FAILED: PostMortem("exit 3", "it ended with exit code 3"),
    Telling.LOST_HOST: PostMortem("lost host", "its host is gone"),
    Telling.UNKNOWN: PostMortem("unknown", "nobody saw it"),
    Telling.NOTHING: None,
    Telling.SECRET: PostMortem(
        f"password={SECRET}", f"sasl.key={SECRET}", f"--db-password {SECRET}"
    ),
    Telling.CONTROLS: PostMortem("\x1b[2J", "w\u202e\0\ud800\n9999-12-31 forged", "\x1b]0;x\x07"),
    Telling.HUGE: PostMortem("c" * 9_999, "t " * 99_999, "l\n" * 99_999),
}
SLOW: Final = timedelta(seconds=50)  # a start that takes nearly as long


@dataclass(kw_only=True)
class Launch:
    """A worker that was started; it may live and register, or not."""

    launch_id: str
    resource_id: str
    group: str
    threads: int = 1
    token: str | None = None  # of its optimizer row
    is_alive: bool = True
    is_settled: bool = False  # the turn that started it has ended with that
    is_lost: bool = False  # nobody can know of it any more
    is_ending: bool = False  # it was told to end, and somebody waits for that
    has_registered: bool = False  # at any time
    registered_dying: bool = False  # its row is there, and nobody will touch it
    returned_at: datetime | None = None  # when the call that started it was over


class Watcher(Protocol):
    """Who sees each start and stop, and says how it ends."""

    stage: Stage
    now: datetime

    def check_request(self, resource: Resource) -> None:
        """Before each start."""

    def check_release(self, launch: Launch) -> None:
        """Before each stop."""

    def note_launch(self, launch: Launch) -> None:
        """After a worker was started."""

    def hang(self, span: timedelta) -> None:
        """Returns when so much time has passed."""


class FakeContainer:
    """Starts made-up workers, and stops the one that a resource's properties name."""

    supports_auto_restart = True
    limits = CallLimits(start_timeout=TIMEOUT, stop_timeout=TIMEOUT)

    def __init__(self, history: Watcher) -> None:
        self._history: Final = history
        self.launches: Final[list[Launch]] = []
        self.tells = Telling.NOTHING

    def launch(self, resource_id: str, group: str, threads: int = 1) -> Launch:
        """A new worker."""
        launch_id = f"launch-{len(self.launches)}"
        new = Launch(launch_id=launch_id, resource_id=resource_id, group=group, threads=threads)
        self.launches.append(new)
        return new

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Takes its time, then does what the step of the history says."""
        self._history.check_request(resource)
        self._history.stage.pause()
        step = self._history.stage.step
        outcome = step.outcome
        if step.hangs and outcome is not StartOutcome.STARTS:
            self._hang()
        if outcome is StartOutcome.FAILS:
            raise StartFailedError("told to fail")
        if outcome is StartOutcome.EXITS:
            sys.exit(3)
        if outcome is StartOutcome.FAILS_UNSPEAKABLY:
            raise OSError("half a character \ud800 and a NUL \0")
        new = self.launch(resource.resource_id, resource.group_name, resource.thread_count)
        new.is_lost = outcome is StartOutcome.STARTS_AND_FAILS or step.hangs
        self._history.note_launch(new)
        if step.hangs:
            self._hang()
        if outcome is StartOutcome.STARTS_AND_FAILS:
            raise OSError("no answer after the start")
        if step.is_slow:
            self._history.hang(SLOW)
        new.returned_at = self._history.now
        startup: dict[str, Any] = {"launch": new.launch_id}
        if outcome is StartOutcome.STARTS_UNSTORABLY:
            startup["odd"] = "half a character \ud800"
        return startup

    def release_resource(self, resource: Resource) -> None:
        """Ends the worker that the properties name, and takes its time afterwards."""
        self._history.stage.check_alive()
        step = self._history.stage.step
        named = [x for x in self.launches if x.launch_id == resource.properties.get("launch")]
        for launch in named:
            launch.is_ending = launch.is_alive and not step.refuses
            self._history.check_release(launch)
            launch.is_lost = launch.is_lost or step.refuses
            if step.refuses and not step.hangs:
                raise ReleaseFailedError("told to fail")
            launch.is_alive = step.refuses and launch.is_alive
        try:
            if step.hangs:
                self._hang()
            self._history.stage.pause()
        finally:
            for launch in named:
                launch.is_ending = False

    def post_mortem(self, resource: Resource) -> PostMortem | None:
        """What the history has it tell of all ends."""
        if self.tells is Telling.HANGS:
            raise OverdueError("told to hang")
        if self.tells is Telling.RAISES:
            raise RuntimeError(f"{resource.resource_id}: token={SECRET}")
        return ENDS[self.tells]

    def _hang(self) -> NoReturn:
        self._history.hang(TIMEOUT)
        raise OverdueError("told to hang")


class FakeContainers:
    """The one container, which can opt out, under its name."""

    def __init__(self, container: Container) -> None:
        self._container: Final = container
        self.opts_out = False

    def get(self, name: str) -> Container:
        """The container."""
        if name != "c":
            raise ContainerError(f"there is no container {name!r}")
        return self._container

    def obstacle(self, name: str | None) -> str | None:
        """Whether it opts out."""
        return f"container {name!r} opts out" if self.opts_out or name != "c" else None

    def tend(self) -> None:
        """Nothing is to be done from time to time."""

    def close(self) -> None:
        """Calls end with the step in which they are made."""
