"""What was started for a resource on this host, and where is that written down?

Whoever starts a worker may be killed at any moment, also between starting it and saying so. So
the launch is recorded on disk before it is made and once more with its process, and a lock keeps
two starts of one resource from doing that at the same time.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from dagster_amoro.containers.output import (
    Rotation,
    end_of,
    file_stem,
    older,
    opened,
    own_folder,
    size_of,
)
from dagster_amoro.containers.processes import Launch
from dagster_amoro.core.errors import describe
from dagster_amoro.core.model import Resource

HOST: Final = "command-host"
"""The start-up property that says where a worker was started."""

_LARGEST_RECORD: Final = 64 * 1024  # bytes; ours have some 200
_TAIL_LINES: Final = 20
_TAIL_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class Record:
    """What is written down before and after a start."""

    launch: Launch
    previous: str | None  # the launch id in the resource's properties at that time


def new_launch_id(resource_id: str) -> str:
    """An id that no other launch has, and that says which resource it is of."""
    return f"{_mark(resource_id)}-{uuid4().hex}"


def _mark(resource_id: str) -> str:
    return hashlib.sha256(resource_id.encode(errors="surrogatepass")).hexdigest()[:16]


def launch_of(resource: Resource) -> Launch | None:
    """The launch that a resource's properties name; None if they name none.

    Everybody who can write the registry writes them. The launch of another resource does not count
    as one of this; a process id is kept, and has to prove that it is ours.
    """
    keys = ("launch-id", "host", "pid", "started-at")
    launch_id, *where = (resource.properties.get(f"command-{key}") for key in keys)
    is_ours = (launch_id or "").startswith(f"{_mark(resource.resource_id)}-")
    return Launch.parse(launch_id if is_ours else None, *where)


def properties_of(launch: Launch) -> dict[str, str]:
    """The start-up properties of a launch; `launch_of` reads them."""
    return {
        "command-pid": str(launch.pid),
        "command-started-at": repr(launch.started_at),
        HOST: str(launch.host),
        "command-launch-id": str(launch.launch_id),
    }


def launches_of(resource: Resource, record: Record | None) -> list[Launch]:
    """The launches that are a resource's: the one it names, and the recorded one if it is.

    A record belongs to the launch that it followed. So the launch of a run that died before it
    could save it is found, while one that was overtaken by a newer launch does not reach that.
    """
    named = launch_of(resource)
    launch_id = named.launch_id if named else None
    follows = record is not None and launch_id in (record.launch.launch_id, record.previous)
    return distinct(named, record.launch if record and follows else None)


def distinct(*launches: Launch | None) -> list[Launch]:
    """The launches in their order, each once, as the last of them that is equal says it."""
    return list({launch: launch for launch in launches if launch}.values())


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
    return Record(replace(launch, is_recorded=True), previous)


class LaunchFiles:
    """The log, the launch record and the lock of one resource; an OSError if one cannot be used.

    All are ours alone, in a folder that is, since a record says which process is ours.
    """

    def __init__(self, folder: Path, container: str, resource_id: str) -> None:
        stem = file_stem(container, resource_id)
        self._folder: Final = folder
        self.log: Final = folder / f"{stem}.log"
        self.record: Final = folder / f"{stem}.json"
        self.lock: Final = folder / f"{stem}.lock"
        self.end: Final = folder / f"{stem}.end"  # how the last launch ended, by its witness

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps everybody else on this host from the resource, threads of this process included.

        Workers do not inherit the lock. One that was forked and does not run its program yet does
        hold it, so that whoever gets the lock finds every launch by its environment. A
        BlockingIOError says that somebody else holds it.
        """
        with opened(self.lock, os.O_RDWR) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                yield
            finally:  # explicitly: closing does not unlock what another thread's fork still holds
                fcntl.flock(lock, fcntl.LOCK_UN)

    def read(self) -> Record | None:
        """The launch record, or None if there is none."""
        try:
            with opened(self.record, os.O_RDONLY, create=0) as file:
                return parse_record(os.read(file, _LARGEST_RECORD).decode())
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
        raw.unlink(missing_ok=True)
        with opened(raw, os.O_WRONLY, os.O_CREAT | os.O_EXCL) as file:
            os.write(file, dump_record(record).encode())
            os.fsync(file)
        raw.replace(self.record)
        with own_folder(self._folder) as folder:
            os.fsync(folder)

    def tail(self, offset: int) -> str:
        """The last lines that the log got after it was `offset` bytes long."""
        text = end_of(self.log, offset, 4 * _TAIL_CHARACTERS)
        if size_of(self.log) < offset:  # it was put aside meanwhile
            with suppress(FileNotFoundError):
                text = end_of(older(self.log, 1), last=4 * _TAIL_CHARACTERS) + text
        return "\n".join(text.splitlines()[-_TAIL_LINES:])[-_TAIL_CHARACTERS:].strip()


def turn_all(folder: Path, rotation: Rotation) -> None:
    """Puts the logs of a folder aside that are too large; one that cannot be is left."""
    for log in folder.glob("*.log"):
        with suppress(OSError):
            rotation.turn(log)
