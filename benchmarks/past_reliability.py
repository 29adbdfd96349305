"""What does it cost to refresh the figures of all groups, and does it grow with what is past?"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final

import dagster as dg
from upath import UPath

from benchmarks.figures import Figure, Figures, interleaved, peak, seconds
from benchmarks.ledgers import add_incidents
from benchmarks.pairs import GROUPS, Pair
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.healing.assembly import Services
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit.group_reliability import build_group_reliability
from dagster_amoro_audit.io_managers import FRAME_STORE, FrameIOManager

_LIVE: Final = 1_000
"""Incidents of the last day, on either side: too many for advice anew after one more."""
_REPETITIONS: Final = 5
_BOUND: Final = 2.0
_MEMORY_BOUND: Final = 1.2
_POLICY: Final = RestartPolicy(enabled=True, max_retries=5, grace_period=timedelta(seconds=30))


def compared(pair: Pair, incidents: int) -> Figures:
    """A refresh with one new incident, and the one before it, which catches up."""
    ledgers = [services.ledger for services in pair.both]
    for ledger in ledgers:
        _add(ledger, _LIVE, pair.now - timedelta(days=1), GROUPS)
    refreshes = [
        _refresh(services, pair.now, pair.folder / f"frames {number}")
        for number, services in enumerate(pair.both)
    ]
    first, bare = (seconds(each, pair.clock)() for each in refreshes)
    title = f"reliability, first refresh, of {incidents:,} incidents to none, {pair.database}"
    yield Figure(name=title, ours=first, bare=bare, unit=pair.unit)
    works = [
        _after_one_more(pair, ledger, refresh)
        for ledger, refresh in zip(ledgers, refreshes, strict=True)
    ]
    ours, bare = interleaved(*works, repetitions=_REPETITIONS)
    title = f"reliability, refresh by one incident after {incidents:,}, {pair.database}"
    yield Figure(name=title, ours=ours, bare=bare, unit=pair.unit, bound=_BOUND)
    peaks = [partial(peak, each) for each in refreshes]
    ours, bare = interleaved(*peaks, repetitions=_REPETITIONS, warm_up=False)
    title = f"reliability, memory of it, {pair.database}"
    yield Figure(name=title, ours=ours, bare=bare, unit="MiB", bound=_MEMORY_BOUND)


def _refresh(services: Services, now: datetime, folder: Path) -> Callable[[], object]:
    """A run of the asset in this process."""
    asset = build_group_reliability(services.ledger, services.status, _POLICY, lambda: now)
    store = FrameIOManager(UPath(folder))
    return lambda: dg.materialize([asset], resources={FRAME_STORE: store})


def _after_one_more(
    pair: Pair, ledger: Ledger, refresh: Callable[[], object]
) -> Callable[[], float]:
    moments = (pair.now - timedelta(hours=2) + timedelta(seconds=each) for each in count())

    def once() -> float:
        _add(ledger, 1, next(moments), "group-1")
        return seconds(refresh, pair.clock)()

    return once


def _add(ledger: Ledger, number: int, start: datetime, groups: int | str) -> None:
    """Some incidents of the last day, which is over when they are."""
    pace = timedelta(hours=23) / number
    with ledger.database.writing() as connection:
        add_incidents(connection, number, start=start, pace=pace, groups=groups)
