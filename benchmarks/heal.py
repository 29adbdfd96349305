"""How much does Dagster store when one orphan is healed, from its detection to its recovery?"""

import time
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa

from benchmarks.daemons import DEFINITIONS, QUICK_QUEUE, daemon, wait_for
from benchmarks.figures import Figure, Figures
from benchmarks.storage import Stored, stored
from benchmarks.world import configure, fill, services_of, stamps
from dagster_amoro.asset_keys import HISTORY
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.registry import optimizer
from dagster_amoro_audit.group_reliability import KEY

_RESOURCES: Final = 20
_WARM_UPS: Final = 1  # the first heal makes what every deployment stores once
_MOST: Final = 150_000  # bytes
_GRACE: Final = "10 s"
_REST: Final = 15  # s in which a sensor that has something to do does it


def figures(folder: Path) -> Figures:
    """A worker that dies in a fleet under Dagster's daemon, and all that follows."""
    configure(folder, settings={"ams": {"optimizer.auto-restart-grace-period": _GRACE}})
    with closing(services_of(folder)) as services:
        fill(services, _RESOURCES, one_in=_RESOURCES + 1, in_order=True)
        with daemon(folder, [DEFINITIONS], settings=QUICK_QUEUE) as instance:
            new = [_healed(services, folder, instance, n) for n in range(_WARM_UPS + 1)][-1]
    name = "a heal, stored by Dagster, to 150 KB"
    yield Figure(name=name, ours=new.size, bare=_MOST, unit="B", bound=1)
    name = "the same, growth of its files, ticks included"
    yield Figure(name=name, ours=new.files, bare=_MOST, unit="B")
    yield Figure(name="the same, runs", ours=new.runs, bare=1, unit="")


def _healed(services: Services, folder: Path, instance: dg.DagsterInstance, number: int) -> Stored:
    """What one heal adds, once the audit knows how it ended."""
    _wait_until_at_rest(instance)
    before, starts = stored(folder / "dagster"), len(stamps(folder))
    with services.registry.database.writing() as connection:
        query = sa.select(optimizer).order_by(optimizer.c.resource_id).limit(1)
        row = dict(connection.execute(query).mappings().one())
        connection.execute(sa.delete(optimizer).where(optimizer.c.token == row["token"]))
    wait_for(lambda: len(stamps(folder)) > starts, f"restart {number}")
    time.sleep(2)  # as a worker takes to come up
    with services.registry.database.writing() as connection:
        connection.execute(sa.insert(optimizer).values(row | {"token": str(uuid4())}))
    wait_for(lambda: not services.ledger.open_incidents(), f"recovery {number}")
    end = datetime.now().timestamp()  # noqa: DTZ005 - seconds since 1970
    wait_for(_refreshed(instance, HISTORY, end), f"the history after recovery {number}")
    wait_for(_refreshed(instance, KEY, end), f"the figures after recovery {number}")
    _wait_until_at_rest(instance)
    return stored(folder / "dagster").since(before)


def _refreshed(instance: dg.DagsterInstance, asset: dg.AssetKey, end: float) -> Callable[[], bool]:
    def is_refreshed() -> bool:
        records = instance.fetch_materializations(asset, limit=1).records
        return bool(records) and records[0].timestamp > end

    return is_refreshed


def _wait_until_at_rest(instance: dg.DagsterInstance) -> None:
    """Until no sensor has requested anything for a while, and no run is under way."""
    time.sleep(_REST)
    wait_for(lambda: all(run.is_finished for run in instance.get_runs()), "all runs to end")
