"""What a long run prints: where it is, each failure at once, and what it left out and why.

Only where several processes run the tests (`pytest -n`), as `make test` and `make test-all` do;
a single process prints pytest's own dots.
"""

import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
from _pytest.terminal import TerminalReporter

from tests.helpers.suites import LEFT_OUT, LEFT_TO_REST

TALLY: Final = "DAGSTER_AMORO_TALLY"  # a file that the counts of this run are added to
_EVERY_SECONDS: Final = 10
_SHOWN: Final = 2  # tests under way that are named
_NAME: Final = 120  # characters of it: some are parametrized with very long texts
_OUTCOMES: Final = ("passed", "failed", "error", "skipped")
_LAST_LINES: Final = 30  # of a failure, which the tally keeps: they say what was wrong
_WORKER_LEFT_OUT: Final = "left_out"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Starts to report where this process hands the tests to others."""
    manager = session.config.pluginmanager
    if manager.hasplugin("dsession"):
        manager.register(Progress(session.config), "progress")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker says what it left out to the process that reports."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        left_out = session.config.stash[LEFT_OUT]
        output[_WORKER_LEFT_OUT] = dict(left_out)


class Progress:
    """Prints a line every ten seconds, and each failure as soon as it is known."""

    def __init__(self, config: pytest.Config) -> None:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        assert isinstance(reporter, TerminalReporter)
        self._terminal: Final = reporter
        self._began: Final = time.monotonic()
        self._total = 0
        self._counts: Counter[str] = Counter()
        self._running: dict[str, float] = {}  # since when, by test
        self._failures: Final[list[str]] = []
        self._left_out: Mapping[str, int] = {}
        self._over: Final = threading.Event()
        self._lock: Final = threading.Lock()  # of the terminal
        self._thread: Final = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """A worker knows the tests; all workers know the same ones."""
        self._total = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._running[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is over."""
        self._running.pop(nodeid, None)
        self._counts["done"] += 1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A failure is shown at once, and once more at the end."""
        if report.failed:
            self._counts["failed"] += 1
            end = "\n".join(report.longreprtext.splitlines()[-_LAST_LINES:])
            self._failures.append(f"{report.nodeid} failed ({report.when}):\n{end}")
            with self._lock:
                self._show(report)

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(self) -> Generator[None, Any, Any]:
        """No dots while the lines are printed."""
        status = yield
        return status if self._over.is_set() else (status[0], "", "")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:  # noqa: ANN401 - xdist's, without types
        """A worker is done and says what it left out."""
        self._left_out = getattr(node, "workeroutput", {}).get(_WORKER_LEFT_OUT, self._left_out)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """The lines end."""
        self._over.set()
        self._thread.join()

    def pytest_terminal_summary(self) -> None:
        """Says what was left out and why, and adds the counts to the tally."""
        if self._left_out:
            self._terminal.section("left out")
        for name, number in sorted(self._left_out.items()):
            reason = f"{name}: {LEFT_TO_REST[name]}" if name else "`make test` runs them"
            self._terminal.write_line(f"{number} tests, {reason}")
        if os.environ.get(TALLY):
            counts: dict[str, float] = {
                name: len(self._terminal.stats.get(name, [])) for name in _OUTCOMES
            }
            counts["seconds"] = time.monotonic() - self._began
            with Path(os.environ[TALLY]).open("a") as file:
                file.write(json.dumps({**counts, "failures": self._failures}) + "\n")

    def _tell(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            with self._lock:
                self._terminal.write_line(self._line())

    def _line(self) -> str:
        now = time.monotonic()
        longest = sorted(self._running.copy().items(), key=lambda each: each[1])[:_SHOWN]
        under_way = ", ".join(f"{name[:_NAME]} ({now - since:.0f} s)" for name, since in longest)
        done, failed = self._counts["done"], self._counts["failed"]
        share = done / self._total if self._total else 0
        return (
            f"[{share:4.0%}] {now - self._began:.0f} s: {done:,} of {self._total:,} tests done, "
            f"{failed} failed; under way: {under_way or 'collecting'}"
        )

    def _show(self, report: pytest.TestReport) -> None:
        self._terminal.section(f"{report.nodeid} failed ({report.when})", sep="_", red=True)
        self._terminal.write_line(report.longreprtext)
        for title, text in report.sections:
            self._terminal.section(title, sep="-")
            self._terminal.write_line(text)


def closing(tally: Path) -> str:
    """The ends of all failures of several runs; then their sum, in pytest's own words.

    Whoever is shown the last lines of a long run alone sees what failed in its first hour.
    """
    runs = [json.loads(line) for line in tally.read_text().splitlines()]
    total = {name: sum(run[name] for run in runs) for name in (*_OUTCOMES, "seconds")}
    failed = total["failed"] + total["error"]
    counts = (
        f"{total['passed']} passed, {failed} failed, {total['skipped']} skipped "
        f"in {total['seconds']:.0f} s"
    )
    return "\n\n".join([*(failure for run in runs for failure in run["failures"]), counts])


if __name__ == "__main__":
    sys.stdout.write(f"{closing(Path(sys.argv[1]))}\n")
