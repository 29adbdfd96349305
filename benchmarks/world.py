"""What the benchmarks work on: standalone registries full of rows, and a container."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from benchmarks.stamping import StampingContainer
from dagster_amoro.config import load_settings
from dagster_amoro.core.model import Orphan
from dagster_amoro.core.policy import RunState
from dagster_amoro.core.transitions import detect
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.ledger import LedgerTransaction
from dagster_amoro.stores.registry import optimizer, resource, resource_group

CONTAINER: Final = "benchmark"
PROPERTIES: Final = (
    '{"memory":"2048","taskmanager.memory.process.size":"2048m","job-id":"1234567890abcdef"}'
)
_STAMPS: Final = "stamps"
_GROUPS: Final = 100
_GRACE: Final = timedelta(days=1)  # none ends while a benchmark runs
_Expression = sa.ColumnElement[Any]


def stamps(folder: Path) -> list[float]:
    """The times of all starts, in their order."""
    file = folder / _STAMPS
    return sorted(map(float, file.read_text().split())) if file.exists() else []


def configure(
    folder: Path,
    *,
    url: sa.URL | None = None,
    settings: Mapping[str, Mapping[str, object]] | None = None,
    seconds: float = 0,
    container: Mapping[str, object] | None = None,
) -> None:
    """Writes the configuration of a standalone registry.

    Args:
        folder: Where it is, and where the starts are written down.
        url: Of the registry; without one it is a file in the folder.
        settings: What differs in the sections `ams` and `keeper`.
        seconds: How long a start of the `StampingContainer` takes.
        container: The class and properties of another container to have in its place.
    """
    database = {"type": "sqlite", "url": "sqlite:///registry.db"}
    if url:
        kind = "postgres" if url.get_backend_name() == "postgresql" else "mysql"
        database = {"type": kind, "url": url.render_as_string(hide_password=False)}
    stamping = {
        "container-impl": f"{StampingContainer.__module__}.{StampingContainer.__name__}",
        "properties": {"file": str(folder / _STAMPS), "seconds": seconds},
    }
    ams = {
        "database": database,
        "optimizer.auto-restart-enabled": True,
        "optimizer.auto-restart-grace-period": f"{_GRACE.days} d",
        "optimizer.heart-beat-timeout": "1 d",
        "optimizer-group.min-parallelism-check-interval": "5 s",
    }
    sections: Mapping[str, Mapping[str, object]]
    sections = {"ams": ams, "keeper": {"registry": "standalone"}}
    differs = settings or {}
    configuration = {name: {**each, **differs.get(name, {})} for name, each in sections.items()}
    containers = [{"name": CONTAINER, **(container or stamping)}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(json.dumps({**configuration, "containers": containers}))


def services_on(server: sa.URL | None, folder: Path, **options: Any) -> Services:  # noqa: ANN401 - of `configure`
    """Services with a database of their own on a server, named after the folder; None: a file."""
    if server is not None:
        name = f"of_{folder.name}"
        engine = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        server = server.set(database=name)
    configure(folder, url=server, **options)
    return services_of(folder)


def services_of(folder: Path) -> Services:
    """The services that the configuration in a folder describes."""
    return Services.connect(load_settings(folder, {}))


def close(services: Services) -> None:
    """Closes what the services has open; what it wrote is then in the database's own file."""
    services.ledger.database.close()
    services.registry.database.close()


def no_runs(_owners: Sequence[str]) -> Mapping[str, RunState]:
    """What Dagster knows of runs where there are none."""
    return {}


def fill(
    services: Services,
    resources: int,
    *,
    one_in: int,
    in_order: bool = False,
    groups: int = _GROUPS,
) -> None:
    """Makes a registry of so many resources, one in so many an orphan, each heartbeat of now.

    Args:
        services: Of a registry without rows, maybe without tables.
        resources: How many.
        one_in: For one resource in so many there is no optimizer.
        in_order: Whether their ids ascend with their rows, which is the quickest to join;
            otherwise they are as random as Amoro's.
        groups: In how many groups they are, in turn.
    """
    services.registry.create()
    database = services.registry.database
    number = _numbers(resources)
    ids = _ascending if in_order else _RANDOM[database.engine.dialect.name]
    with database.writing() as connection:
        if database.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA cache_size = -500000")  # of this connection; KiB
        connection.execute(_groups(groups))
        connection.execute(_resources(ids(number), number, groups))
        connection.execute(_optimizers(one_in))
    close(services)


