"""Two processes that race for one database. Started as a script, this file is one of them."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Final
from uuid import uuid4

import sqlalchemy as sa

from dagster_amoro.core import transitions
from dagster_amoro.core.fleet_plan import GroupStep
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.leases import acquire
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from tests.helpers.waiting import PATIENCE
from tests.integration.stores.helpers import (
    NOW,
    TIMEOUT,
    UNTIL,
    a_resource,
    a_scale_up,
    detected,
    move_scale_up,
)


class Racers:
    """Two other processes that do the same thing to one database at the same moment.

    Each says when it is ready, and begins when it is told to; so they meet as closely as processes
    can, and one pair of them serves all tests.
    """

    def __init__(self) -> None:
        arguments = [sys.executable, "-W", "error", "-m", __name__]
        self._processes = [
            subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]

    def race(self, action: str, url: sa.URL) -> list[object]:
        """What came of it for each: the action's result, or the text of its error."""
        self._send(json.dumps([action, url.render_as_string(hide_password=False)]))
        assert self._hear() == ["ready", "ready"]
        self._send("go")
        return self._hear()

    def stop(self) -> None:
        """Ends them."""
        for process in self._processes:
            process.communicate(timeout=PATIENCE)
            assert process.returncode == 0

    def _send(self, line: str) -> None:
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(line + "\n")
            process.stdin.flush()

    def _hear(self) -> list[object]:
        return [json.loads(p.stdout.readline()) for p in self._processes if p.stdout is not None]


def create(database: Database) -> Callable[[], object]:
    """Creates the registry's tables."""
    return Registry(database, TIMEOUT).create


def add_group(database: Database) -> Callable[[], object]:
    """Records a group."""
    return lambda: Registry(database, TIMEOUT).add_group("g", "local")


def declare(database: Database) -> Callable[[], object]:
    """Records a group and ten resources; how many of them were recorded by this process."""
    groups = [GroupStep("g", "local", {}, "new")]
    new = [a_resource(f"r-{number}") for number in range(10)]
    return lambda: len(Registry(database, TIMEOUT).declare(groups, new))


def migrate(database: Database) -> Callable[[], object]:
    """Uses the ledger for the first time."""
    return lambda: len(Ledger(database).open_incidents())


def detect(database: Database) -> Callable[[], object]:
    """Opens an incident for r-1; whether that was this process."""
    ledger = Ledger(database)
    ledger.open_incidents()
    return lambda: ledger.apply(detected()) is not None


def claim(database: Database) -> Callable[[], object]:
    """Claims the only open incident as it stands now; whether that was this process."""
    ledger = Ledger(database)
    (incident,) = ledger.open_incidents()
    step = transitions.claim(incident, str(uuid4()), UNTIL, NOW)
    return lambda: ledger.apply(step) is not None


def scale_up(database: Database) -> Callable[[], object]:
    """Begins the first round of a group; whether that was this process."""
    ledger = Ledger(database)
    ledger.open_incidents()
    return lambda: move_scale_up(ledger, None, a_scale_up(resource_id=str(uuid4())))


def scale_up_again(database: Database) -> Callable[[], object]:
    """Begins the next round of the only group; whether that was this process."""
    ledger = Ledger(database)
    (before,) = ledger.scale_ups().values()
    after = before.evolve(resource_id=str(uuid4()))
    return lambda: move_scale_up(ledger, before, after)


def lease(database: Database) -> Callable[[], object]:
    """Asks for the lease; the name of its holder, and whether that is this process."""
    ledger = Ledger(database)
    ledger.open_incidents()
    name = str(uuid4())

    def ask() -> object:
        with ledger.transaction() as transaction:
            _, held = acquire(transaction.connection, name, timedelta(hours=1))
        return held.holder, held.fence, held.holder == name

    return ask


RACES: Final = {
    do.__name__: do
    for do in (create, add_group, declare, migrate, detect, claim, scale_up, scale_up_again, lease)
}


def take_part() -> None:
    """One side of every race, in a process of its own."""
    for line in sys.stdin:
        action, url = json.loads(line)
        database = Database(sa.make_url(url), "store")
        act = RACES[action](database)
        print(json.dumps("ready"), flush=True)  # noqa: T201 - read by `Racers`
        sys.stdin.readline()
        try:
            result = act()
        except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
            result = f"{type(error).__name__}: {error}"
        database.close()
        print(json.dumps(result), flush=True)  # noqa: T201 - as above


if __name__ == "__main__":
    take_part()
