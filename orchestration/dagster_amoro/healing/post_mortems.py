"""How did the workers of new incidents end? Asked before anything is tried, and never by a tick."""

import time
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.containers.calls import post_mortem
from dagster_amoro.core.errors import ContainerError, PropertiesError, StoreUnavailableError
from dagster_amoro.core.formatting import duration
from dagster_amoro.core.model import Incident
from dagster_amoro.core.post_mortem import UNKNOWN, PostMortem
from dagster_amoro.healing.restart import resource_of
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry

_MOST: Final = 100  # incidents that are asked about at once, the newest first
_SIDE_BY_SIDE: Final = 4  # questions to one container
_SILENT: Final = "its container does not tell how its workers end"


@dataclass(frozen=True, kw_only=True, slots=True)
class PostMortems:
    """Asks containers how workers ended, and notes it with the incidents.

    To ask changes nothing, so a dry run asks as well. Each incident is asked about once: that a
    container hangs, fails or never tells is an answer too. What is not asked here, since there are
    too many or the time is up, is asked next time; and each attempt asks before its start.
    """

    ledger: Ledger
    registry: Registry
    containers: ContainerLookup
    longest: timedelta = timedelta(seconds=15)  # for all questions together

    def learn(self, groups: Collection[str] | None = None) -> int:
        """Asks about open incidents of these groups, or of all, that nobody tried to heal yet.

        Returns how many have a cause now that had none. Nothing else about them changes, whoever
        has them in hand.

        Raises:
            StoreUnavailableError: The ledger did not answer. It is no error if the registry does
                not: nothing is asked then.
        """
        found = dict(self._ask(self.ledger.causeless(groups, _MOST)))
        return self.ledger.note_causes(found) if found else 0

    def _ask(self, incidents: Iterable[Incident]) -> Iterator[tuple[int, PostMortem]]:
        """What came of the questions that were begun in time, by the numbers of the incidents."""
        until = time.monotonic() + self.longest.total_seconds()
        threads: dict[str, ThreadPoolExecutor] = {}  # by container: a sick one holds up no other
        asked: dict[int, Future[PostMortem | None]] = {}
        for each in incidents:
            name = each.container_name
            if name not in threads:
                threads[name] = ThreadPoolExecutor(_SIDE_BY_SIDE, "post-mortem")
            asked[each.incident_id] = threads[name].submit(self._end_of, each)
        try:
            for number, answer in asked.items():
                if end := self._answer(answer, until):
                    yield number, end
        finally:
            for pool in threads.values():
                pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, answer: Future[PostMortem | None], until: float) -> PostMortem | None:
        """None: it was not asked, or there is nothing to ask about any more."""
        try:
            return answer.result(max(until - time.monotonic(), 0))
        except TimeoutError:
            if answer.cancel():  # its turn has not come
                return None
            why = f"was not learned within {duration(self.longest)}"
            return PostMortem(UNKNOWN, f"how its last worker ended {why}")
        except StoreUnavailableError:
            return None

    def _end_of(self, incident: Incident) -> PostMortem | None:
        """What the container says; None where somebody stands for it again, or its row is gone."""
        orphan = self.registry.read_resource(incident.resource_id).orphan
        if orphan is None:
            return None
        try:
            resource = resource_of(orphan)
            container = self.containers.get(resource.container_name)
        except (ContainerError, PropertiesError) as error:
            text = f"how its last worker ended cannot be learned: {error}"
            return PostMortem(UNKNOWN, text).cleaned(str)
        return post_mortem(container, resource) or PostMortem(UNKNOWN, _SILENT)
