"""What the stores' tests share: resources, incidents, and ways to look at a database."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import pytest
import sqlalchemy as sa

from dagster_amoro.core import transitions
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import (
    Event,
    EventKind,
    Incident,
    Orphan,
    Resource,
    ScaleUp,
    ScaleUpState,
    State,
    Transition,
)
from dagster_amoro.core.pauses import Pause, Scope, Target
from dagster_amoro.stores.database import Database, utc_now
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, optimizer, resource

TIMEOUT: Final = timedelta(minutes=1)
NOW: Final = datetime(2026, 3, 29, 0, 59, 59, 999_999, tzinfo=UTC)
UNTIL: Final = NOW + timedelta(minutes=10)
SECRET: Final = "hunter2"  # noqa: S105 - it opens nothing
HOSTILE: Final = (
    "it's",
    'a "quoted" one',
    " space before",
    "space after ",
    "two\nlines\tand a tab",
    "x; DROP TABLE resource; --",
    "$(reboot) `reboot` ${HOME}",
    "100 % %s %(x)s :x ? {x}",
    "back\\slash\\",
    "Grüße, 世界, \U0001f600",
    "<script>",
    "../..",
    "NULL",
)
ODD_TEXT: Final = "tab\t newline\n quote' \" \\ \x1b[31m é 世 \U0001f600 \u2028"
OpenDatabase = Callable[..., Database]
Store = Registry | Ledger


def a_resource(resource_id: str = "r-1", **changes: Any) -> Resource:  # noqa: ANN401 - of any field
    """A resource of group g, in container local."""
    fields = {"group_name": "g", "container_name": "local", "thread_count": 2, "memory_mb": 1024}
    return Resource(resource_id=resource_id, **{**fields, **changes})


def an_orphan(resource_id: str = "r-1", group_name: str = "g") -> Orphan:
    """The row of such a resource."""
    return Orphan(resource_id, group_name, "local", 2, 1024, "{}")


def detected(resource_id: str = "r-1", group_name: str = "g", at: datetime = NOW) -> Transition:
    """The step that opens an incident."""
    return transitions.detect(an_orphan(resource_id, group_name), at)


def opened(ledger: Ledger, resource_id: str = "r-1", group_name: str = "g") -> Incident:
    """A new incident."""
    return taken(ledger, detected(resource_id, group_name))


def claimed(ledger: Ledger, resource_id: str = "r-1", run_id: str = "run") -> Incident:
    """A new incident that a run has a claim on until `UNTIL`."""
    return taken(ledger, transitions.claim(opened(ledger, resource_id), run_id, UNTIL, NOW))


def closed(ledger: Ledger, incident: Incident) -> Incident:
    """The incident with an outcome."""
    return taken(ledger, transitions.close(incident, State.RECOVERED, "it is back", NOW))


def ended(ledger: Ledger, resource_id: str, outcome: State, at: datetime = NOW) -> Incident:
    """An incident that had two attempts and this outcome."""
    incident = claimed(ledger, resource_id)
    for _ in range(2):
        incident = taken(ledger, transitions.begin_attempt(incident, UNTIL, NOW))
        incident = taken(ledger, transitions.attempt_failed(incident, "no", UNTIL, NOW))
    return taken(ledger, transitions.close(incident, outcome, "over", at))


def from_dry_run(ledger: Ledger) -> Ledger:
    """The same ledger in a dry run."""
    return Ledger(ledger.database, dry_run=True)


def a_row(resource_id: str = "r-1", **changes: object) -> dict[str, object]:
    """A whole resource row, as the registry reads it."""
    row = {
        "resource_id": resource_id,
        "resource_type": 0,
        "container_name": "local",
        "group_name": "g",
        "thread_count": 2,
        "total_memory": 1024,
        "start_time": "2026-03-29 01:00:00",
        "properties": "{}",
    }
    return row | changes


def a_pause(name: str = "r-1", **changes: Any) -> Pause:  # noqa: ANN401 - of any field
    """A pause of a resource."""
    target = Target(scope=Scope.RESOURCE, name=name)
    fields = {"author": "ann", "reason": "moving", "paused_at": NOW, "until": UNTIL}
    return Pause(**{"target": target, **fields, **changes})


def add_pause(ledger: Ledger, pause: Pause) -> None:
    """An operator pauses something."""
    with ledger.transaction() as transaction:
        transaction.add_pause(pause)


def a_scale_up(**changes: Any) -> ScaleUp:  # noqa: ANN401 - of any field
    """The first round of group g."""
    fields = {
        "group_name": "g",
        "min_parallelism": 8,
        "rounds": 1,
        "resource_id": "new",
        "threads": 3,
    }
    return ScaleUp(**{**fields, "state": ScaleUpState.REQUESTED, **changes})


def move_scale_up(ledger: Ledger, before: ScaleUp | None, after: ScaleUp) -> bool:
    """Takes a step of a group's rounds; whether it was expected."""
    with ledger.transaction() as transaction:
        return transaction.move_scale_up(before, after)


