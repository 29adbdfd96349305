"""Which tests does `make test` run, and which does `make test-all` run after it?

A marker leaves a test to `make test-all`. `--suite developer` chooses the tests that have none of
these markers, `--suite rest` those that have one, and pytest without `--suite` runs everything.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import pytest

DEVELOPER: Final = "developer"
REST: Final = "rest"
# What leaves a test to `make test-all`, and why.
LEFT_TO_REST: Final = {
    "engine": "it needs a real Flink, Spark, ZooKeeper or Kubernetes API, which start slowly",
    "browser": "it looks at Dagster's UI with a real browser",
    "crash_loop": "it kills or freezes real processes, and waits in real time for them to heal",
    "packaging": "it builds the wheel and installs it into environments made for that",
    "long": "it takes many seconds, as it plays long histories or tries very many cases",
    "other_database": "it holds on SQLite in `make test`, and only the database is another here",
}
ONE_DATABASE: Final = "one_database"
COLLECTED: Final[pytest.StashKey[Sequence[pytest.Item]]] = pytest.StashKey()
LEFT_OUT: Final[pytest.StashKey[Counter[str]]] = pytest.StashKey()
_OTHER_DATABASE: Final = re.compile("postgresql|mariadb")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option that chooses a suite."""
    parser.addoption(
        "--suite",
        choices=[DEVELOPER, REST],
        help="developer: what `make test` runs; rest: what `make test-all` runs; default: both",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Makes the markers known."""
    for name, reason in LEFT_TO_REST.items():
        config.addinivalue_line("markers", f"{name}: left to `make test-all`, since {reason}")
    config.stash[LEFT_OUT] = Counter()
    config.addinivalue_line(
        "markers",
        f"{ONE_DATABASE}: what it shows does not depend on the database, so that `make test` runs "
        "it on SQLite and `make test-all` on the others",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of the other suite."""
    config.stash[COLLECTED] = tuple(items)
    suite = config.getoption("--suite")
    left_out = [item for item in items if suite is not None and suite_of(item) != suite]
    config.stash[LEFT_OUT] = Counter(reason_of(item) for item in left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = chosen(items, suite)


def chosen(items: Iterable[pytest.Item], suite: str | None) -> list[pytest.Item]:
    """Those of a suite, or all of them."""
    return [item for item in items if suite in {None, suite_of(item)}]


def suite_of(item: pytest.Item) -> str:
    """The one suite that a test is in."""
    return REST if reason_of(item) in LEFT_TO_REST else DEVELOPER


def reason_of(item: pytest.Item) -> str:
    """The marker that leaves it to `make test-all`; empty: it is the developer's."""
    marked = next((name for name in LEFT_TO_REST if item.get_closest_marker(name)), "")
    return marked or ("other_database" if _is_on_another_database(item) else "")


def _is_on_another_database(item: pytest.Item) -> bool:
    if item.get_closest_marker(ONE_DATABASE) is None:
        return False
    callspec = getattr(item, "callspec", None)  # a test without parameters has none
    values = callspec.params.values() if callspec else ()
    return any(isinstance(value, str) and _OTHER_DATABASE.fullmatch(value) for value in values)