def fill_small(services: Services, resources: int, *, groups: int, one_in: int) -> None:
    """The same for few resources, in any database, in groups of the names of `ledgers.fill`."""
    names = [f"group-{number}" for number in range(groups)]
    shared = {"container_name": CONTAINER, "thread_count": 4, "properties": PROPERTIES}
    rows = [
        {**shared, "resource_id": f"resource-{number:06}", "group_name": names[number % groups]}
        for number in range(resources)
    ]
    started = {"total_memory": 2048, "start_time": _long_ago()}
    alive = [row | {"token": row["resource_id"]} for n, row in enumerate(rows, 1) if n % one_in]
    groups_of = [{"group_name": name, "container_name": CONTAINER} for name in names]
    services.registry.create()
    with services.registry.database.writing() as connection:
        connection.execute(sa.insert(resource_group), groups_of)
        connection.execute(sa.insert(resource), [row | started for row in rows])
        connection.execute(sa.insert(optimizer), alive)


def neglect(services: Services, first: int, count: int) -> None:
    """Adds orphans to one group whose incidents have been open for longer than their grace."""
    orphans = [_orphan(number) for number in range(first, first + count)]
    detected = datetime.now(UTC) - 2 * _GRACE
    rows = [orphan._asdict() | {"start_time": _long_ago()} for orphan in orphans]
    services.registry.create()
    services.ledger.open_incidents()  # makes its tables
    with services.ledger.database.writing() as connection:  # one file: a tick sees all or nothing
        connection.execute(sa.insert(resource), rows)
        LedgerTransaction(connection).apply(detect(orphan, detected) for orphan in orphans)


def _long_ago() -> datetime:
    """When the resources were started: none of them is a newborn."""
    return (datetime.now(UTC) - 3 * _GRACE).replace(tzinfo=None)


def _orphan(number: int) -> Orphan:
    return Orphan(
        resource_id=f"resource-{number:016}",
        group_name="group",
        container_name=CONTAINER,
        thread_count=4,
        total_memory=2048,
        properties=PROPERTIES,
    )


def _numbers(count: int) -> _Expression:
    """The numbers from 1 to `count`, as a column."""
    numbers = sa.select(sa.literal(1).label("number")).cte("numbers", recursive=True)
    following = sa.select(numbers.c.number + 1).where(numbers.c.number < count)
    return numbers.union_all(following).c.number


def _ascending(number: _Expression) -> _Expression:
    return sa.func.printf("%025d", number)


_RANDOM: Final = {
    "sqlite": lambda _: sa.func.substr(sa.func.hex(sa.func.randomblob(13)), 1, 25),
    "postgresql": lambda number: sa.func.substr(sa.func.md5(sa.cast(number, sa.Text)), 1, 25),
}


def _groups(groups: int) -> sa.Insert:
    names = sa.select(_group_name(_numbers(groups)), sa.literal(CONTAINER))
    return sa.insert(resource_group).from_select(["group_name", "container_name"], names)


def _resources(resource_id: _Expression, number: _Expression, groups: int) -> sa.Insert:
    values = {
        resource.c.resource_id: resource_id,
        resource.c.group_name: _group_name((number + number // groups) % groups + 1),
        resource.c.container_name: sa.literal(CONTAINER),
        resource.c.thread_count: sa.literal(4),
        resource.c.total_memory: sa.literal(2048),
        resource.c.start_time: sa.literal(_long_ago(), resource.c.start_time.type),
        resource.c.properties: sa.literal(PROPERTIES),
    }
    return sa.insert(resource).from_select(list(values), sa.select(*values.values()))


def _group_name(number: _Expression) -> _Expression:
    return sa.literal("group-") + sa.cast(number, sa.Text)


def _optimizers(one_in: int) -> sa.Insert:
    number = sa.func.row_number().over().label("number")
    numbered = sa.select(resource, number).subquery()
    shared = ("resource_id", "group_name", "container_name", "thread_count", "properties")
    rows = sa.select(sa.cast(numbered.c.number, sa.Text), *(numbered.c[name] for name in shared))
    others = rows.where(numbered.c.number % one_in != 0)
    return sa.insert(optimizer).from_select(["token", *shared], others)
