"""What was started for a resource on this host, and where is that written down?

Whoever starts a worker may be killed at any moment, also between starting it and saying so. So
the launch is recorded on disk before it is made and once more with its process, and a lock keeps
two starts of one resource from doing that at the same time.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dagster_amoro.containers.output import end_of, file_stem, opened
from dagster_amoro.containers.processes import Launch
from dagster_amoro.core.errors import describe

_TAIL_LINES: Final = 20
_TAIL_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class Record:
    """What is written down before and after a start."""

    launch: Launch
    previous: str | None  # the launch id in the resource's properties at that time


def launch_of(properties: Mapping[str, str]) -> Launch | None:
    """The launch that a resource's properties name; None if they name none."""
    keys = ("launch-id", "host", "pid", "started-at")
    return Launch.parse(*(properties.get(f"command-{key}") for key in keys))


def properties_of(launch: Launch) -> dict[str, str]:
    """The start-up properties of a launch; `launch_of` reads them."""
    return {
        "command-pid": str(launch.pid),
        "command-started-at": repr(launch.started_at),
        "command-host": str(launch.host),
        "command-launch-id": str(launch.launch_id),
    }


def launches_of(properties: Mapping[str, str], record: Record | None) -> list[Launch]:
    """The launches that are a resource's: the one it names, and the recorded one if it is.

    A record belongs to the launch that it followed. So the launch of a run that died before it
    could save it is found, while one that was overtaken by a newer launch does not reach that.
    """
    named = launch_of(properties)
    launch_id = named.launch_id if named else None
    follows = record is not None and launch_id in (record.launch.launch_id, record.previous)
    return distinct(named, record.launch if record and follows else None)


def distinct(*launches: Launch | None) -> list[Launch]:
    """The launches in their order, each once."""
    return [launch for launch in dict.fromkeys(launches) if launch]


def dump_record(record: Record) -> str:
    """The record as JSON text."""
    launch = record.launch
    own = {"launch_id": launch.launch_id, "previous": record.previous, "host": launch.host}
    return json.dumps({**own, "pid": launch.pid, "create_time": launch.started_at})


def parse_record(text: str) -> Record:
    """The record in a JSON text; a ValueError says that it is none."""
    try:
        values: dict[str, Any] = json.loads(text)
        pid, started_at = str(values["pid"]), str(values["create_time"])
        launch = Launch.parse(values["launch_id"], values["host"], pid, started_at)
        previous = values["previous"]
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError(describe(error)) from error
    if launch is None or not isinstance(launch.launch_id, str):
        raise ValueError("it names no launch")
    return Record(launch, previous)


class LaunchFiles:
    """The log, the launch record and the lock of one resource; an OSError if one cannot be used."""

    def __init__(self, folder: Path, container: str, resource_id: str) -> None:
        stem = file_stem(container, resource_id)
        self._folder: Final = folder
        self.log: Final = folder / f"{stem}.log"
        self.record: Final = folder / f"{stem}.json"
        self.lock: Final = folder / f"{stem}.lock"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps everybody else on this host from the resource, threads of this process included.

        Workers do not inherit the lock. One that was forked and does not run its program yet does
        hold it, so that whoever gets the lock finds every launch by its environment. A
        BlockingIOError says that somebody else holds it.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with opened(self.lock, os.O_RDWR) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                yield
            finally:  # explicitly: closing does not unlock what another thread's fork still holds
                fcntl.flock(lock, fcntl.LOCK_UN)

    def read(self) -> Record | None:
        """The launch record, or None if there is none."""
        try:
            return parse_record(self.record.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise OSError(
                f"the launch record {self.record} makes no sense ({error}), so that nobody knows "
                "what runs; make sure that no worker of this resource does, and delete the file"
            ) from error

    def write(self, record: Record) -> None:
        """Writes the launch record so that it is there as a whole or not at all, come what may."""
        raw = self.record.with_suffix(".tmp")  # one is enough, under the lock
        with opened(raw, os.O_WRONLY | os.O_TRUNC) as file:
            os.write(file, dump_record(record).encode())
            os.fsync(file)
        raw.replace(self.record)
        with opened(self._folder, os.O_DIRECTORY, create=0) as folder:
            os.fsync(folder)

    def tail(self, offset: int) -> str:
        """The last lines that the log got after it was `offset` bytes long."""
        text = end_of(self.log, offset, 4 * _TAIL_CHARACTERS)
        return "\n".join(text.splitlines()[-_TAIL_LINES:])[-_TAIL_CHARACTERS:].strip()
