"""How much does Dagster store in a day in which nothing happens?"""

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from benchmarks.evaluating import Deployment
from benchmarks.figures import Figure, Figures
from benchmarks.restart import instance_in
from benchmarks.storage import stored
from benchmarks.world import configure, fill, services_of

_SECONDS: Final = 86_400
_TICK: Final = 5  # s
_AUDIT: Final = 120  # s
_RESOURCES: Final = 500
_MOST: Final = 300_000  # bytes


def figures(folder: Path) -> Figures:
    """A day of ticks and of looks of the audit, after the minutes in which the fleet was met."""
    configure(folder, settings={"ams": {"optimizer.heart-beat-timeout": "30 d"}})
    with closing(services_of(folder)) as services, instance_in(folder / "dagster") as instance:
        fill(services, _RESOURCES, one_in=_RESOURCES + 1)
        start = datetime.now(UTC)
        deployment = Deployment(services, instance, start)
        _live(deployment, start, 2 * _AUDIT)
        before = stored(folder / "dagster")
        requested = _live(deployment, deployment.now, _SECONDS)
        new = stored(folder / "dagster").since(before)
    yield Figure(
        name="an idle day, stored by Dagster, to 300 KB",
        ours=new.size,
        bare=_MOST,
        unit="B",
        bound=1,
    )
    name = "the same, growth of its files, ticks included"
    yield Figure(name=name, ours=new.files, bare=_MOST, unit="B")
    name = "the same, runs that were requested or made"
    yield Figure(name=name, ours=new.runs + requested, bare=1, unit="", bound=0)


def _live(deployment: Deployment, start: datetime, seconds: int) -> int:
    """Goes on for so long; returns how many runs were requested."""
    requested = 0
    for second in range(_TICK, seconds + 1, _TICK):
        deployment.now = start + timedelta(seconds=second)
        looks = second % _AUDIT == 0  # a tick is recorded before each: one of the checks asks
        requested += len(deployment.evaluate("orphan_sensor", is_recorded=looks))
        requested += len(deployment.evaluate("audit_sensor")) if looks else 0
    return requested
