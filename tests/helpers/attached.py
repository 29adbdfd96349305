"""An Amoro for the tests: its schema on a real database, a look-alike of AMS, its conf folder."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa
import yaml

from dagster_amoro.config import load_settings
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import optimizer, resource, resource_group
from dagster_amoro.testing import RecordingContainer
from tests.helpers.amoro_schema import create_amoro
from tests.helpers.ams import AmsLookAlike
from tests.helpers.fleet import LONG_AGO, Fleet
from tests.helpers.installation import install

_CHECKOUT: Final = Path(__file__).parents[2]
LOCAL: Final = "org.apache.amoro.server.manager.LocalOptimizerContainer"
# As Amoro's optimizers do it, one that is told to end drains: it completes its first registration
# even then, sends heartbeats, and ends after a while.
_OPTIMIZER: Final = """
import argparse, signal, sys, time
ends_at = []
signal.signal(signal.SIGTERM, lambda *_: ends_at.append(time.monotonic() + 0.5))
sys.path[:0] = {path!r}
from tests.helpers.ams import register, touch
options = argparse.ArgumentParser()
for name in ("-a", "-p", "-g", "-hb", "-id"):
    options.add_argument(name)
given, _ = options.parse_known_args()
port = int(given.a.rpartition(":")[2])
token = register(port, given.id, given.g, int(given.p), {{"resource-id": given.id}})
while not ends_at or time.monotonic() < ends_at[0]:
    touch(port, token)
    time.sleep(0.2)
"""


@dataclass
class Amoro:
    """A running Amoro with a keeper attached to it."""

    url: sa.URL
    ams: AmsLookAlike
    world: Fleet
    folder: Path

    def reloaded(self) -> "Amoro":
        """The same, after its operator edited the configuration and restarted Dagster's code."""
        self.world.services.close()
        settings = load_settings(self.folder / "conf", environ={})
        self.world.services = replace(Services.connect(settings), clock=lambda: self.world.now)
        return self

    def resources(self, *ids: str, group: str = "g", **properties: str) -> None:
        """AMS asked a container for these, long ago."""
        rows = [
            {
                "resource_id": each,
                "container_name": "local",
                "group_name": group,
                "thread_count": 2,
                "total_memory": 0,
                "start_time": LONG_AGO,
                "properties": json.dumps(
                    {"memory": "64", **properties}, ensure_ascii=False, separators=(",", ":")
                ),
            }
            for each in ids
        ]
        self.execute(sa.insert(resource), rows)

    def optimizers(self, *ids: str, group: str = "g") -> None:
        """They registered."""
        self.execute(
            sa.insert(optimizer),
            [{"token": str(uuid4()), "resource_id": each, "group_name": group} for each in ids],
        )

    def forget(self, *ids: str) -> None:
        """AMS deletes their rows; all of them where none is named."""
        chosen = optimizer.c.resource_id.in_(ids) if ids else sa.true()
        self.execute(sa.delete(optimizer).where(chosen))

    def execute(self, statement: sa.Executable, rows: Any = None) -> None:  # noqa: ANN401
        """A statement of AMS's own."""
        database = Database(self.url, "AMS")
        with database.writing() as connection:
            connection.execute(statement, rows)
        database.close()

    def rows(self, table: str) -> list[tuple[object, ...]]:
        """Everything in a table, in an order that does not change."""
        with self.world.services.ledger.reading() as connection:
            rows = connection.execute(sa.select("*", sa.table(table)))
            return sorted((tuple(row) for row in rows), key=repr)


@contextmanager
def amoro(
    url: sa.URL,
    folder: Path,
    *,
    upgraded: bool = False,
    **settings: Any,  # noqa: ANN401 - of `configuration`
) -> Iterator[Amoro]:
    """An Amoro with the group `g`, and a keeper that was configured by its conf folder."""
    create_amoro(url, upgraded=upgraded)
    home = install(folder / "amoro", _OPTIMIZER.format(path=[str(_CHECKOUT), *sys.path]))
    with AmsLookAlike(url) as ams:
        conf = configuration(url, ams, home, **settings)
        (home / "conf/config.yaml").write_text(yaml.safe_dump(conf))
        keeper = Services.connect(load_settings(environ={"AMORO_CONF_DIR": str(home / "conf")}))
        with dg.DagsterInstance.local_temp(str(folder)) as instance:
            world = Fleet(services=keeper, container=RecordingContainer(), instance=instance)
            running = Amoro(url=url, ams=ams, world=world, folder=home)
            running.execute(
                sa.insert(resource_group),
                {"group_name": "g", "container_name": "local", "properties": '{"memory":"64"}'},
            )
            yield running
            world.services.close()


def configuration(
    url: sa.URL,
    ams: AmsLookAlike,
    home: Path,
    *,
    grace: timedelta = timedelta(seconds=30),
    **ams_keys: object,
) -> Mapping[str, object]:
    """A config.yaml of Amoro, as its operator has it, with what turns restarts on."""
    kind = "postgres" if url.get_backend_name() == "postgresql" else "mysql"
    return {
        "ams": {
            "server-expose-host": "127.0.0.1",
            "database": {"type": kind, "url": url.render_as_string(hide_password=False)},
            "thrift-server": {"optimizing-service": {"bind-port": ams.thrift_port}},
            "http-server": {"bind-port": ams.http_port},
            "optimizer": {
                "heart-beat-timeout": "1min",
                "auto-restart-enabled": True,
                "auto-restart-max-retries": 3,
                "auto-restart-grace-period": f"{int(grace.total_seconds())} s",
            },
            **ams_keys,
        },
        "containers": [
            {
                "name": "local",
                "container-impl": LOCAL,
                "properties": {"export.JAVA_HOME": str(home / "jdk")},
            }
        ],
    }
