"""Which tests does `make test` run, and which does `make test-all` run after it?

A marker leaves a test to `make test-all`. `--suite developer` chooses the tests that have none of
these markers, `--suite rest` those that have one, and pytest without `--suite` runs everything.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Final

import pytest

DEVELOPER: Final = "developer"
REST: Final = "rest"
# What leaves a test to `make test-all`, and why.
LEFT_TO_REST: Final = {
    "engine": "it needs a real Flink, Spark, ZooKeeper, systemd or Kubernetes, which start slowly",
    "browser": "it looks at Dagster's UI with a real browser",
    "crash_loop": "it kills or freezes real processes, and waits in real time for them to heal",
    "packaging": "it builds the wheel and installs it into environments made for that",
    "long": "it plays long histories, tries very many cases, or waits for many deadlines",
    "web_server": "it starts Dagster's web server, and a process for each run",
    "other_database": "it is in `make test` with another database, and only that differs here",
}
COLLECTED: Final[pytest.StashKey[Sequence[pytest.Item]]] = pytest.StashKey()
LEFT_OUT: Final[pytest.StashKey[Counter[str]]] = pytest.StashKey()
# In this order: `make test` runs a test on the first of those that it is for.
_DATABASES: Final = ("sqlite", "postgresql", "mariadb")
_IS_ON_ANOTHER: Final[pytest.StashKey[bool]] = pytest.StashKey()


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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests of the other suite."""
    config.stash[COLLECTED] = tuple(items)
    _note_databases(items)
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
    return marked or ("other_database" if item.stash.get(_IS_ON_ANOTHER, False) else "")


def _note_databases(items: Sequence[pytest.Item]) -> None:
    """Notes which tests are there for a database that `make test` knows them on as well."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        found[_function_of(item)].add(_database_of(item))
    for item in items:
        first = next((name for name in _DATABASES if name in found[_function_of(item)]), "")
        item.stash[_IS_ON_ANOTHER] = _database_of(item) not in {"", first}


def _function_of(item: pytest.Item) -> str:
    return item.nodeid.partition("[")[0]


def _database_of(item: pytest.Item) -> str:
    """The database that it is parametrized with; empty: with none."""
    callspec = getattr(item, "callspec", None)  # a test without parameters has none
    values = callspec.params.values() if callspec else ()
    return next((each for each in values if isinstance(each, str) and each in _DATABASES), "")
