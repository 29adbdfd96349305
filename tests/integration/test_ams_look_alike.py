import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import requests
import sqlalchemy as sa
from thriftpy2.thrift import TApplicationException
from thriftpy2.transport import TTransportException

from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import metadata, optimizer, resource, resource_group
from tests.helpers.ams import IDL, AmsLookAlike, client, register, touch
from tests.helpers.waiting import PATIENCE

GROUP: Final = {"group_name": "g", "container_name": "flink"}
LONG_AGO: Final = datetime(2020, 1, 1, tzinfo=UTC).replace(tzinfo=None)


@pytest.fixture
def database(database_url: sa.URL, open_database: Callable[..., Database]) -> Database:
    """Amoro's tables with one group, on each database in turn."""
    database = open_database(database_url)
    with database.creating() as connection:
        metadata.create_all(connection)
        connection.execute(sa.insert(resource_group).values(GROUP))
    return database


def rows(database: Database) -> Sequence[Any]:
    """The optimizers that there are, in order of their ids."""
    with database.reading() as connection:
        return connection.execute(sa.select(optimizer).order_by(optimizer.c.resource_id)).all()


def code(call: Callable[..., object], *arguments: object) -> int:
    """The number of the error that AMS answers with."""
    with pytest.raises(IDL.AmoroException) as caught:
        call(*arguments)
    found: int = caught.value.errorCode
    return found


def test_registration(database: Database) -> None:
    """A registration is a row with a new token, of the container that the group has."""
    with AmsLookAlike(database.url) as ams:
        tokens = {register(ams.thrift_port, "w-1", "g", 3, {"job-id": "ü"}) for _ in range(2)}
        assert register(ams.thrift_port, None, "g") not in tokens
        first = ams.registrations[0]
    assert (first.resource_id, first.group, first.threads) == ("w-1", "g", 3)
    assert first.properties == {"job-id": "ü"}
    found = {row.token: row for row in rows(database) if row.resource_id == "w-1"}
    assert found.keys() == tokens
    row = found[first.token]
    assert (row.group_name, row.container_name, row.thread_count) == ("g", "flink", 3)
    assert len(rows(database)) == 3


def test_unknown_group(database: Database) -> None:
    """A group without a row is error 1001, and nothing is written."""
    with AmsLookAlike(database.url) as ams:
        assert code(register, ams.thrift_port, "w-1", "other") == 1001
    assert rows(database) == []


def test_heartbeat(database: Database) -> None:
    """A heartbeat is written by the database's clock; an unknown token is error 2006."""
    with AmsLookAlike(database.url) as ams:
        token = register(ams.thrift_port, "w-1", "g")
        with database.writing() as connection:
            connection.execute(sa.update(optimizer).values(touch_time=LONG_AGO))
        touch(ams.thrift_port, token)
        assert rows(database)[0].touch_time > LONG_AGO + timedelta(days=1)
        assert code(touch, ams.thrift_port, "nobody's") == 2006


def test_row_deleted_by_somebody_else(database: Database) -> None:
    """AMS knows its tokens by heart: the optimizer works on, and its row does not come back."""
    with AmsLookAlike(database.url) as ams:
        token = register(ams.thrift_port, "w-1", "g")
        with database.writing() as connection:
            connection.execute(sa.delete(optimizer))
        touch(ams.thrift_port, token)
    assert rows(database) == []


def test_expiry(database: Database) -> None:
    """Who was not heard of for too long loses row and token."""
    with AmsLookAlike(database.url) as ams:
        token = register(ams.thrift_port, "w-1", "g")
        assert ams.expire(60) == 0
        assert ams.expire(0) == 1
        assert rows(database) == []
        assert code(touch, ams.thrift_port, token) == 2006


def test_short_absence(database: Database) -> None:
    """A restart in time can keep rows and tokens; in between nobody answers."""
    with AmsLookAlike(database.url) as ams:
        ams.forgets = False
        token = register(ams.thrift_port, "w-1", "g")
        ams.stop()
        with pytest.raises(TTransportException):
            touch(ams.thrift_port, token)
        assert len(rows(database)) == 1
        ams.start()
        touch(ams.thrift_port, token)


