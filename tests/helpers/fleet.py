"""A fleet for the tests: real stores, real Dagster, a container that only remembers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.origin import JobPythonOrigin, RepositoryPythonOrigin
from dagster._core.remote_origin import (
    RegisteredCodeLocationOrigin,
    RemoteJobOrigin,
    RemoteRepositoryOrigin,
)
from upath import UPath

from dagster_amoro.asset_keys import DEFAULT, Names
from dagster_amoro.code_location import definitions_of
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.errors import ContainerError
from dagster_amoro.core.model import Incident, Resource
from dagster_amoro.core.policy import RestartPolicy, TickSettings
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import Database, utc_now
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, optimizer, resource
from dagster_amoro.testing import RecordingContainer
from dagster_amoro_audit.frames import History
from dagster_amoro_audit.history_store import HistoryFolder
from dagster_amoro_audit.io_managers import HISTORY_STORE, HistoryIOManager, io_manager
from dagster_amoro_audit.lineage import sources
from dagster_amoro_audit.orphan_history import build_orphan_history

GRACE = timedelta(seconds=30)
START = datetime(2026, 3, 29, 0, 59, 30, tzinfo=UTC)  # half a minute before a clock change
LONG_AGO = datetime(2020, 1, 1)  # noqa: DTZ001 - the registry's times have no zone

# Where the code of a queued run is; only Dagster's own daemon makes such records.
_ORIGIN = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin("dagster-amoro"), "__repository__")
_POINTER = ModuleCodePointer("dagster_amoro.definitions", "defs")


def age(registry: Registry) -> None:
    """Makes all resources old enough to be orphans, where time is real."""
    with registry.database.writing() as connection:
        connection.execute(sa.update(resource).values(start_time=LONG_AGO))


class Shelf:
    """Containers by name; others are unknown."""

    def __init__(self, **containers: RecordingContainer) -> None:
        self._containers = containers

    def get(self, name: str) -> RecordingContainer:
        """The container of that name."""
        if name not in self._containers:
            raise ContainerError(f"container {name!r} is not configured")
        return self._containers[name]

    def obstacle(self, name: str | None) -> str | None:
        """Unknown or opting out."""
        if name not in self._containers:
            return f"container {name!r} is not configured"
        return None if self._containers[name].supports_auto_restart else "it opts out"

    def tend(self) -> None:
        """Nothing is to be done from time to time."""

    def close(self) -> None:
        """Nothing is under way when a call has returned."""


@dataclass
class Fleet:
    """The services of a deployment with everything around them, and the verbs of the tests."""

    services: Services
    container: RecordingContainer
    instance: dg.DagsterInstance
    now: datetime = START
    cursor: str | None = None
    audit_cursor: str | None = None
    audit_storage: str | None = None
    names: Names = DEFAULT
    shared: dg.Definitions | None = None  # the code location where it is not the only one in it
    messages: list[str] = field(default_factory=list)
    _loaded: tuple[object, dg.Definitions] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.services = replace(self.services, clock=lambda: self.now)

    # What happens in the world.

    def worker(self, resource_id: str = "w-1", group: str = "g", **changes: object) -> None:
        """A resource that nobody stands for."""
        fields = {"container_name": "recording", "thread_count": 2, "memory_mb": 0}
        new = Resource(resource_id=resource_id, group_name=group, **(fields | changes))  # type: ignore[arg-type]
        add(self.services.registry, new)

    def group(self, name: str = "g", container: str = "recording", **properties: str) -> None:
        """A group is made, or is another one from now on; `_` in a name stands for `-`."""
        named = {key.replace("_", "-"): value for key, value in properties.items()}
        self.services.registry.create()
        self.services.registry.save_group(name, container, named)

    def aged(self) -> None:
        """All resources were recorded long ago."""
        age(self.services.registry)

    def born(self, at: datetime, resource_id: str = "w-1") -> None:
        """Its row was recorded at this moment."""
        chosen = resource.c.resource_id == resource_id
        naive = at.replace(tzinfo=None)
        self.execute(sa.update(resource).where(chosen).values(start_time=naive))

    def register(
        self, resource_id: str | None = "w-1", group: str | None = None, threads: int | None = None
    ) -> str:
        """An optimizer registers for it."""
        token = str(uuid4())
        told = {"resource_id": resource_id, "group_name": group, "thread_count": threads}
        self.execute(sa.insert(optimizer).values(token=token, **told))
        return token

    def touch(self, resource_id: str = "w-1") -> None:
        """Its optimizer shows that it lives."""
        mine = optimizer.c.resource_id == resource_id
        self.execute(sa.update(optimizer).where(mine).values(touch_time=utc_now()))

    def dies(self, resource_id: str = "w-1") -> None:
        """Its heartbeats end, and expire."""
        self.execute(sa.delete(optimizer).where(optimizer.c.resource_id == resource_id))

    def release(self, resource_id: str = "w-1") -> None:
        """Somebody removes its resource row."""
        self.execute(sa.delete(resource).where(resource.c.resource_id == resource_id))

    def properties(self, text: str | None, resource_id: str = "w-1") -> None:
        """Somebody writes its properties."""
        chosen = resource.c.resource_id == resource_id
        self.execute(sa.update(resource).where(chosen).values(properties=text))

    def execute(self, statement: sa.Executable) -> None:
        """Any statement on the registry."""
        self.services.registry.create()
        with self.services.registry.database.writing() as connection:
            connection.execute(statement)

    def later(self, span: timedelta = GRACE) -> "Fleet":
        """Time goes by."""
        self.now += span
        return self

    # What Dagster does.

    @property
    def definitions(self) -> dg.Definitions:
        """The code location of these services, loaded again where they were replaced."""
        if self.shared is not None:
            return self.shared
        parts = (self.services, self.audit_storage)
        if self._loaded is None or self._loaded[0] != parts:
            audit = AuditSettings(storage=self.audit_storage)
            self._loaded = (parts, definitions_of(self.services, audit, self.names))
        return self._loaded[1]

    def tick(self) -> list[dg.RunRequest]:
        """One real evaluation of the sensor, its effects applied as the daemon does."""
        result = self._evaluate(self.names.of("orphan_sensor"), self.cursor)
        self.cursor = result.cursor
        self.messages.append(result.skip_message or "")
        return list(result.run_requests or [])

    def audit(self) -> tuple[dict[str, dg.AssetCheckEvaluation], list[dg.RunRequest]]:
        """One real evaluation of the audit's sensor: what it told, by check, and its requests."""
        result = self._evaluate(self.names.of("audit_sensor"), self.audit_cursor)
        self.audit_cursor = result.cursor
        told = [each for each in result.asset_events if isinstance(each, dg.AssetCheckEvaluation)]
        return {each.check_name: each for each in told}, list(result.run_requests or [])

    def _evaluate(self, name: str, cursor: str | None) -> SensorExecutionData:
        definitions = self.definitions
        context = dg.build_sensor_context(
            instance=self.instance, cursor=cursor, definitions=definitions
        )
        result = definitions.resolve_sensor_def(name).evaluate_tick(context)
        for request in result.dynamic_partitions_requests or []:
            assert isinstance(request, dg.AddDynamicPartitionsRequest)
            self.instance.add_dynamic_partitions(
                request.partitions_def_name, list(request.partition_keys)
            )
        for event in result.asset_events:
            self.instance.report_runless_asset_event(event)
        return result

    def launch(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """A real run of the job for a request."""
        job = self.definitions.resolve_job_def(request.job_name or "restart_orphans")
        return job.execute_in_process(
            run_config=request.run_config,
            instance=self.instance,
            tags=_tags(request),
            raise_on_error=False,
        )

    def submit(
        self, request: dg.RunRequest, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED
    ) -> dg.DagsterRun:
        """A run of the job that is known to Dagster and has not begun."""
        job = self.definitions.resolve_job_def(request.job_name or "restart_orphans")
        return self.instance.create_run_for_job(
            job,
            run_config=request.run_config,
            tags=_tags(request),
            status=status,
            remote_job_origin=RemoteJobOrigin(_ORIGIN, job.name),
            job_code_origin=JobPythonOrigin(job.name, RepositoryPythonOrigin("python", _POINTER)),
        )

    def claim(self, request: dg.RunRequest, run_id: str) -> list[Incident]:
        """What the first step of a run does."""
        return self.services.restarter.claim(request.run_key or "", run_id)

    def refresh(
        self, *partitions: str, retention: timedelta | None = None
    ) -> dg.ExecuteInProcessResult:
        """A real run of the audit asset for a group, or for a range of them."""
        asset = build_orphan_history(
            self.services.ledger,
            self.services.post_mortems,
            self.services.status,
            lambda: self.now,
            GRACE,
            retention=retention,
        )
        ends = {
            "dagster/asset_partition_range_start": partitions[0],
            "dagster/asset_partition_range_end": partitions[-1],
        }
        return dg.materialize(
            [*sources(), asset],
            partition_key=partitions[0] if len(partitions) == 1 else None,
            tags=ends if len(partitions) > 1 else None,
            instance=self.instance,
            resources={HISTORY_STORE: io_manager(HistoryIOManager, self.audit_storage)},
            selection=["orphan_history"],
        )

    def refreshed(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        """A real run that the audit's sensor requests."""
        made = self.definitions
        return dg.materialize(
            list(made.assets or ()),  # type: ignore[arg-type]
            selection=list(request.asset_selection or ()),
            tags=request.tags,
            instance=self.instance,
            resources=made.resources,
        )

    def check(
        self, *, raise_on_error: bool = True, **alerts: float
    ) -> dict[str, dg.AssetCheckEvaluation]:
        """One real run of all checks; what each of them found, by its name."""
        settings = AuditSettings(**alerts)  # type: ignore[arg-type]
        made = definitions_of(self.services, settings, self.names)
        (checks,) = made.asset_checks or ()
        assert isinstance(checks, dg.AssetChecksDefinition)
        result = dg.materialize(
            [*(made.assets or ()), checks],  # type: ignore[list-item]
            selection=dg.AssetSelection.checks(checks),
            instance=self.instance,
            resources=made.resources,
            raise_on_error=raise_on_error,
        )
        assert result.success or not raise_on_error
        return {each.check_name: each for each in result.get_asset_check_evaluations()}

    def folder(self, partition: str) -> HistoryFolder:
        """Where the audit keeps the history of a group."""
        base = UPath(self.audit_storage or self.instance.storage_directory())
        return HistoryIOManager(base).folder(self.names.history, partition)

    def history(self, partition: str) -> History:
        """The history of a group as whoever reads the asset gets it."""
        loaded = self.definitions.load_asset_value(
            self.names.history, partition_key=partition, instance=self.instance
        )
        assert isinstance(loaded, History)
        return loaded

    # What the stores say.

    @property
    def message(self) -> str:
        """What the last tick said."""
        return self.messages[-1]

    def incidents(self) -> list[Incident]:
        """All incidents ever, oldest first."""
        with self.services.ledger.reading() as connection:
            numbers = connection.scalars(
                sa.text("SELECT incident_id FROM keeper_incident ORDER BY incident_id")
            ).all()
        found = [self.services.ledger.incident(number) for number in numbers]
        return [incident for incident in found if incident is not None]

    def kinds(self, resource_id: str = "w-1") -> list[str]:
        """The kinds of the events of a resource's last incident."""
        last = [i.incident_id for i in self.incidents() if i.resource_id == resource_id][-1]
        return [str(event.kind) for event in self.services.ledger.events(last)]

    def notes(self, group: str | None = "g") -> list[tuple[str, str]]:
        """The kinds and messages of the events that are no incident's, in their order."""
        mine = (
            schema.event.c.group_name.is_(None)
            if group is None
            else schema.event.c.group_name == group
        )
        query = sa.select(schema.event.c.kind, schema.event.c.message).where(
            schema.event.c.incident_id.is_(None), mine
        )
        with self.services.ledger.reading() as connection:
            return [
                (row[0], row[1])
                for row in connection.execute(query.order_by(schema.event.c.event_id))
            ]

    def resources(self) -> list[tuple[Any, ...]]:
        """Id, group, container, threads and properties of every resource row, oldest first."""
        columns = resource.c
        query = sa.select(
            columns.resource_id,
            columns.group_name,
            columns.container_name,
            columns.thread_count,
            columns.properties,
        ).order_by(columns.start_time, columns.resource_id)
        with self.services.registry.database.reading() as connection:
            return [tuple(row) for row in connection.execute(query)]

    def dump(self) -> dict[str, list[tuple[object, ...]]]:
        """Every row of every table of ours and of Amoro's."""
        tables = ["resource", "optimizer", "resource_group", "keeper_incident", "keeper_event"]
        with self.services.ledger.reading() as connection:
            return {
                name: [tuple(row) for row in connection.execute(sa.select("*", sa.table(name)))]
                for name in tables
            }


def _tags(request: dg.RunRequest) -> Mapping[str, str]:
    return {**request.tags, "dagster/run_key": request.run_key or ""}


def fleet_services(  # noqa: PLR0913 - what tests vary
    folder: Path,
    *,
    url: sa.URL | None = None,
    max_retries: int = 3,
    grace: timedelta = GRACE,
    enabled: bool = True,
    max_restarts_per_run: int = 100,
) -> Services:
    """Services without containers; the registry is an SQLite file unless `url` says otherwise."""
    url = url or sa.URL.create("sqlite", database=str(folder / "registry.db"))
    return Services(
        registry=Registry(Database(url, "registry"), timedelta(minutes=1)),
        ledger=Ledger(Database(url, "ledger")),
        containers=Shelf(),
        policy=RestartPolicy(enabled=enabled, max_retries=max_retries, grace_period=grace),
        settings=TickSettings(
            check_interval=timedelta(seconds=5),
            round_interval=timedelta(seconds=5),
            claim_timeout=timedelta(minutes=10),
            max_restarts_per_run=max_restarts_per_run,
        ),
        clock=lambda: START,
    )


@contextmanager
def fleet(folder: Path, **settings: Any) -> Iterator[Fleet]:  # noqa: ANN401 - of fleet_services
    """A fleet in a folder, its databases closed at the end."""
    container = RecordingContainer()
    services = replace(fleet_services(folder, **settings), containers=Shelf(recording=container))
    with dg.DagsterInstance.ephemeral(tempdir=str(folder)) as instance:
        yield Fleet(services=services, container=container, instance=instance)
    services.close()


def with_settings(services: Services, **changes: Any) -> Services:  # noqa: ANN401 - of TickSettings
    """The services after an edit of the settings of ticks."""
    return replace(services, settings=replace(services.settings, **changes))


class Watched:
    """Something whose every method call is announced before and after it is made.

    The places between the calls of one restart are the places where the world can change, or where
    the process can die.
    """

    def __init__(self, target: object, name: str, announce: Callable[[str], None]) -> None:
        self._target = target
        self._name = name
        self._announce = announce

    def __getattr__(self, attribute: str) -> Any:  # noqa: ANN401 - any attribute
        """The attribute; a method is wrapped, and so is a container that it returns."""
        found = getattr(self._target, attribute)
        if not callable(found):
            return found
        place = f"{self._name}.{attribute}"

        def watched(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - any method
            self._announce(f"before {place}")
            result = found(*arguments, **options)
            self._announce(f"after {place}")
            if hasattr(result, "request_resource"):
                return Watched(result, "container", self._announce)
            return result

        return watched


def watched(services: Services, announce: Callable[[str], None]) -> Services:
    """The same services, their stores and containers watched."""
    return replace(
        services,
        registry=Watched(services.registry, "registry", announce),  # type: ignore[arg-type]
        ledger=Watched(services.ledger, "ledger", announce),  # type: ignore[arg-type]
        containers=Watched(services.containers, "containers", announce),
    )