def note(ledger: Ledger, group_name: str | None, kind: EventKind = EventKind.SCALE_UP) -> None:
    """Tells something of a group, or of everything."""
    event = Event(kind=kind, at=NOW, message=f"about {group_name}", details={"k": ODD_TEXT})
    with ledger.transaction() as transaction:
        transaction.add_event(event, group_name=group_name)


def taken(ledger: Ledger, step: Transition) -> Incident:
    """The incident after a step that nobody else takes."""
    moved = ledger.apply(step)
    assert moved is not None
    return moved


def execute(database: Database, statement: sa.Executable | str) -> None:
    """Any statement, as somebody else would run it."""
    with database.writing() as connection:
        connection.execute(sa.text(statement) if isinstance(statement, str) else statement)


def rows(database: Database, table: sa.Table) -> list[Mapping[str, Any]]:
    """Everything in a table."""
    with database.reading() as connection:
        return [dict(row) for row in connection.execute(sa.select(table)).mappings()]


def register(
    registry: Registry, *resource_ids: str | None, silent: timedelta = timedelta()
) -> None:
    """Optimizers that name these resources, their last heartbeat `silent` ago by its own clock."""
    with registry.database.writing() as connection:
        now = connection.scalars(sa.select(utc_now())).one()
        for resource_id in resource_ids:
            values = {"token": str(uuid4()), "resource_id": resource_id, "touch_time": now - silent}
            connection.execute(sa.insert(optimizer).values(values))


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Collects the statements that a database is sent."""
    sent: list[str] = []

    def note(*arguments: Any) -> None:  # noqa: ANN401 - of SQLAlchemy's hook
        sent.append(arguments[2])

    sa.event.listen(database.engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(database.engine, "before_cursor_execute", note)


def later(registry: Registry, resource_id: str, start: datetime, **columns: object) -> None:
    """A resource that was recorded at some time."""
    values = {"group_name": "g", "thread_count": 2, "start_time": start, **columns}
    statement = sa.insert(resource).values(resource_id=resource_id, properties="{}", **values)
    execute(registry.database, statement)


def is_write(statement: str) -> bool:
    """Whether a statement writes, or takes the lock for it."""
    words = ("INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "ALTER", "BEGIN IMMEDIATE")
    return statement.lstrip().upper().startswith(words)


START: Final = datetime(2026, 3, 29, 1, 0, 0)  # noqa: DTZ001 - as the database has it


def rows_as_stored(registry: Registry) -> list[tuple[object, ...]]:
    """All resource rows, without any conversion."""
    with registry.database.reading() as connection:
        found = connection.exec_driver_sql("SELECT * FROM resource ORDER BY resource_id")
        return [tuple(row) for row in found]


def refused(store: Store, call: Callable[[Any], object]) -> str:
    """The message with which a call is refused; it and all that a log would show are discreet."""
    with pytest.raises(StoreUnavailableError) as caught:
        call(store)
    message = str(caught.value)
    assert message.startswith(f"the {store.database.name} ")
    told = [str(error) for error in told_with(caught.value)]
    for word in (SECRET, "SELECT ", "INSERT ", "UPDATE ", "DELETE ", "CREATE ", "WHERE ", "[SQL"):
        assert word not in "".join(told)
    assert "\n" not in message
    return message


def told_with(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that a traceback shows with it."""
    shown: BaseException | None = error
    while shown is not None:
        yield shown
        hidden = shown.__suppress_context__
        shown = shown.__cause__ or (None if hidden else shown.__context__)
