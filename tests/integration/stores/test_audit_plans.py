"""What the audit's sensor asks of a ledger with a past is bounded by an index."""

from datetime import timedelta

import dagster as dg
import pytest

from benchmarks.ledgers import analyse, fill
from dagster_amoro.config import AuditSettings
from dagster_amoro.core import transitions
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import State
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from dagster_amoro_audit.inspection import Inspector
from dagster_amoro_audit.windows import counts
from tests.helpers.plans import bounded
from tests.integration.stores.helpers import NOW, claimed, ended, opened, taken


@pytest.fixture
def inspector(ledger: Ledger) -> Inspector:
    """Of a ledger with a past, and some incidents of each kind, one of them kept."""
    fill(ledger, 4_000, groups=20, over=timedelta(days=100), before=NOW - timedelta(days=8))
    for number, outcome in enumerate((State.EXHAUSTED, State.SUPERSEDED, State.RECOVERED)):
        ended(ledger, f"ended-{number}", outcome)
    opened(ledger, "worker-3", "group-3")
    claimed(ledger, "claimed")
    taken(ledger, transitions.keep(claimed(ledger, "kept"), "out of attempts", NOW))
    with ledger.database.writing() as connection:
        analyse(connection)
    registry = Registry(ledger.database, None)
    registry.create()
    return Inspector(
        ledger=ledger,
        registry=registry,
        policy=RestartPolicy(enabled=True, max_retries=3, grace_period=timedelta(minutes=5)),
        limits=Limits(),
        check_interval=timedelta(minutes=1),
        clock=lambda: NOW + timedelta(minutes=1),
        alerts=AuditSettings(),
        scales_up=True,
    )


@pytest.mark.parametrize("number", range(1, 8))
def test_every_check_is_bounded_by_an_index(inspector: Inspector, number: int) -> None:
    """But for the one that asks Dagster alone, and those that ask the registry or what is now."""
    with dg.DagsterInstance.ephemeral() as instance:
        name, look = list(inspector.looks(instance).items())[number]
        with bounded(inspector.ledger.database):
            inspector.ledger.open_incidents()
            look()
    assert name


def test_the_windows_are_counted_by_an_index(inspector: Inspector) -> None:
    """Each of them, and the newest incident."""
    with bounded(inspector.ledger.database):
        assert counts(inspector.ledger, NOW + timedelta(minutes=1)).open == 3