def test_it_forgets_everybody_when_it_starts(database: Database) -> None:
    """All rows are gone before the port opens; who lives registers again, with a new token."""
    with AmsLookAlike(database.url) as ams:
        token = register(ams.thrift_port, "w-1", "g")
        ams.stop()
        assert len(rows(database)) == 1
        ams.start()
        assert rows(database) == []
        assert code(touch, ams.thrift_port, token) == 2006
        register(ams.thrift_port, "w-1", "g")
    assert len(rows(database)) == 1


def test_next_process(database: Database) -> None:
    """Another AMS on the same database has forgotten those of the one before."""
    with AmsLookAlike(database.url) as ams:
        token = register(ams.thrift_port, "w-1", "g")
    with AmsLookAlike(database.url) as ams:
        assert rows(database) == []
        assert code(touch, ams.thrift_port, token) == 2006


def test_its_rest_removes_what_is_registered_and_no_orphan(database: Database) -> None:
    """An orphan is code 500 in a body, below status 200: no optimizer row has its id."""
    with database.writing() as connection:
        row = {"container_name": "flink", "group_name": "g", "thread_count": 1, "properties": "{}"}
        rows_of = [{"resource_id": name, "total_memory": 0, **row} for name in ("alive", "dead")]
        connection.execute(sa.insert(resource), rows_of)
    with AmsLookAlike(database.url) as ams:
        register(ams.thrift_port, "alive", "g")
        assert removed(ams, "dead") == 500
        assert removed(ams, "alive") == 200
        assert rows(database) == []
    with database.reading() as connection:
        assert list(connection.scalars(sa.select(resource.c.resource_id))) == ["dead"]


def removed(ams: AmsLookAlike, resource_id: str) -> int:
    """The code with which AMS answers to the removal of an optimizer."""
    where = f"http://127.0.0.1:{ams.http_port}/api/ams/v1/optimize/optimizers/{resource_id}"
    answer = requests.delete(where, timeout=PATIENCE)
    assert answer.status_code == 200
    found: int = answer.json()["code"]
    return found


def test_database_gone(sqlite_url: sa.URL) -> None:
    """A database that fails is error 1000, as AMS maps it."""
    with AmsLookAlike() as ams:
        assert ams.expire(0) == 0
    database = Database(sqlite_url, "AMS")
    with database.creating() as connection:
        metadata.create_all(connection)
    with AmsLookAlike(sqlite_url) as ams:
        with database.writing() as connection:
            metadata.drop_all(connection)
        assert code(register, ams.thrift_port, "w-1", "g") == 1000
    database.close()


def test_no_task() -> None:
    """There is never a task, which AMS says by a result that is missing."""
    with AmsLookAlike() as ams, client(ams.thrift_port) as connected:
        with pytest.raises(TApplicationException) as caught:
            connected.pollTask("token", 0)
        assert caught.value.type == TApplicationException.MISSING_RESULT


def test_nothing_is_left_behind() -> None:
    """Leaving ends every thread, whatever it was doing for its clients."""
    before = threading.active_count()
    with AmsLookAlike() as ams:
        with client(ams.thrift_port) as idle:
            idle.ping()
            ams.behaviour = "hangs"
            thread = threading.Thread(target=_fail_to_ping, args=(ams.thrift_port,))
            thread.start()
            ams.stop()
        ams.start()
    thread.join(PATIENCE)
    assert threading.active_count() == before


def _fail_to_ping(port: int) -> None:
    with pytest.raises((TTransportException, OSError)), client(port) as connected:
        connected.ping()


def test_waiting_clients_are_answered() -> None:
    """What hung is answered when AMS no longer hangs."""
    with AmsLookAlike() as ams:
        ams.behaviour = "hangs"
        found: list[str] = []
        work = threading.Thread(
            target=lambda: found.append(register(ams.thrift_port, "w-1", "g")), daemon=True
        )
        work.start()
        assert ams.registrations == []
        ams.behaviour = "answers"
        work.join(PATIENCE)
        assert found == [ams.registrations[0].token]
