"""A standalone fleet for tests of containers: ticks and restarts, without Dagster."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Generic, NamedTuple, TypeVar
from uuid import uuid4

import sqlalchemy as sa

from dagster_amoro.config import load_settings
from dagster_amoro.containers.base import Container
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.errors import ContainerError, UnknownTargetError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.policy import RunState
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add_and_start
from dagster_amoro.healing.restart import resource_of
from dagster_amoro.stores.registry import optimizer, orphan_of, resource

C = TypeVar("C", bound=Container)

GROUP: Final = "g"  # of all resources of a ready fleet
_CONTAINER: Final = "under-test"  # what they call the container


class Restart(NamedTuple):
    """What a run did for one orphan."""

    resource_id: str
    outcome: str  # started, failed, given up, kept, recovered, released or left
    message: str  # what happened, and what happens next


class ReadyFleet(Generic[C]):
    """A fleet with one container, and the verbs of a test. `ready_fleet` makes one."""

    def __init__(self, services: Services, container: C) -> None:
        self.container: Final = container
        self._ahead = timedelta(0)  # of the clock of this host
        containers = _OneContainer(container)
        self._services: Final = replace(services, containers=containers, clock=lambda: self.now)
        self._detector = AmsRestartDetector()
        self._due: list[str] = []  # run keys

    @property
    def url(self) -> sa.URL:
        """The registry's database, for workers that write heartbeats."""
        return self._services.registry.database.url

    @property
    def now(self) -> datetime:
        """What time it is for the fleet, in UTC; set it to let time pass.

        Heartbeats expire by the database's clock, which this does not move: see `lose`.
        """
        return datetime.now(UTC) + self._ahead

    @now.setter
    def now(self, value: datetime) -> None:
        self._ahead = value - datetime.now(UTC)

    def start(
        self,
        resource_id: str,
        *,
        thread_count: int = 1,
        memory_mb: int = 0,
        properties: Mapping[str, str] | None = None,
    ) -> Resource:
        """Adds a worker to the fleet and has the container start it; returns its resource.

        Raises:
            StoreUnavailableError: The fleet has this resource already.
            StartFailedError: The container could not start it.
        """
        new = Resource(
            resource_id=resource_id,
            group_name=GROUP,
            container_name=_CONTAINER,
            thread_count=thread_count,
            memory_mb=memory_mb,
            properties=properties or {},
        )
        add_and_start(self._services.registry, self._services.containers, new)
        return self.resource(resource_id)

    def register(self, resource_id: str) -> None:
        """The worker says that it is alive, as one with a `Heartbeat` does by itself."""
        row = {"resource_id": resource_id, "group_name": GROUP, "container_name": _CONTAINER}
        self._write(sa.insert(optimizer).values(token=str(uuid4()), **row))

    def lose(self, resource_id: str) -> None:
        """The worker's heartbeats end and have expired; its process is not touched."""
        self._write(sa.delete(optimizer).where(optimizer.c.resource_id == resource_id))

    def resource(self, resource_id: str) -> Resource:
        """A resource as the registry has it now, with its start-up properties.

        An UnknownTargetError says that there is none of this id, any more or yet.
        """
        if row := self._services.registry.read_resource(resource_id).row:
            return resource_of(orphan_of(row))
        raise UnknownTargetError(f"the fleet has no resource {resource_id!r}")

    def tick(self) -> str:
        """Looks for orphans once, as the sensor does; returns what the sensor would say."""
        # Its runs begin and end within `run`.
        result = self._services.ticker.tick(
            lambda owners: dict.fromkeys(owners, RunState.QUEUED), self._detector
        )
        self._detector = result.detector
        self._due += (run.run_key for run in result.dispatches)
        return result.summary

    def run(self) -> list[Restart]:
        """Restarts what the ticks found to be due, as runs of the job do."""
        due, self._due = self._due, []
        restarter, done = self._services.restarter, []
        for run_key in due:
            run_id = str(uuid4())
            for incident in restarter.claim(run_key, run_id):
                result = restarter.restart(incident.incident_id, run_id)
                done.append(Restart(incident.resource_id, str(result.outcome), result.message))
        return done

    def heal(self) -> list[Restart]:
        """Finds orphans, lets their grace period pass, and restarts them.

        Before, a grace period passes as well: a resource younger than that counts as starting.
        """
        for _ in range(2):
            self.now += self._services.policy.grace_period
            self.tick()
        return self.run()

    def close(self) -> None:
        """Releases all resources and closes the database."""
        with self._services.registry.database.reading() as connection:
            ids = connection.scalars(sa.select(resource.c.resource_id)).all()
        for resource_id in ids:
            self.container.release_resource(self.resource(resource_id))
        self._services.close()

    def _write(self, statement: sa.Executable) -> None:
        with self._services.registry.database.writing() as connection:
            connection.execute(statement)


@contextmanager
def ready_fleet(
    folder: Path,
    container_class: Callable[[str, Mapping[str, str]], C],
    properties: Mapping[str, str] | None = None,
    *,
    max_retries: int = 5,
    grace_period: timedelta = timedelta(seconds=30),
) -> Iterator[ReadyFleet[C]]:
    """A fleet on SQLite in a folder, whose workers this container class starts and releases.

    Args:
        folder: An empty folder, such as pytest's `tmp_path`.
        container_class: Built as `container_class(name, properties)`.
        properties: Those of its entry in `containers:`.
        max_retries: How often an orphan is restarted before it is given up.
        grace_period: How long an orphan is left alone after its detection and after each start.
    """
    # Heartbeats last for the test, and end by `lose`.
    optimizers = {
        "auto-restart-enabled": True,
        "auto-restart-max-retries": max_retries,
        "auto-restart-grace-period": f"{grace_period // timedelta(milliseconds=1)}ms",
        "heart-beat-timeout": "1d",
    }
    url = sa.URL.create("sqlite", database=str(folder.absolute() / "fleet.db"))
    database = {"type": "sqlite", "url": url.render_as_string()}
    ams = {"database": database, "optimizer": optimizers}
    document = json.dumps({"ams": ams, "keeper": {"registry": "standalone"}})  # YAML reads JSON
    (folder / "config.yaml").write_text(document, encoding="utf-8")
    container = container_class(_CONTAINER, dict(properties or {}))
    services = Services.connect(load_settings(folder, environ={}))
    services.registry.create()
    with closing(ReadyFleet(services, container)) as fleet:
        yield fleet


class _OneContainer:
    """Finds the container under test, and no other."""

    def __init__(self, container: Container) -> None:
        self._container: Final = container

    def get(self, name: str) -> Container:
        """The container, under its name."""
        if name != _CONTAINER:
            raise ContainerError(f"container {name!r} is not configured")
        return self._container

    def obstacle(self, name: str | None) -> str | None:
        """Why its orphans cannot be restarted; None: they can."""
        if name == _CONTAINER and self._container.supports_auto_restart:
            return None
        return f"container {name!r} opts out of restarts, or is not configured"

    def tend(self) -> None:
        """Nothing is to be done from time to time."""

    def close(self) -> None:
        """Nothing: calls end by themselves."""
