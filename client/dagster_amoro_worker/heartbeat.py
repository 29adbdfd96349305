"""How a worker says that it is alive, in standalone mode: a row that it registers and touches."""

import logging
import os
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Self
from uuid import uuid4

from dagster_amoro_worker.errors import describe
from dagster_amoro_worker.properties import dump_properties
from dagster_amoro_worker.registry import REGISTER, TOUCH, UNREGISTER, Registry, Url

_LOG: Final = logging.getLogger(__name__)
_EXIT_SECONDS: Final = 5  # a worker that is done does not wait longer for its row to go
_LONGEST_NAME: Final = 100  # characters that a column of names holds


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
        url: str | Url,
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
            url: The registry's database, as SQLAlchemy has it: `sqlite`, `postgresql` or `mysql`.
            resource_id: The resource that this worker stands for; two with one id have two rows.
            group_name: Its group.
            container_name: The container that started it.
            thread_count: How many threads it works with.
            memory_mb: Its memory in MiB; 0: not said.
            interval: The pause between two touches; a fraction of the keeper's
                `optimizer.heart-beat-timeout`, so that one may get lost.

        Raises:
            ValueError: An argument cannot be right.
            ConfigError: The driver of the database is not installed.
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
        self._registry = Registry(url)
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
        with self._registry.connected() as execute:
            if execute(TOUCH, token=self._token):
                return
            # Kept before it is sent: if the answer is lost, the next touch tells whether it held.
            self._token = str(uuid4())
            properties = {
                "job-id": str(os.getpid()),
                "resource-id": str(self._columns["resource_id"]),
                "heart-beat-interval": str(self._interval // timedelta(milliseconds=1)),
            }
            row = {**self._columns, "properties": dump_properties(properties)}
            execute(REGISTER, token=self._token, **row)

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
            with self._registry.connected() as execute:
                execute(UNREGISTER, token=self._token)
        except Exception as error:  # noqa: BLE001 - the row expires by itself
            who = self._columns["resource_id"]
            _LOG.info("The row for %r is left to expire: %s", who, describe(error))
