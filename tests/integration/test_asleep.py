"""A deployment that is paused within a transaction holds the others up, but not for ever."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.stores import database
from dagster_amoro.stores.leases import acquire
from tests.helpers.fleet import Fleet, fleet
from tests.helpers.waiting import wait_until

if TYPE_CHECKING:
    import sqlalchemy as sa

HOUR = timedelta(hours=1)


def sleep_within_a_transaction(beta: Fleet) -> None:
    """Alpha takes the lease and never gets to commit it, until beta has completed a tick."""
    with beta.services.ledger.transaction() as asleep:
        acquire(asleep.connection, "alpha", HOUR)
        wait_until(lambda: beta.tick() == [] and "0 orphans" in beta.message)


@pytest.mark.parametrize("backend", ["postgresql", "mariadb"])
def test_a_holder_that_sleeps_in_a_transaction_is_cut_off(
    tmp_path: Path,
    backend: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its locks go with its connection, the other takes over, and what it wrote is lost."""
    monkeypatch.setattr(database, "_IDLE_SECONDS", 1)
    url: sa.URL = request.getfixturevalue(f"{backend}_url")
    with fleet(tmp_path, url=url) as beta:
        beta.services = replace(beta.services, deployment="beta", lease_time=HOUR)
        with pytest.raises(StoreUnavailableError):
            sleep_within_a_transaction(beta)
