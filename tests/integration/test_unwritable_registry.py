"""The registry cannot be written, and the ledger can: what ticks and runs do, and what they say."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Resource, State
from dagster_amoro.healing.status_table import render
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import Registry, ResourceSnapshot
from tests.helpers.fleet import Fleet, fleet

REFUSED: Final = "the registry cannot be written: "
# How a connection is made read-only by its URL.
READ_ONLY: Final = {
    "postgresql": {"options": "-c default_transaction_read_only=on"},
    "mysql": {"init_command": "SET SESSION TRANSACTION READ ONLY"},
}
# What makes a database refuse a change of a row, though the user has the right to it.
OBSTRUCTED: Final = {
    "sqlite": ["CREATE TRIGGER t BEFORE {0} ON resource BEGIN SELECT RAISE(ABORT, 'not now'); END"],
    "postgresql": [
        (
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN RAISE EXCEPTION ''not now''; END'"
        ),
        "CREATE TRIGGER t BEFORE {0} ON resource FOR EACH ROW EXECUTE FUNCTION refuse()",
    ],
    "mysql": [
        (
            "CREATE TRIGGER t BEFORE {0} ON resource FOR EACH ROW "
            "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not now'"
        )
    ],
}


@pytest.fixture
def world(tmp_path: Path, database_url: sa.URL) -> Iterator[Fleet]:
    """A fleet on each database."""
    with fleet(tmp_path, url=database_url) as found:
        yield found


def read_only(world: Fleet) -> Database:
    """The registry's database, as a standby would show it."""
    url = world.services.registry.database.url
    options = READ_ONLY[url.get_backend_name()]
    database = Database(url.update_query_dict(options), "registry")
    registry = Registry(database, None)
    world.services = replace(world.services, registry=registry)
    return database


SERVERS: Final = pytest.mark.parametrize("database_url", ["postgresql", "mariadb"], indirect=True)


@SERVERS
def test_a_tick_abstains_and_the_status_says_so(world: Fleet) -> None:
    """Nothing is dispatched in vain; with auto-restart off there is nothing to be written."""
    world.worker()
    world.tick()
    with closing(read_only(world)):
        assert world.later().tick() == []
        assert world.message.startswith(f"Abstained, nothing was changed: {REFUSED}")
        status = world.services.status.read()
        assert str(status.doubt).startswith(REFUSED)
        assert [each.next for each in status.orphans] == [
            "once the registry can be written: attempt 1 of 3 at the next tick"
        ]
        shown = " ".join(render(status).split())
        assert "nothing is concluded from it: the registry cannot be" in shown
        policy = replace(world.services.policy, enabled=False)
        world.services = replace(world.services, policy=policy)
        assert world.tick() == []
        assert world.message.startswith("1 resource, 1 orphan")
        assert world.services.status.read().doubt is None
        assert world.services.in_dry_run().status.read().doubt is None


@SERVERS
def test_a_run_lets_go_before_it_counts_or_stops_anything(world: Fleet) -> None:
    """It was requested while the registry could be written."""
    world.worker()
    world.tick()
    (request,) = world.later().tick()
    with closing(read_only(world)):
        (incident,) = world.claim(request, "run")
        with pytest.raises(StoreUnavailableError, match=REFUSED):
            world.services.restarter.restart(incident.incident_id, "run")
    assert world.container.calls == ()
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.CLAIMED, 0)


@SERVERS
def test_a_group_gets_no_resource_that_could_not_be_recorded(world: Fleet) -> None:
    """The start of a new one would have been in vain."""
    world.group(min_parallelism="2")
    (request,) = world.tick()
    with closing(read_only(world)):
        scaler = world.services.scaler
        (scale_up,) = scaler.claim(request.run_key or "", "run")
        with pytest.raises(StoreUnavailableError, match=REFUSED):
            scaler.scale_up(scale_up.group_name, "run")
    assert world.container.calls == ()


class Picky(Registry):
    """A registry that is never asked without saying that it is to act."""

    def read_resource(self, resource_id: str, *, to_act: bool = False) -> ResourceSnapshot:
        """As in production."""
        assert to_act
        return super().read_resource(resource_id, to_act=to_act)


@pytest.mark.parametrize("deed", ["removed", "edited"])
def test_every_look_of_a_run_is_where_it_can_write(world: Fleet, deed: str) -> None:
    """Also the last one, which says whether what was started is stopped again."""
    database = world.services.registry.database
    world.services = replace(world.services, registry=Picky(database, timedelta(minutes=1)))
    world.worker()
    world.tick()
    (request,) = world.later().tick()
    (incident,) = world.claim(request, "run")

    def meanwhile(_resource: Resource) -> None:
        if deed == "removed":
            world.release()
        else:
            world.properties('{"new":"1"}')

    world.container.during_request = meanwhile
    world.services.restarter.restart(incident.incident_id, "run")
    assert world.container.running == (set() if deed == "removed" else {"w-1"})


@pytest.mark.parametrize("change", ["UPDATE", "DELETE"])
def test_the_row_itself_is_tried_before_anything_is_stopped(world: Fleet, change: str) -> None:
    """Rights are not all that it takes: a trigger, a policy or a full disk may stand in the way."""
    world.worker()
    world.tick()
    (request,) = world.later().tick()
    backend = world.services.registry.database.url.get_backend_name()
    for statement in OBSTRUCTED[backend]:
        world.execute(sa.text(statement.format(change)))
    (incident,) = world.claim(request, "run")
    with pytest.raises(StoreUnavailableError, match=f"{REFUSED}.*not now"):
        world.services.restarter.restart(incident.incident_id, "run")
    assert world.container.calls == ()
    assert [each.attempts for each in world.incidents()] == [0]
    world.execute(sa.text("DROP TRIGGER t" + (" ON resource" if backend == "postgresql" else "")))
    world.services.restarter.restart(incident.incident_id, "run")
    assert world.container.requested == ["w-1"]
    assert [each.attempts for each in world.incidents()] == [1]
