"""The dashboard for Grafana: each of its queries is answered, and costs what it finds."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
import sqlalchemy as sa

from benchmarks.ledgers import analyse, fill
from dagster_amoro.healing import openmetrics
from dagster_amoro.stores import schema
from dagster_amoro.stores.ledger import Ledger
from tests.helpers.plans import whole_reads
from tests.helpers.views import DOCS, VIEWS, make_views
from tests.integration.stores.helpers import (
    NOW,
    OpenDatabase,
    closed,
    detected,
    execute,
    opened,
    taken,
)

BOARD: Final = json.loads((DOCS / "grafana" / "dagster-amoro.json").read_text(encoding="utf-8"))
_TIMES: Final = {  # as Grafana writes them; the last day of the past that a test makes
    "$__timeFrom()": f"'{NOW - timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}'",
    "$__timeTo()": f"'{NOW:%Y-%m-%dT%H:%M:%SZ}'",
}
COLUMNS: Final = {"time_series": {"time", "metric"}, "table": set[str]()}


def targets(kind: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The questions of all panels to one data source, with the names of their panels."""
    for panel in BOARD["panels"]:
        for target in panel.get("targets", ()):
            if target["datasource"]["uid"] == f"${{{kind}}}":
                yield panel["title"], target


def as_sent(target: Mapping[str, Any]) -> str:
    """The query of a panel, as the database gets it from Grafana."""
    query: str = target["rawSql"]
    for macro, value in _TIMES.items():
        query = query.replace(macro, value)
    assert "$" not in query, "a macro that the test does not know"
    return query


@pytest.fixture
def past(postgresql_url: sa.URL, open_database: OpenDatabase) -> Ledger:
    """A ledger with a past, something for each panel, and the views."""
    ledger = Ledger(open_database(postgresql_url, "ledger"))
    fill(ledger, 4_000, groups=20, over=timedelta(days=100), before=NOW)
    opened(ledger)
    for _ in range(3):
        closed(ledger, taken(ledger, detected("flaps", at=datetime.now(UTC))))
    sums = dict.fromkeys((*schema.COUNTS, "missing_seconds", "missing_thread_seconds"), 2)
    texts = {"recovery": "{}", "causes": "{}", "group_name": "g", "container_name": "local"}
    execute(ledger.database, sa.insert(schema.day).values(day="2026-03-28", **sums, **texts))
    make_views(ledger.database)
    with ledger.database.writing() as connection:
        analyse(connection)
    return ledger


def test_each_query_is_answered_by_an_index(past: Ledger) -> None:
    """By the columns that its kind of panel asks for; what is there is found."""
    found = dict[str, int]()
    asked = set[str]()
    for title, target in targets("ledger"):
        query = as_sent(target)
        asked |= set(re.findall(r"amoro_\w+", query))
        with past.database.reading() as connection:
            answer = connection.exec_driver_sql(query)
            assert COLUMNS[target["format"]] <= set(answer.keys())
            found[title] = len(answer.all())
        reads = whole_reads(past.database, query)
        assert [each for each in reads if "keeper_day" not in each] == [], title
    assert asked == set(VIEWS)
    assert all(found.values()), found


def test_panels_are_of_the_data_sources_that_somebody_chooses() -> None:
    """No name of a data source of ours is in it; numbers of panels are there once."""
    names = {variable["name"] for variable in BOARD["templating"]["list"]}
    number = sum(len(panel.get("targets", ())) for panel in BOARD["panels"])
    assert number == sum(len(list(targets(name))) for name in names)
    numbers = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_the_metrics_are_those_that_are_exported() -> None:
    """By their names, with the labels that they have."""
    exported = {f"dagster_amoro_{name}" for name in openmetrics._OF_GROUPS}
    asked = [target["expr"] for _, target in targets("prometheus")]
    assert {name for each in asked for name in re.findall(r"dagster_amoro_\w+", each)} <= exported
    assert all(each.startswith("sum by (group) (") for each in asked)
