"""How are the orphans of a run restarted side by side, so that none waits for a sick one?"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.containers.calls import concurrent_starts, warm_up
from dagster_amoro.core.model import Incident
from dagster_amoro.core.policy import due_at
from dagster_amoro.healing.restart import Outcome, Restarter, RestartResult

T = TypeVar("T")


class ContainerThreads:
    """Threads of its own for each container, as many as it may have starts at once.

    So what hangs holds up one of the threads of its container, until its time is up, and nothing
    else.
    """

    def __init__(self, containers: ContainerLookup, most: int) -> None:
        """Starts none yet; `most` is how many a container has that does not say it itself."""
        self._containers: Final = containers
        self._most: Final = most
        self._threads: Final[dict[str, ThreadPoolExecutor]] = {}  # by container

    def submit(self, container_name: str, work: Callable[..., T], *arguments: Any) -> Future[T]:  # noqa: ANN401 - those of `work`
        """Lets a thread of a container do something, as soon as one is free."""
        if container_name not in self._threads:
            warm_up(self._containers, container_name)
            most = concurrent_starts(self._containers, container_name) or self._most
            self._threads[container_name] = ThreadPoolExecutor(most, "restart")
        return self._threads[container_name].submit(work, *arguments)

    def close(self, under_way: Iterable[Future[Any]]) -> None:
        """Ends the calls of what is under way, begins no more, and waits for what then follows."""
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
        if not all(each.done() for each in under_way):
            self._containers.close()
        for threads in self._threads.values():
            threads.shutdown()


class RestartPool:
    """Works ahead of the steps of a run, which collect what came of each orphan."""

    def __init__(self, restarter: Restarter, run_id: str) -> None:
        """Starts nothing yet."""
        self._restarter: Final = restarter
        self._run_id: Final = run_id
        most = restarter.max_concurrent_starts
        self._threads: Final = ContainerThreads(restarter.containers, most)
        self._under_way: Final[dict[int, Future[RestartResult]]] = {}  # by incident
        self._failed: Final[dict[int, Incident]] = {}  # what is to be tried again
        self._closing: Final = threading.Event()
        self.claimed: Sequence[Incident] = ()

    def claim(self, run_key: str) -> None:
        """Claims what was dispatched under this key, and begins to restart it.

        Raises:
            StoreUnavailableError: The ledger did not answer; nothing was begun.
        """
        self.claimed = self._restarter.claim(run_key, self._run_id)
        self.begin(self.claimed)

    def begin(self, incidents: Sequence[Incident]) -> None:
        """Begins to restart these, in this order, each when its pause is over."""
        for incident in incidents:
            left = due_at(incident, self._restarter.policy) - self._restarter.clock()
            left = min(left, self._restarter.settings.lead)  # more is left to the next tick
            is_asked = incident.operator_request is not None
            pause = 0 if is_asked else left.total_seconds()
            self._begin(incident.incident_id, incident.container_name, pause)

    def collect(self, incident_id: int) -> RestartResult:
        """What came of a restart, once it is over.

        Asked once more, it tries again, and with it all others whose pause is over by now.

        Raises:
            StoreUnavailableError: A store did not answer.
        """
        if incident_id not in self._under_way:
            self._begin_again(incident_id)
        restart = self._under_way[incident_id]
        try:
            result = restart.result()
        finally:  # interrupted, it goes on until it is closed
            if restart.done():
                del self._under_way[incident_id]
        if result.outcome is Outcome.FAILED and result.incident is not None:
            self._failed[incident_id] = result.incident
        return result

    def close(self) -> None:
        """Ends what is under way, and waits until that is written down."""
        self._closing.set()
        self._threads.close(self._under_way.values())

    def _begin_again(self, incident_id: int) -> None:
        now, policy = self._restarter.clock(), self._restarter.policy
        due = [each for each in self._failed.values() if due_at(each, policy) <= now]
        for each in due:
            del self._failed[each.incident_id]
        self.begin(due)
        if incident_id not in self._under_way:  # a store was away, or it is milliseconds short
            failed = self._failed.pop(incident_id, None)
            self._begin(incident_id, failed.container_name if failed else "")

    def _begin(self, incident_id: int, container_name: str, pause: float = 0) -> None:
        due = time.monotonic() + pause
        begun = self._threads.submit(container_name, self._restart, incident_id, due)
        self._under_way[incident_id] = begun

    def _restart(self, incident_id: int, due: float) -> RestartResult:
        self._closing.wait(max(due - time.monotonic(), 0))
        return self._restarter.restart(incident_id, self._run_id)
