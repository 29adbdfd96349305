"""How a worker says that it is alive, in standalone mode: a row that it registers and touches."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Final, Self
from uuid import uuid4

import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError, describe
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.stores.database import Database, utc_now

_LOG: Final = logging.getLogger(__name__)
_EXIT_SECONDS: Final = 5  # a worker that is done does not wait longer for its row to go
_LONGEST_NAME: Final = 100  # characters that a column of names holds
# The table of the registry without the types of its columns, which would take long to import.
_OPTIMIZER: Final = sa.table(
    "optimizer",
    *map(sa.column, ("token", "resource_id", "group_name", "container_name", "start_time")),
    *map(sa.column, ("touch_time", "thread_count", "total_memory", "properties")),
)


class Heartbeat:
    """Registers an optimizer, keeps touching its row, and removes the row at the end.

    All of it happens in a thread of its own, so a registry that is away, locked or not created yet
    neither stops nor delays the worker: the thread tries again every interval, for ever, and logs
    one warning when it begins to fail and one line when it is back. Only wrong arguments raise.

    A worker that is killed leaves its row, which then expires. SIGTERM is the worker's business:
    one that wants to unregister on it turns it into an exception, such as SystemExit. A heartbeat
    belongs to the process that entered it: a forked child does not beat, and needs its own.

    Example:
        with Heartbeat(url, resource_id="w-1", group_name="g", container_name="local"):
            work()
    """

    def __init__(  # noqa: PLR0913 - what a row of `optimizer` holds
        self,
        url: str | sa.URL,
        *,
        resource_id: str,
        group_name: str,
        container_name: str,
        thread_count: int = 1,
        memory_mb: int = 0,
        interval: timedelta = timedelta(seconds=10),
    ) -> None:
        """Prepares a heartbeat, for one use; the database is not connected to yet.

        Args:
            url: The registry's database.
            resource_id: The resource that this worker stands for; two with one id have two rows.
            group_name: Its group.
            container_name: The container that started it.
            thread_count: How many threads it works with.
            memory_mb: Its memory in MiB; 0: not said.
            interval: The pause between two touches; a fraction of the keeper's
                `optimizer.heart-beat-timeout`, so that one may get lost.

        Raises:
            ValueError: An argument cannot be right.
        """
        names = {"resource_id": resource_id, "group_name": group_name}
        names |= {"container_name": container_name}
        for name, value in names.items():
            if not 0 < len(value) <= _LONGEST_NAME:
                raise ValueError(f"{name} must have 1 to {_LONGEST_NAME} characters: {value!r}")
        if interval <= timedelta(0):
            raise ValueError(f"interval must be longer than nothing: {interval!r}")
        self._columns = {**names, "thread_count": thread_count, "total_memory": memory_mb}
        self._interval = interval
        self._database = Database(sa.make_url(url), "registry")
        self._token = ""  # of the last row that was, or may have been, inserted
        self._failing = False
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._keep_beating, args=(self._stop.wait,), name="heartbeat", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop.set()
        self._thread.join(_EXIT_SECONDS)

    def beat(self) -> None:
        """Touches the row; registers with a new token where there is none, or none any more.

        A StoreUnavailableError says that the registry did not answer as it should.
        """
        mine = _OPTIMIZER.c.token == self._token
        with self._writing() as connection:
            touch = sa.update(_OPTIMIZER).where(mine).values(touch_time=utc_now())
            if connection.execute(touch).rowcount:
                return
            # Kept before the commit: if its answer is lost, the next touch tells whether it held.
            self._token = str(uuid4())
            times = {"start_time": utc_now(), "touch_time": utc_now()}
            properties = {
                "job-id": str(os.getpid()),
                "resource-id": str(self._columns["resource_id"]),
                "heart-beat-interval": str(self._interval // timedelta(milliseconds=1)),
            }
            row = {**self._columns, **times, "properties": dump_properties(properties)}
            connection.execute(sa.insert(_OPTIMIZER).values(token=self._token, **row))

    def _keep_beating(self, wait: Callable[[float], bool]) -> None:
        self._try_to_beat()
        while not wait(self._interval.total_seconds()):
            self._try_to_beat()
        self._unregister()

    def _try_to_beat(self) -> None:
        who = self._columns["resource_id"]
        try:
            self.beat()
        except Exception as error:  # noqa: BLE001 - whatever it is, the worker's work goes on
            if not self._failing:
                every = self._interval.total_seconds()
                message = "No heartbeat for %r, trying again every %g s: %s"
                _LOG.warning(message, who, every, describe(error))
            self._failing = True
        else:
            if self._failing:
                _LOG.info("The heartbeat for %r is back", who)
            self._failing = False

    def _unregister(self) -> None:
        try:
            with self._writing() as connection:
                connection.execute(sa.delete(_OPTIMIZER).where(_OPTIMIZER.c.token == self._token))
        except Exception as error:  # noqa: BLE001 - the row expires by itself
            who = self._columns["resource_id"]
            _LOG.info("The row for %r is left to expire: %s", who, describe(error))

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """A transaction on a new connection: a kept one could be dead, or of a replaced file."""
        url = self._database.url
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise StoreUnavailableError(f"there is no file {url.database}")  # SQLite would make it
        try:
            with self._database.writing() as connection:
                yield connection
        finally:
            self._database.close()
