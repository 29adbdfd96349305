"""What does the registry look like to a dry run? As it is, without what it would have removed."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from dagster_amoro.core.fleet_plan import FleetRows
from dagster_amoro.core.model import Resource
from dagster_amoro.core.tick_inputs import RegistrySnapshot
from dagster_amoro.stores.database import Database, has_tables, utc_now
from dagster_amoro.stores.registry import Registry, ResourceSnapshot, optimizer, resource


class DryRunRegistry(Registry):
    """A registry that is only read: each write succeeds and does nothing.

    Heartbeats that are too old stay where they are and do not count. Tables are not created.
    """

    def __init__(
        self,
        database: Database,
        heartbeat_timeout: timedelta | None,
        removed: Callable[[], Collection[str]],
    ) -> None:
        """As a registry; `removed` says which resources would not be there any more."""
        super().__init__(database, heartbeat_timeout)
        self._removed = removed

    def read_snapshot(self, *, to_act: bool = False) -> RegistrySnapshot:  # noqa: ARG002 - as there
        """A snapshot of everything but what would have been removed, from wherever it is read."""
        if self.heartbeat_timeout is not None and not has_tables(self.database, resource):
            # The tables would have been created, with nothing in them.
            return RegistrySnapshot(resources=0, groups=(), orphans={})
        return self._without_removed(super().read_snapshot())

    def read_group_snapshot(self, name: str, *, to_act: bool = False) -> RegistrySnapshot:  # noqa: ARG002 - as there
        """A snapshot of one group but what would have been removed of it."""
        return self._without_removed(super().read_group_snapshot(name))

    def read_fleet(self, declared: Collection[str]) -> FleetRows:
        """The same; nothing, where there are no tables."""
        if not has_tables(self.database, resource):
            return FleetRows()
        return super().read_fleet(declared)

    def present(self, resource_ids: Iterable[str]) -> set[str]:
        """Of these ids, the ones that would have a resource row."""
        return super().present(resource_ids) - set(self._removed())

    def read_resource(self, resource_id: str, *, to_act: bool = False) -> ResourceSnapshot:  # noqa: ARG002 - as there
        """One resource, gone if it would have been removed."""
        if resource_id in self._removed():
            return ResourceSnapshot()
        return super().read_resource(resource_id)

    def rehearse(self, resource_id: str, properties: str | None) -> bool:
        """Changes nothing; whether it would have been possible."""
        return self.remove_orphan(resource_id, properties)

    def save_startup(
        self, resource_id: str, properties: str | None, _startup: Mapping[str, str]
    ) -> bool:
        """Saves nothing; whether it would have been possible."""
        row = super().read_resource(resource_id).row
        return row is not None and row["properties"] == properties

    def remove_orphan(self, resource_id: str, properties: str | None) -> bool:
        """Removes nothing; whether it would have been possible."""
        found = super().read_resource(resource_id)
        return found.orphan is not None and found.orphan.properties == properties

    def remove_resource(self, resource_id: str, properties: str | None) -> bool:
        """Removes nothing; whether it would have been possible."""
        return self.save_startup(resource_id, properties, {})

    def redeclare(self, resource_id: str, properties: str | None, _new: Resource) -> bool:
        """Changes nothing; whether it would have been possible."""
        return self.save_startup(resource_id, properties, {})

    def declare(self, _groups: object, _new: object) -> set[str]:
        """Records nothing."""
        return set()

    def restore(self, row: Mapping[str, Any]) -> bool:
        """Puts nothing back; whether it would have been possible."""
        return super().read_resource(str(row["resource_id"])).row is None

    def _record_nothing(self, *_: object, **__: object) -> None:
        pass

    create = ensure_writable = add_group = save_group = add_resource = _record_nothing

    def _without_removed(self, snapshot: RegistrySnapshot) -> RegistrySnapshot:
        there = snapshot.orphans.keys() - self._removed()
        orphans = {key: each for key, each in snapshot.orphans.items() if key in there}
        return replace(snapshot, orphans=orphans)

    def _resources(self) -> sa.FromClause:
        removed = self._removed()
        there = resource.c.resource_id.not_in(removed)
        return sa.select(resource).where(there).subquery() if removed else resource

    def _optimizers(self, connection: sa.Connection) -> sa.FromClause:
        if self.heartbeat_timeout is None:
            return optimizer
        now: datetime = connection.scalars(sa.select(utc_now())).one()
        fresh = optimizer.c.touch_time >= now - self.heartbeat_timeout
        return sa.select(optimizer).where(fresh).subquery()

    def _settle_heartbeats(self, _timeout: timedelta) -> tuple[int, int]:
        return 0, 0
