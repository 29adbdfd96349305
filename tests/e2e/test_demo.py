"""The demo as a newcomer runs it: real workers, Dagster's own daemon and web server."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import psutil
import pytest
import sqlalchemy as sa
from playwright.sync_api import Browser

from dagster_amoro.core.model import Event, Incident, State
from dagster_amoro.core.texts import CONTINUED
from dagster_amoro.core.tick_inputs import RegistrySnapshot
from dagster_amoro.demo.fleet import processes
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, optimizer
from tests.helpers.browser import SIZES, THEMES, browser, viewer

pytestmark = [pytest.mark.crash_loop, pytest.mark.xdist_group("demo")]  # one demo for all
GRACE = timedelta(seconds=15)
RETRIES = 3
WORKERS = 6  # of the demo that register: the one of `legacy` never does
RUNS = """
query ($run: String!) {
  runsOrError(filter: {runIds: [$run]}) { ... on Runs { results { runId status } } }
}
"""
PAGES = """
{
  assetOrError(assetKey: {path: ["amoro", "fleet_status"]}) {
    ... on Asset {
      assetMaterializations(limit: 50) {
        timestamp
        metadataEntries { label ... on MarkdownMetadataEntry { mdStr } }
      }
    }
  }
}
"""
FAILURES = """
query ($run: ID!) {
  runOrError(runId: $run) {
    ... on Run {
      status
      eventConnection {
        events { ... on ExecutionStepFailureEvent { failureMetadata { description } } }
      }
    }
  }
}
"""
UNDER_WAY = """
{ runsOrError(filter: {statuses: [STARTED]}) { ... on Runs { results { runId } } } }
"""
CHECKS = (
    "nothing_given_up",
    "no_incident_overdue",
    "restarts_succeed",
    "restarts_are_not_refused",
    "no_resource_flaps",
    "groups_at_min_parallelism",
    "groups_not_doubled",
    "survey_is_fresh",
)
T = TypeVar("T")


@dataclass
class Demo:
    """A demo under way."""

    folder: Path
    process: subprocess.Popen[bytes]
    address: str
    registry: Registry
    ledger: Ledger
    started: float  # time.monotonic()

    def registered(self) -> dict[str, int]:
        """The pids of the registered workers by resource id."""
        query = sa.select(optimizer.c.resource_id, optimizer.c.properties)
        with self.registry.database.reading() as connection:
            rows = connection.execute(query).all()
        return {name: int(json.loads(text)["job-id"]) for name, text in rows}

    def incident_of(self, resource_id: str) -> Incident | None:
        """The last incident of a resource."""
        with self.ledger.reading() as connection:
            number = connection.scalar(
                sa.text("SELECT max(incident_id) FROM keeper_incident WHERE resource_id = :id"),
                {"id": resource_id},
            )
        return self.ledger.incident(number) if number else None

    def closed(self, resource_id: str, after: int = 0) -> Incident | None:
        """The last incident of a resource, of those after one, once it has its outcome."""
        found = self.incident_of(resource_id)
        if found is None or found.is_open or found.incident_id <= after:
            return None
        return found

    def incidents(self) -> int:
        """The number of the newest incident; 0: there is none."""
        with self.ledger.reading() as connection:
            return connection.scalar(sa.text("SELECT max(incident_id) FROM keeper_incident")) or 0

    def events(self, incident: Incident, kind: str) -> list[Event]:
        """The events of one kind in an incident's story."""
        return [e for e in self.ledger.events(incident.incident_id) if e.kind == kind]

    def ask(self, query: str, **variables: str) -> Any:  # noqa: ANN401 - JSON
        """The answer of Dagster's GraphQL to a query with one root field."""
        request = urllib.request.Request(  # noqa: S310 - http, on this machine
            f"{self.address}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - as above
            (message,) = json.load(answer)["data"].values()
        return message

    def ended(self, run_id: str) -> str | None:
        """How a run ended, once it has; Dagster ends it a moment after its last step."""
        (run,) = self.ask(RUNS, run=run_id)["results"]
        return None if run["status"] == "STARTED" else str(run["status"])


def until(what: str, look: Callable[[], T | None], seconds: float = 300) -> T:
    """Looks until there is something to see."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = look()
        if found is not None and not (isinstance(found, list) and not found):
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what}: not within {seconds} s")


@contextmanager
def running(folder: Path) -> Iterator[Demo]:
    """`make run`, without the virtual environment that the tests are in already; its port is taken.

    Ended by Ctrl-C, it leaves nothing running.
    """
    said = folder / "said"
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as taken, said.open("w") as output:
        wanted = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "dagster_amoro.demo", "run", "--folder", str(folder)]
        process = subprocess.Popen([*command, "--port", wanted], stdout=output, stderr=output)
        try:
            address = until("an address", lambda: re.search(r"http://127\S+", said.read_text()))
        except BaseException:
            process.kill()
            raise
    assert not address.group().endswith(f":{wanted}")
    url = sa.URL.create("sqlite", database=str(folder / "registry.db"))
    registry = Registry(Database(url, "registry"), None)
    ledger = Ledger(Database(url, "ledger"))
    try:
        yield Demo(folder, process, address.group(), registry, ledger, started)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(90)
        registry.database.close()
        ledger.database.close()
    assert process.returncode == 0, said.read_text()
    assert list(processes(folder)) == []


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo in a path with a blank, where one before was stopped in the middle of a run."""
    folder = tmp_path_factory.mktemp("a demo").resolve()
    with running(folder) as before:
        until("a run under way", lambda: before.ask(UNDER_WAY)["results"] or None)
    with running(folder) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for both themes."""
    with browser() as running:
        yield running


def test_what_it_says_of_itself_is_not_taken_for_a_text_of_others(demo: Demo) -> None:
    """Its lines are ours, and stand where a line begins."""
    said = (demo.folder / "said").read_text()
    assert "\n  stop    Ctrl-C\n" in said
    assert CONTINUED not in said


def test_it_is_reachable_from_this_machine_only(demo: Demo) -> None:
    """Web server, daemon and code server listen on the loopback address, if at all."""
    heard = [
        connection.laddr.ip
        for process in processes(demo.folder)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert heard
    assert set(heard) <= {"127.0.0.1", "::1"}


def test_a_group_is_filled_up_to_its_floor(demo: Demo) -> None:
    """One worker of the threads that it lacks, started and recorded by a run of its own."""

    def look() -> RegistrySnapshot | None:
        survey = demo.registry.read_group_snapshot("reports")
        is_there = survey.resources and survey.live.get("reports") and not survey.orphans
        return survey if is_there else None

    survey = until("the worker of reports", look)
    assert (survey.resources, survey.live["reports"]) == (1, 2)


def test_a_killed_worker_comes_back_under_its_id(demo: Demo) -> None:
    """A new process, a green run, a recovered incident; and nothing else is started."""
    before = until(
        "six workers", lambda: demo.registered() if len(demo.registered()) == 6 else None
    )
    said = subprocess.run(
        [sys.executable, "-m", "dagster_amoro.demo", "chaos", "--folder", str(demo.folder)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    victim = re.search(r"Killed (\S+) \(pid (\d+)\)", said)
    assert victim is not None, said
    name, pid = victim.group(1), int(victim.group(2))
    assert before[name] == pid
    incident = until(f"the end of {name}", lambda: demo.closed(name))
    assert (incident.state, incident.attempts) == (State.RECOVERED, 1)
    (attempt,) = demo.events(incident, "attempt")
    assert attempt.at - incident.detected_at >= GRACE
    after = demo.registered()
    assert psutil.pid_exists(after[name])
    assert after[name] != pid
    assert {**after, name: pid} == before
    assert until("the end of its run", lambda: demo.ended(attempt.run_id or "")) == "SUCCESS"


def test_the_history_of_a_group_refreshes_by_itself(demo: Demo) -> None:
    """The frame of the killed worker's group has its recovery, with nobody materializing it."""
    name = until("a recovery", lambda: _recovered(demo))
    incident = demo.closed(name)
    assert incident is not None
    group = incident.group_name

    def look() -> pd.DataFrame | None:
        for file in demo.folder.glob(f"**/orphan_history/{group}/incidents"):
            frame = pd.read_parquet(file)
            mine = frame[(frame["resource"] == name) & (frame["outcome"] == State.RECOVERED)]
            return None if mine.empty else mine
        return None

    row = until("the history", look).iloc[-1]
    assert row["time_to_recover"] >= GRACE


def test_the_hopeless_worker_is_given_up(demo: Demo) -> None:
    """After exactly max-retries attempts, a grace period apart; the run fails with the story."""
    incident = until("the end of legacy-1", lambda: demo.closed("legacy-1"))
    assert (incident.state, incident.attempts) == (State.EXHAUSTED, RETRIES)
    times = [incident.detected_at] + [event.at for event in demo.events(incident, "attempt")]
    assert len(times) == RETRIES + 1
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert min(pauses) >= GRACE
    assert demo.registry.read_resource("legacy-1").row is None
    (kept,) = demo.events(incident, "giving-up")
    row = demo.ledger.removed_row(incident.incident_id) or {}
    assert row["group_name"] == "legacy"
    assert row["start_time"]
    failed = until("the failed run", lambda: _failure(demo, kept.run_id or ""))
    assert "legacy-1" in failed
    assert f"{RETRIES} attempts" in failed
    never = [p for p in processes(demo.folder) if "--never-register" in p.cmdline()]
    assert never == []


def test_the_audit_is_there_within_five_minutes(demo: Demo) -> None:
    """Both stories are told in the history, with nothing clicked."""
    until("a recovery", lambda: _recovered(demo))
    until("the end of legacy-1", lambda: demo.closed("legacy-1"))

    def look() -> set[str] | None:
        files = demo.folder.glob("**/orphan_history/*/incidents")
        message = {str(outcome) for file in files for outcome in pd.read_parquet(file)["outcome"]}
        return message if {"recovered", "exhausted"} <= message else None

    until("both outcomes", look)
    until("reliability", lambda: next(demo.folder.glob("**/group_reliability*"), None))
    assert time.monotonic() - demo.started < 300


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.browser
def test_the_pages_tell_what_happened(
    demo: Demo, chromium: Browser, theme: str, tmp_path: Path
) -> None:
    """Sensor, run, history, reliability, lineage and checks, as somebody sees them who slept."""
    name = until("a recovery", lambda: _recovered(demo))
    incident = until("its end", lambda: demo.closed(name))
    (attempt,) = demo.events(incident, "attempt")
    until("the end of legacy-1", lambda: demo.closed("legacy-1"))
    history = f"/assets/orphan_history?view=partitions&partition={incident.group_name}"
    given_up = "/assets/orphan_history?view=partitions&partition=legacy"
    _reported(demo, incident.group_name, State.RECOVERED)
    _reported(demo, "legacy", State.EXHAUSTED)
    assert incident.closed_at is not None
    took = f"{(incident.closed_at - incident.detected_at).total_seconds():.0f} s"
    with viewer(chromium, demo.address, theme, tmp_path) as ui:
        sensor = "/locations/dagster-amoro/sensors/orphan_sensor"
        ui.open("sensor", sensor, ["orphan_sensor", "0 runs requested"])
        ui.click("sensor-tick", "0 runs requested", "6 resources, 0 orphans")
        step = f"{name.replace('-', '_')}_incident_{incident.incident_id}"
        ui.open("run", f"/runs/{attempt.run_id}", ["Success", "claim_orphans", step])
        ui.open("history", history, [name, "recovered", took, "last day", "pictures"])
        ui.see_sketches(3)
        ui.open("given-up", given_up, ["legacy-1", "exhausted"])
        reliability = ["recommendation", "outcomes of two weeks", "pictures"]
        ui.open("reliability", "/assets/group_reliability?view=events", reliability)
        ui.see_sketches(1)
        upstream = "/assets/group_reliability?view=lineage&lineageScope=upstream&lineageDepth=5"
        assets = ["group_reliability", "orphan_history", "orphan_events", "resource", "optimizer"]
        ui.open("lineage", upstream, assets)
        ui.open("checks", "/assets/amoro/resource?view=checks", CHECKS)
        ui.page.get_by_text("nothing_given_up").first.click()
        ui.wait_for("check-given-up", "legacy-1 (group legacy")


def kill(demo: Demo) -> str:
    """Kills a worker, once all are there, as one is told to; its name."""
    until("all workers", lambda: True if len(demo.registered()) >= WORKERS else None)
    until("that none is an orphan", lambda: None if _restarting(demo) else True)
    said = subprocess.run(
        [sys.executable, "-m", "dagster_amoro.demo", "chaos", "--folder", str(demo.folder)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    victim = re.search(r"Killed (\S+) ", said)
    assert victim is not None, said
    return victim.group(1)


@pytest.mark.browser
def test_the_link_that_is_printed_tells_at_a_glance_who_died_why_and_what_is_next(
    demo: Demo, chromium: Browser, tmp_path: Path
) -> None:
    """In both themes and in windows of two sizes, without a click and without scrolling.

    The page that names the worker first says why it died already: one tick found it, and one
    refresh asked. Every page after it does as well, until the worker is back.
    """
    link = re.search(r"look +(http\S+)", (demo.folder / "said").read_text())
    assert link is not None
    looks = [*product(THEMES, SIZES)]
    for _ in range(len(looks)):  # a worker may be back before everybody has looked
        before, killed_at = demo.incidents(), time.time()
        name = kill(demo)
        until(f"a page about {name}", partial(_pages, demo, name, killed_at))
        for look in list(looks):
            theme, (width, height) = look
            with viewer(chromium, demo.address, theme, tmp_path, (width, height)) as ui:
                text = ui.glance(link[1], f"{name} of group")
                ui.picture(f"fleet-{width}")
            if text is None and demo.closed(name, before):
                break
            assert text is not None, look
            assert "killed by SIGKILL" in text
            assert re.search(rf"next: attempt \d of {RETRIES} (after|at|by a run)", text), text
            assert "history of" in text
            looks.remove(look)
        until(f"the end of {name}", partial(demo.closed, name, before))
        told = _pages(demo, name, killed_at)
        assert told
        assert all("killed by SIGKILL" in page and "next: " in page for page in told), told
        if not looks:
            return
    raise AssertionError(f"nobody saw it in time: {looks}")


def _reported(demo: Demo, group: str, outcome: str) -> None:
    """Waits until the newest refresh of a group says so."""

    def look() -> bool | None:
        files = demo.folder.glob(f"**/orphan_history/{group}/incidents")
        message = {str(text) for file in files for text in pd.read_parquet(file)["outcome"]}
        return True if outcome in message else None

    until(f"{outcome} in the history of {group}", look)


def _pages(demo: Demo, name: str, since: float) -> list[str]:
    """The pages of the fleet since then that tell of an orphan, without Markdown's signs."""
    every = demo.ask(PAGES)["assetMaterializations"]
    made = [each for each in every if float(each["timestamp"]) / 1000 > since]
    texts = [e["mdStr"] for each in made for e in each["metadataEntries"] if e["label"] == "now"]
    plain = (text.replace("\\", "") for text in texts)
    return [text for text in plain if f"**{name}** of group" in text]


def _restarting(demo: Demo) -> bool:
    """Whether some worker that can come back is on its way."""
    return any(each.resource_id != "legacy-1" for each in demo.ledger.open_incidents())


def _recovered(demo: Demo) -> str | None:
    """One that a restart brought back; a worker that is slow to begin recovers by itself."""
    with demo.ledger.reading() as connection:
        found: str | None = connection.scalar(
            sa.text(
                "SELECT resource_id FROM keeper_incident WHERE state = 'recovered' AND attempts > 0"
            )
        )
    return found


def _failure(demo: Demo, run_id: str) -> str | None:
    """What the failed step of a run says."""
    run = demo.ask(FAILURES, run=run_id)
    if run["status"] != "FAILURE":
        return None
    message = [event["failureMetadata"] for event in run["eventConnection"]["events"] if event]
    return str(message[0]["description"])
