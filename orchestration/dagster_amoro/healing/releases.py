"""How is a worker stopped for good? First its process, then its row: what runs has a row.

A run that has it in hand at this moment finds its row gone, and releases what it has started.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.containers.calls import stop
from dagster_amoro.core import transitions
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.errors import (
    ConfigError,
    KeeperError,
    ReleaseFailedError,
    UnknownTargetError,
)
from dagster_amoro.core.messages import DRY_RUN
from dagster_amoro.core.model import Event, EventKind, Incident, Orphan, State
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.transitions import by_of, signed
from dagster_amoro.healing.restart import resource_of
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, orphan_of

_TRIES: Final = 3  # while a run starts it anew at the same moment


@dataclass(frozen=True, kw_only=True, slots=True)
class Releaser:
    """Stops workers for good, and removes their rows."""

    registry: Registry
    ledger: Ledger
    containers: ContainerLookup
    clock: Clock
    attached: bool  # whether the registry is an AMS's

    def release(self, resource_id: str, *, author: str, reason: str) -> str:
        """Stops a worker, removes its row and closes its incident, if it has one.

        Said again after it was killed at any place, it goes on there. Returns what was done.

        Raises:
            ConfigError: The registry is an AMS's, which releases its resources itself.
            UnknownTargetError: There is no such resource, or it is paused.
            ContainerError: Its container is unknown, or could not stop it; its row stays.
            PropertiesError: Its properties cannot be read; its row stays.
            KeeperError: It was started anew each time that it was stopped; or nobody wants it.
            StoreUnavailableError: A store did not answer.
        """
        by = by_of(author, reason)
        if self.attached:
            raise ConfigError("resources of an attached registry are released in AMS, not here")
        self.registry.create()
        for _ in range(_TRIES):
            row = self.registry.read_resource(resource_id, to_act=True).row
            if row is None:
                return self._finish(resource_id, by)
            orphan = orphan_of(row)
            self._ensure_unpaused(orphan)
            self._stop(orphan)
            if self.registry.remove_resource(resource_id, orphan.properties):
                return self._tell(resource_id, orphan.group_name, by)
        raise KeeperError(
            f"{resource_id} was stopped, and started anew or changed by others at the same "
            f"moment, {_TRIES} times; its row stays. Say it again"
        )

    def _finish(self, resource_id: str, by: Mapping[str, str]) -> str:
        """Its row is gone: what is left is its incident."""
        incident = self.ledger.open_incident(resource_id)
        if incident is None:
            raise UnknownTargetError(f"there is no resource {resource_id!r}")
        return self._tell(resource_id, incident.group_name, by)

    def _ensure_unpaused(self, orphan: Orphan) -> None:
        pauses = Pauses(self.ledger.pauses(), self.clock())
        if pause := pauses.of(orphan.resource_id, orphan.group_name or ""):
            raise UnknownTargetError(
                f"{orphan.resource_id} is left alone: {pause}; resume {pause.target} first"
            )

    def _stop(self, orphan: Orphan) -> None:
        container = self.containers.get(orphan.container_name or "")
        notes = stop(container, resource_of(orphan), orphan.resource_id).notes
        if notes:
            raise ReleaseFailedError(f"{'; '.join(notes)}; its row stays")

    def _tell(self, resource_id: str, group_name: str | None, by: Mapping[str, str]) -> str:
        message = signed("its worker was stopped and its row removed", by)
        event = Event(
            kind=EventKind.SCALED_IN,
            at=self.clock(),
            message=message,
            details={**by, "resource": resource_id},
        )
        incident = self.ledger.open_incident(resource_id)
        with self.ledger.transaction() as ledger:
            ledger.add_event(event, incident, group_name=group_name)
            if incident is not None and self._is_ours_to_close(incident):
                step = transitions.close(incident, State.RELEASED, message, event.at)
                ledger.apply([step])  # unless a tick was faster, which closes it as well
        return f"{DRY_RUN if self.ledger.dry_run else ''}{resource_id}: {message}."

    def _is_ours_to_close(self, incident: Incident) -> bool:
        """Not where a run has it: that releases what it has started, and closes it."""
        is_removing = incident.state.is_removing
        return not (self.ledger.dry_run or incident.is_in_run or is_removing)
