"""The two stores on every database that they run on, and two processes that race."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from tests.integration.stores.helpers import TIMEOUT, OpenDatabase
from tests.integration.stores.racing import Racers


@pytest.fixture
def registry(database_url: sa.URL, open_database: OpenDatabase) -> Registry:
    """A standalone registry with its tables and nothing in them."""
    made = Registry(open_database(database_url), TIMEOUT)
    made.create()
    return made


@pytest.fixture
def ledger(database_url: sa.URL, open_database: OpenDatabase) -> Ledger:
    """A ledger in a database that is empty before its first use."""
    return Ledger(open_database(database_url, "ledger"))


@pytest.fixture(scope="session")
def racers() -> Iterator[Racers]:
    """Two processes that race."""
    made = Racers()
    yield made
    made.stop()
