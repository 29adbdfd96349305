"""What does a large deployment cost: many groups, many resources, many orphans at once?

Evaluations of the sensor, as the daemon makes them, to the 60 s after which it cuts them off.
"""

from pathlib import Path
from time import perf_counter
from typing import Final

import dagster as dg

from benchmarks import world
from benchmarks.figures import Figure, Figures
from benchmarks.world import close, configure, services_of
from dagster_amoro.code_location import definitions_of
from dagster_amoro.config import AuditSettings

_GROUPS: Final = 10_000
_RESOURCES: Final = 1_000_000
_ONE_IN: Final = 10  # of them is an orphan
_CUT_OFF: Final = 60.0  # seconds
_PARTITIONS: Final = "optimizer_group"


def figures(folder: Path) -> Figures:
    """The first evaluations, until all is recorded, and one that finds nothing new; on SQLite."""
    configure(folder / "fleet")
    services = services_of(folder / "fleet")
    world.fill(services, _RESOURCES, one_in=_ONE_IN, groups=_GROUPS)
    definitions = definitions_of(services, AuditSettings(storage=str(folder / "audit")))
    sensor = definitions.resolve_sensor_def("orphan_sensor")
    of = f"{_GROUPS:,} groups, {_RESOURCES:,} resources, {_RESOURCES // _ONE_IN:,} orphans"
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        cursor, took = None, []
        while len(services.ledger.open_incidents()) < _RESOURCES // _ONE_IN:
            cursor, seconds, stored = _evaluate(sensor, definitions, instance, cursor)
            took.append(seconds)
        name = f"{of}: the longest evaluation that records them"
        yield Figure(name=name, ours=max(took), bare=_CUT_OFF, bound=1)
        name = f"{of}: storing what the last of them told"
        yield Figure(name=name, ours=stored, bare=_CUT_OFF, bound=1)
        cursor, seconds, _ = _evaluate(sensor, definitions, instance, cursor)
        yield Figure(name=f"{of}: one that knows them", ours=seconds, bare=_CUT_OFF, bound=1)
    close(services)


def _evaluate(
    sensor: dg.SensorDefinition,
    definitions: dg.Definitions,
    instance: dg.DagsterInstance,
    cursor: str | None,
) -> tuple[str | None, float, float]:
    """The next cursor; the seconds of the evaluation, and of storing what it asks for."""
    start = perf_counter()
    context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=definitions)
    result = sensor.evaluate_tick(context)
    evaluated = perf_counter()
    for request in result.dynamic_partitions_requests or ():
        instance.add_dynamic_partitions(_PARTITIONS, list(request.partition_keys))
    for event in result.asset_events:
        instance.report_runless_asset_event(event)
    return result.cursor, evaluated - start, perf_counter() - evaluated
