"""The operator verbs from the launchpad: a real web server, a real code location, real runs."""

import json
import os
import pwd
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.error import URLError

import pytest
import sqlalchemy as sa
import yaml

from dagster_amoro.config import load_settings
from dagster_amoro.core import transitions
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.model import (
    EventKind,
    Incident,
    OperatorRequest,
    Resource,
    State,
    Transition,
)
from dagster_amoro.demo.fleet import MARKER, stop_all
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores.schema import event
from tests.helpers.fleet import age
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = [pytest.mark.web_server, pytest.mark.xdist_group("site")]  # one server for all
CHECKOUT: Final = Path(__file__).parents[2]
CONFIG = """
ams:
  database: {type: sqlite, url: "sqlite:///registry.db"}
  optimizer: {auto-restart-enabled: true, auto-restart-grace-period: 1h}
containers:
  - {name: recording, container-impl: dagster_amoro.testing.RecordingContainer}
"""
DAGSTER = """
telemetry: {enabled: false}
run_coordinator: {module: dagster.core.run_coordinator, class: DefaultRunCoordinator}
"""
SELECTOR = {"repositoryLocationName": "dagster-amoro", "repositoryName": "__repository__"}
BY = {"author": "ann", "reason": "a move"}
USER = pwd.getpwuid(os.getuid()).pw_name
KEPT = {**BY, "author": f"ann ({USER})"}  # as typed, and as the system knows
VERBS = (
    *("status", "apply", "pause", "resume", "restart_now", "reset", "give_up", "restore"),
    *("acknowledge", "scale_in"),
)
NEEDS = {"status": set[str](), "apply": {"author"}}  # what else than who and why is required
LAUNCH = """
mutation ($of: ExecutionParams!) {
  launchRun(executionParams: $of) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PythonError { message }
  }
}
"""
RUN = """
query ($run: ID!) {
  runOrError(runId: $run) {
    ... on Run {
      status
      tags { key value }
      eventConnection {
        events {
          __typename
          ... on MessageEvent { message }
          ... on ExecutionStepOutputEvent {
            metadataEntries {
              label
              ... on TextMetadataEntry { text }
              ... on MarkdownMetadataEntry { mdStr }
              ... on JsonMetadataEntry { jsonString }
            }
          }
          ... on ExecutionStepFailureEvent { failureMetadata { description } }
        }
      }
    }
  }
}
"""
DEFAULTS = """
query ($of: PipelineSelector!) {
  pipelineOrError(params: $of) { ... on Pipeline { presets { runConfigYaml } } }
}
"""
VALID = """
query ($of: PipelineSelector!, $config: RunConfigData) {
  isPipelineConfigValid(pipeline: $of, mode: "default", runConfigData: $config) { __typename }
}
"""
JOB = """
query ($of: PipelineSelector!) {
  pipelineOrError(params: $of) {
    ... on Pipeline {
      description
      solids {
        definition {
          ... on SolidDefinition {
            configField {
              configType {
                ... on CompositeConfigType { fields { name description isRequired } }
              }
            }
          }
        }
      }
    }
  }
}
"""


class Done(NamedTuple):
    """A run that is over."""

    status: str
    tags: dict[str, str]
    messages: list[str]
    metadata: dict[str, str]
    failure: str


@dataclass
class Site:
    """A web server, and what its code location works on."""

    folder: Path
    address: str
    services: Services

    def ask(self, query: str, **variables: object) -> Any:  # noqa: ANN401 - JSON
        """The answer of GraphQL to a query with one root field."""
        request = urllib.request.Request(  # noqa: S310 - http, on this machine
            f"{self.address}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310 - as above
            message = json.load(answer)
        assert "errors" not in message, message
        (found,) = message["data"].values()
        return found

    def launch(self, verb: str, **config: str) -> str:
        """The launchpad's button, with a configuration typed into it."""
        message = self.submit(verb, config)
        assert message["__typename"] == "LaunchRunSuccess", message
        run_id: str = message["run"]["runId"]
        return run_id

    def submit(self, verb: str, config: dict[str, str]) -> Any:  # noqa: ANN401 - JSON
        """What the button answers."""
        of = {
            "selector": {**SELECTOR, "jobName": f"keeper_{verb}"},
            "runConfigData": {"ops": {verb: {"config": config}}},
            "mode": "default",
        }
        return self.ask(LAUNCH, of=of)

    def wait(self, run_id: str) -> Done:
        """A run, once it is over."""
        found: dict[str, Any] = {}

        def is_over() -> bool:
            found.update(self.ask(RUN, run=run_id))
            return found["status"] in {"SUCCESS", "FAILURE", "CANCELED"}

        wait_until(is_over, 120)
        events = found["eventConnection"]["events"]
        entries = [entry for each in events for entry in each.get("metadataEntries", [])]
        failures = [each["failureMetadata"] for each in events if "failureMetadata" in each]
        return Done(
            status=found["status"],
            tags={tag["key"]: tag["value"] for tag in found["tags"]},
            messages=[each["message"] for each in events if "message" in each],
            metadata={
                e["label"]: e.get("text") or e.get("mdStr") or e.get("jsonString") for e in entries
            },
            failure="".join(each["description"] for each in failures if each),
        )

    def said(self, run_id: str) -> str:
        """What a run of a verb says when it is done."""
        done = self.wait(run_id)
        assert done.status == "SUCCESS", done
        assert done.tags["dagster/max_retries"] == "0"
        assert done.metadata["result"] in done.messages
        return done.metadata["result"]

    def worker(self, resource_id: str, group: str = "g") -> None:
        """An orphan that a tick has seen."""
        fields = {"container_name": "recording", "thread_count": 2, "memory_mb": 0}
        add(self.services.registry, Resource(resource_id=resource_id, group_name=group, **fields))  # type: ignore[arg-type]
        age(self.services.registry)
        self.services.ticker.tick(lambda _: {}, AmsRestartDetector())

    def tried(self, resource_id: str) -> None:
        """A run takes an orphan up and makes an attempt."""
        now = self.services.clock()
        until = now + timedelta(minutes=1)
        steps: list[Callable[[Incident], Transition]] = [
            lambda i: transitions.dispatch(i, "key", until, now),
            lambda i: transitions.claim(i, "run", until, now),
            lambda i: transitions.begin_attempt(i, until, now),
            lambda i: transitions.started(i, {}, [], now),
        ]
        for step in steps:
            self.services.ledger.apply(step(self.incident(resource_id)))

    def removed(self, resource_id: str) -> list[tuple[object, ...]]:
        """An orphan is given up by a run; its row as it was."""
        row = self.row(resource_id)
        self.services.operations.give_up(resource_id, **BY)
        (order,) = self.services.ticker.tick(lambda _: {}, AmsRestartDetector()).dispatches
        for incident in self.services.restarter.claim(order.run_key, "run"):
            self.services.restarter.restart(incident.incident_id, "run")
        assert self.row(resource_id) == []
        return row

    def row(self, resource_id: str) -> list[tuple[object, ...]]:
        """What the registry has of a resource, as it is stored."""
        query = sa.text("SELECT * FROM resource WHERE resource_id = :id")
        with self.services.registry.database.reading() as connection:
            return [tuple(row) for row in connection.execute(query, {"id": resource_id})]

    def incident(self, resource_id: str) -> Incident:
        """Its open incident."""
        found = self.services.ledger.open_incident(resource_id)
        assert found is not None
        return found

    def last_event(self, kind: EventKind) -> tuple[int | None, str | None, dict[str, Any]]:
        """The newest event of a kind: its incident, its group and its details."""
        query = sa.select(event).where(event.c.kind == str(kind)).order_by(event.c.event_id.desc())
        with self.services.ledger.reading() as connection:
            row = connection.execute(query.limit(1)).one()
        return row.incident_id, row.group_name, json.loads(row.details)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A web server on a port of this machine, and the stores of its configuration."""
    folder = tmp_path_factory.mktemp("operator").resolve()
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "dagster.yaml").write_text(DAGSTER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        MARKER: str(folder),
        "DAGSTER_HOME": str(folder),
        "AMORO_CONF_DIR": str(folder),
        "DAGSTER_GRPC_TIMEOUT_SECONDS": str(PATIENCE),  # of a launch, which starts a process
    }
    command = [sys.executable, "-m", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port)]
    with (folder / "said").open("wb") as log:
        process = subprocess.Popen(
            [*command, "-w", str(CHECKOUT / "workspace.yaml")],
            cwd=CHECKOUT,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    services = Services.connect(load_settings(folder))
    try:
        found = Site(folder, f"http://127.0.0.1:{port}", services)
        wait_until(lambda: is_up(found) or process.poll() is not None, 120)
        assert process.poll() is None, (folder / "said").read_text()
        yield found
    finally:
        services.close()
        process.terminate()
        process.wait(PATIENCE)
        stop_all(folder)


def is_up(site: Site) -> bool:
    """Whether the web server answers."""
    with suppress(URLError, ConnectionError):
        return bool(site.ask("{ version }"))
    return False


@dataclass
class World:
    """What is there before the verbs, and their runs, all launched at once."""

    row: list[tuple[object, ...]]  # of what is restored
    runs: dict[str, str]


@pytest.fixture(scope="module")
def world(site: Site) -> World:
    """An orphan for each verb; a run of each."""
    for name in ("now", "spent", "hopeless", "removed", "lost"):
        site.worker(name)
    site.worker("elsewhere", "h")
    site.tried("spent")
    row = site.removed("removed")
    site.removed("lost")
    of = {
        "pause": {"group": "h", "until": "2126-03-29T08:00:00+02:00"},
        "restart_now": {"resource": "now"},
        "reset": {"group": "g"},
        "give_up": {"resource": "hopeless"},
        "restore": {"resource": "removed"},
        "acknowledge": {"resource": "lost"},
    }
    with ThreadPoolExecutor(2) as pool:  # a launch takes as long as its process to begin
        runs = {verb: pool.submit(site.launch, verb, **BY, **config) for verb, config in of.items()}
        runs["status"] = pool.submit(site.launch, "status", group="h")
        runs["refused"] = pool.submit(site.launch, "restart_now", **BY, resource="nobody")
    return World(row, {verb: run.result() for verb, run in runs.items()})


def test_pause_and_resume(site: Site, world: World) -> None:
    """Both are in the ledger with who and why; an end is shown in UTC."""
    message = site.said(world.runs["pause"])
    assert message.startswith(
        f"group h is paused until 2126-03-29 06:00:00 UTC, by ann ({USER}): a move."
    )
    (pause,) = site.services.ledger.pauses()
    assert pause.until == datetime(2126, 3, 29, 6, tzinfo=UTC)
    details = {**KEPT, "target": "group h", "until": "2126-03-29T06:00:00+00:00"}
    assert site.last_event(EventKind.PAUSED) == (None, "h", details)
    message = site.said(site.launch("resume", **BY, group="h"))
    assert message.startswith(
        f"group h is resumed, by ann ({USER}): a move; before, group h is paused by ann"
    )
    assert site.services.ledger.pauses() == []
    assert site.last_event(EventKind.RESUMED) == (None, "h", {**details, "until": None})


def test_restart_now(site: Site, world: World) -> None:
    """It is ordered; a tick would hand it over before its grace period is over."""
    message = site.said(world.runs["restart_now"])
    assert message.startswith(
        "now is to be restarted (attempt 1 of 5): the next tick hands it to a "
    )
    incident = site.incident("now")
    assert incident.operator_request == OperatorRequest.RESTART
    assert site.last_event(EventKind.RESTART_NOW) == (incident.incident_id, "g", KEPT)


def test_reset(site: Site, world: World) -> None:
    """Its attempts count no longer."""
    message = site.said(world.runs["reset"])
    assert message.startswith("spent has all 5 attempts again. The next tick goes on with that")
    incident = site.incident("spent")
    assert (incident.attempts, incident.attempts_used) == (1, 0)
    assert site.last_event(EventKind.RESET) == (incident.incident_id, "g", KEPT)


def test_give_up(site: Site, world: World) -> None:
    """It is ordered; a run would remove it."""
    message = site.said(world.runs["give_up"])
    assert message.startswith(
        "hopeless is to be given up: the next tick hands it to a run, at most "
    )
    incident = site.incident("hopeless")
    assert incident.operator_request == OperatorRequest.GIVE_UP
    assert site.last_event(EventKind.GIVE_UP) == (incident.incident_id, "g", KEPT)


def test_restore(site: Site, world: World) -> None:
    """The row is back as it was, with a new incident."""
    message = site.said(world.runs["restore"])
    assert message.startswith(
        "removed: its resource row is back as it was when it was exhausted at "
    )
    assert site.row("removed") == world.row != []
    incident = site.incident("removed")
    assert incident.state is State.WAITING
    number, group, details = site.last_event(EventKind.RESTORED)
    assert (number, group) == (incident.incident_id, "g")
    assert {key: details[key] for key in KEPT} == KEPT


def test_acknowledge(site: Site, world: World) -> None:
    """It is in the story of the incident with which it was given up."""
    message = site.said(world.runs["acknowledge"])
    assert message.startswith(f"lost: acknowledged, by ann ({USER}): a move. The check ")
    lost = site.services.ledger.last_removed("lost")
    assert lost is not None
    assert site.last_event(EventKind.ACKNOWLEDGED) == (lost.incident_id, "g", KEPT)


def test_what_is_refused_fails_its_run(site: Site, world: World) -> None:
    """With what there is instead; the run is not tried again."""
    done = site.wait(world.runs["refused"])
    assert done.status == "FAILURE"
    orphans = "elsewhere, hopeless, now, "  # and, by then or not, what is restored
    assert done.failure.startswith(f"there is no resource 'nobody'; orphans are {orphans}")


def test_status(site: Site, world: World) -> None:
    """The table is there to read, and the same for programs."""
    done = site.wait(world.runs["status"])
    assert done.status == "SUCCESS", done
    assert "elsewhere" in done.metadata["status"]
    assert [each["resource_id"] for each in json.loads(done.metadata["json"])["orphans"]] == [
        "elsewhere"
    ]


def test_the_launchpad_describes_every_field(site: Site) -> None:
    """Each job and each field says what it means; who and why are required."""
    for verb in VERBS:
        job = site.ask(JOB, of={"pipelineName": f"keeper_{verb}", **SELECTOR})
        assert len(job["description"]) > 40
        (op,) = job["solids"]
        fields = op["definition"]["configField"]["configType"]["fields"]
        assert [each["name"] for each in fields if not each["description"]] == []
        required = {each["name"] for each in fields if each["isRequired"]}
        assert required - {"resource"} == NEEDS.get(verb, {"author", "reason"})


def test_the_launchpad_opens_with_what_can_be_launched_and_does_nothing(site: Site) -> None:
    """All fields are there to be filled in; what nobody filled in is refused, and said."""
    for verb in VERBS:
        (preset,) = site.ask(DEFAULTS, of={"pipelineName": f"keeper_{verb}", **SELECTOR})["presets"]
        config = yaml.safe_load(preset["runConfigYaml"])["ops"][verb]["config"]
        assert config.get("author", "launchpad") == "launchpad"
        of = {"pipelineName": f"keeper_{verb}", **SELECTOR}
        valid = site.ask(VALID, of=of, config={"ops": {verb: {"config": config}}})
        assert valid["__typename"] == "PipelineConfigValidationValid"
        if verb in {"pause", "restore"}:
            done = site.wait(site.submit(verb, config)["run"]["runId"])
            assert done.status == "FAILURE"
            assert config["group" if verb == "pause" else "resource"] in done.failure


def test_a_launch_without_who_and_why_is_not_accepted(site: Site) -> None:
    """The launchpad says what is missing."""
    message = site.submit("pause", {"group": "g"})
    assert message["__typename"] == "RunConfigValidationInvalid"
    assert "author" in str(message["errors"])
