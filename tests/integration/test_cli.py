"""The operator verbs as a terminal runs them, on a real configuration folder."""

import getpass
import json
import os
import pwd
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import Result

from dagster_amoro.cli import REFUSED, UNUSABLE, main
from dagster_amoro.config import load_settings
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.model import Event, EventKind, Incident, Resource
from dagster_amoro.core.pauses import Scope, Target
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores.schema import event
from tests.helpers.commands import command_runner
from tests.helpers.fleet import age

CONFIG = """
ams:
  database: {type: sqlite, url: "sqlite:///registry.db"}
  optimizer: {auto-restart-enabled: true, auto-restart-grace-period: 1h}
  optimizer-group: {min-parallelism-check-interval: 5s}
containers:
  - {name: recording, container-impl: dagster_amoro.testing.RecordingContainer}
"""
BY = ("--reason", "a move", "--author", "ann")
USER = pwd.getpwuid(os.getuid()).pw_name
ANN = f"ann ({USER})"  # as typed, and as the system knows


@dataclass
class Site:
    """A configuration folder, and what its stores say."""

    folder: Path
    services: Services

    def worker(self, resource_id: str, group: str = "g") -> None:
        """A resource that nobody stands for."""
        fields = {"container_name": "recording", "thread_count": 2, "memory_mb": 0}
        add(self.services.registry, Resource(resource_id=resource_id, group_name=group, **fields))  # type: ignore[arg-type]
        age(self.services.registry)

    def tick(self) -> None:
        """The sensor looks, and a run does what is due."""
        for order in self.services.ticker.tick(lambda _: {}, AmsRestartDetector()).dispatches:
            for incident in self.services.restarter.claim(order.run_key, "run"):
                self.services.restarter.restart(incident.incident_id, "run")

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

    def events(self, kind: EventKind) -> list[Event]:
        """The events of a kind, of whatever story."""
        query = sa.select(event).where(event.c.kind == str(kind)).order_by(event.c.event_id)
        with self.services.ledger.reading() as connection:
            rows = connection.execute(query).all()
        return [
            Event(kind=kind, at=r.at, message=r.message, details=json.loads(r.details))
            for r in rows
        ]

    def run(self, *arguments: str) -> Result:
        """The command."""
        return command_runner().invoke(main, ["--conf-dir", str(self.folder), *arguments])

    def says(self, *arguments: str) -> str:
        """What it says when it is done."""
        result = self.run(*arguments)
        assert (result.exit_code, result.stderr) == (0, "")
        return result.stdout

    def refuses(self, *arguments: str) -> str:
        """Why it refuses, on one line of stderr."""
        result = self.run(*arguments)
        assert (result.exit_code, result.stdout) == (REFUSED, "")
        assert isinstance(result.exception, SystemExit)
        return result.stderr


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Two orphans in group g, one in group h, seen by no tick yet."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    services = Services.connect(load_settings(tmp_path))
    found = Site(tmp_path, services)
    for name, group in (("w-1", "g"), ("w-2", "g"), ("x-1", "h")):
        found.worker(name, group)
    yield found
    services.close()


def test_pause_and_resume(site: Site) -> None:
    """What is paused is held until it is resumed, and both are in the ledger with who and why."""
    told = site.says("pause", "--group", "g", *BY)
    assert told == (
        f"group g is paused until somebody resumes it, by {ANN}: a move. Nothing is started or "
        "removed there; a start under way is finished.\n"
    )
    (pause,) = site.services.ledger.pauses()
    assert (pause.target, pause.until) == (Target(scope=Scope.GROUP, name="g"), None)
    (paused,) = site.events(EventKind.PAUSED)
    by = {"author": ANN, "reason": "a move", "target": "group g", "until": None}
    assert paused.details == by
    told = site.says("resume", "--group", "g", "--author", "bob", "--reason", "moved")
    resumption = f"group g is resumed, by bob ({USER}): moved; before, group g is paused by {ANN}"
    assert told.startswith(resumption)
    assert "at most 5 s from now" in told
    assert site.services.ledger.pauses() == []
    (resumed,) = site.events(EventKind.RESUMED)
    assert resumed.details == {**by, "author": f"bob ({USER})", "reason": "moved"}


def test_a_pause_ends_when_it_was_told_to(site: Site) -> None:
    """After a while, or at a moment, which is shown in UTC; it may be a resource, or everything."""
    before = datetime.now(UTC)
    told = site.says("pause", "--resource", "w-1", *BY, "--for", "90min")
    (pause,) = site.services.ledger.pauses()
    assert pause.until is not None
    assert timedelta() <= pause.until - before - timedelta(minutes=90) < timedelta(minutes=1)
    assert f"resource w-1 is paused until {pause.until:%Y-%m-%d %H:%M:%S} UTC, by {ANN}" in told
    told = site.says("pause", *BY, "--until", "2126-03-29T08:00:00+02:00")
    assert told.startswith(f"everything is paused until 2126-03-29 06:00:00 UTC, by {ANN}: a move.")


def test_a_time_without_a_zone_is_the_machines(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Typed as the clock on the wall has it, shown in UTC."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        told = site.says("pause", *BY, "--until", "2126-03-29T08:00")
    finally:
        monkeypatch.undo()
        time.tzset()
    assert told.startswith("everything is paused until 2126-03-28 23:00:00 UTC")


def test_the_author_is_whoever_runs_it(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the operating system, unless another one is named; one without a name has to say."""
    site.says("pause", "--reason", "a move")
    assert [each.author for each in site.services.ledger.pauses()] == [getpass.getuser()]

    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("dagster_amoro.cli.getuser", nobody)
    assert "say who wants it" in site.refuses("resume", "--reason", "a move")


def test_restart_now(site: Site) -> None:
    """Long before its grace period is over."""
    site.tick()
    told = site.says("restart-now", "w-1", *BY)
    assert told.startswith("w-1 is to be restarted (attempt 1 of 5): the next tick hands it to a ")
    (operator_request,) = site.events(EventKind.RESTART_NOW)
    assert operator_request.details == {"author": ANN, "reason": "a move"}
    site.tick()
    assert site.incident("w-1").attempts == 1
    assert site.incident("w-2").attempts == 0


def test_reset(site: Site) -> None:
    """Of a resource, or of a group."""
    site.tick()
    for name in ("w-1", "w-2", "x-1"):
        site.says("restart-now", name, *BY)
    site.tick()
    assert site.says("reset", "--resource", "w-1", *BY).startswith("w-1 has all 5 attempts again.")
    assert site.says("reset", "--group", "g", *BY).startswith("w-2 has all 5 attempts again.")
    assert [site.incident(name).attempts_used for name in ("w-1", "w-2", "x-1")] == [0, 0, 1]
    events = site.events(EventKind.RESET)
    assert [each.details for each in events] == [{"author": ANN, "reason": "a move"}] * 2


def test_give_up_and_restore(site: Site) -> None:
    """The row is gone, and comes back as it was, with a new incident."""
    site.tick()
    row = site.row("w-1")
    assert site.says("give-up", "w-1", *BY).startswith("w-1 is to be given up: the next tick ")
    site.tick()
    assert site.row("w-1") == []
    assert site.says("acknowledge", "w-1", *BY).startswith("w-1: acknowledged, by ")
    told = site.says("restore", "w-1", *BY)
    assert told.startswith("w-1: its resource row is back as it was when it was exhausted at ")
    assert site.row("w-1") == row != []
    assert site.incident("w-1").attempts == 0
    for kind in (EventKind.GIVE_UP, EventKind.ACKNOWLEDGED, EventKind.RESTORED):
        (told_of,) = site.events(kind)
        assert (told_of.details["author"], told_of.details["reason"]) == (ANN, "a move")


def test_scale_in(site: Site) -> None:
    """At once: its row is gone, and its incident closed."""
    site.tick()
    told = site.says("scale-in", "w-1", *BY)
    assert told == f"w-1: its worker was stopped and its row removed, by {ANN}: a move.\n"
    assert site.row("w-1") == []
    assert site.services.ledger.open_incident("w-1") is None
    (event_of,) = site.events(EventKind.SCALED_IN)
    assert event_of.details == {"author": ANN, "reason": "a move", "resource": "w-1"}


def declare(site: Site, workers: int, **changes: object) -> None:
    """The section `fleet` of the file."""
    group = {"name": "f", "container": "recording", "workers": workers, **changes}
    text = f"{CONFIG}\nfleet: {json.dumps({'groups': [group]})}\n"
    (site.folder / "config.yaml").write_text(text)


def test_apply_shows_the_difference_first(site: Site) -> None:
    """Where nobody can be asked, it is done with --yes alone; the second time it is done."""
    declare(site, 2)
    difference = (
        "~ group f: new, in container recording\n"
        "+ f-1 of group f: 1 thread in container recording\n"
        "+ f-2 of group f: 1 thread in container recording\n"
        "1 group to change, 2 to add.\n"
    )
    assert site.says("apply", "--dry-run") == difference
    result = site.run("apply")
    assert (result.exit_code, result.stdout) == (REFUSED, difference)
    assert result.stderr == (
        "nobody can be asked here whether that is to be done: say it with --yes\n"
    )
    assert site.row("f-1") == []
    assert site.says("apply", "--yes", "--author", "ann") == f"{difference}2 added.\n"
    (applied,) = site.events(EventKind.APPLIED)
    assert applied.details.items() >= {"author": ANN, "reason": "config.yaml declares it"}.items()
    assert site.says("apply", "--yes") == "the fleet is as declared.\n"


def test_apply_releases_if_it_is_told_to(site: Site) -> None:
    """What was declared, and nothing else."""
    declare(site, 2)
    site.says("apply", "--yes")
    declare(site, 1)
    said = site.says("apply", "--yes")
    assert said.splitlines()[0] == "- f-2 of group f: it is declared no longer"
    assert said.splitlines()[-1] == "What is declared no longer is released with --release alone."
    assert site.row("f-2") != []
    assert site.says("apply", "--yes", "--release").splitlines()[-1] == "1 released."
    assert site.row("f-2") == []
    assert site.row("w-1") != []


def test_apply_says_what_it_could_not_do(site: Site) -> None:
    """With the exit code of what is refused; the keeper goes on with it."""
    fails = {"name": "failing", "properties": {"fail-starts": "no room"}}
    containers = [{**fails, "container-impl": "dagster_amoro.testing.RecordingContainer"}]
    document = {"groups": [{"name": "f", "container": "failing", "workers": 1}]}
    text = CONFIG.replace("containers:", f"fleet: {json.dumps(document)}\ncontainers:")
    text += f"  - {json.dumps(containers[0])}\n"
    (site.folder / "config.yaml").write_text(text)
    result = site.run("apply", "--yes")
    assert result.exit_code == REFUSED
    assert "f-1 was left: no room.\n" in result.stdout
    assert site.row("f-1") != []


def test_apply_without_a_declaration_is_refused(site: Site) -> None:
    """By a sentence that says what is missing."""
    assert site.refuses("apply").startswith("config.yaml declares no fleet: it has no section `fle")


def test_status(site: Site) -> None:
    """A table, or JSON; of a group alone where one is named."""
    site.tick()
    site.says("pause", "--group", "h", *BY)
    table = site.says("status")
    for shown in ("w-1", "x-1", f"group h is paused by {ANN}: a move"):
        assert shown in table
    told = json.loads(site.says("status", "--json", "--group", "g"))
    assert {each["resource_id"] for each in told["orphans"]} == {"w-1", "w-2"}
    assert site.refuses("status", "--group", "x").startswith("there is no group 'x'; there are g, ")


@pytest.mark.parametrize(
    ("arguments", "refusal"),
    [
        (["pause", "--group", "x"], "there is no group 'x'; there are g, h"),
        (["pause", "--resource", "x"], "there is no resource 'x'; orphans are w-1, w-2, x-1"),
        (["pause", "--group", "g", "--resource", "w-1"], "name a group or a resource, not both"),
        (["pause", "--group", ""], "the name of a group or a resource is empty"),
        (["pause", "--until", "2020-01-01T00:00Z"], "a pause until 2020-01-01 00:00:00 UTC is ove"),
        (["pause", "--until", "soon"], "'soon' does not say until when, as in 2026-03-29T08:00: "),
        (["pause", "--for", "ages"], "'ages' does not say for how long: accepted is "),
        (["resume"], "everything is not paused by itself, nor is anything else"),
        (["restart-now", "x"], "there is no resource 'x'; orphans are w-1, w-2, x-1"),
        (["restart-now", "w-1"], "w-1 was not noticed as an orphan yet: the next tick opens its "),
        (["reset"], "name a group or a resource"),
        (
            ["reset", "--group", "g"],
            "there is nothing to reset: nothing of group g counts now, nor",
        ),
        (["give-up", "x"], "there is no resource 'x'; orphans are w-1, w-2, x-1"),
        (["acknowledge", "w-1"], "'w-1' was not given up, nor is it out of attempts and kept: "),
        (["scale-in", "x"], "there is no resource 'x'"),
        (["restore", "w-1"], "'w-1' cannot be restored: the ledger has no removed row of it; nor "),
    ],
)
def test_what_is_refused_says_why_and_does_nothing(
    site: Site, arguments: list[str], refusal: str
) -> None:
    """Exit code 1, one line on stderr, no event."""
    told = site.refuses(*arguments, *BY)
    assert told.startswith(refusal)
    assert told.count("\n") == 1
    with site.services.ledger.reading() as connection:
        assert connection.execute(sa.select(event)).all() == []


def test_a_configuration_that_cannot_be_used_is_another_exit_code(tmp_path: Path) -> None:
    """As for the check."""
    (tmp_path / "config.yaml").write_text("ams: {database: {type: oracle}}")
    for command in (["status"], ["resume", *BY], ["restore", "x", *BY]):
        result = command_runner().invoke(main, ["--conf-dir", str(tmp_path), *command])
        assert result.exit_code == UNUSABLE
        assert "oracle" in result.stderr


def test_secrets_in_a_reason_are_not_repeated(site: Site) -> None:
    """What an operator pastes may hold one."""
    told = site.says("pause", "--author", "ann", "--reason", "login with password=hunter2 fails")
    assert "hunter2" not in f"{told}{site.services.ledger.pauses()}{site.events(EventKind.PAUSED)}"
    assert "login with password=" in told


@pytest.mark.parametrize(
    "command",
    [
        "status",
        "pause",
        "resume",
        "reset",
        "restart-now",
        "give-up",
        "restore",
        "scale-in",
        "apply",
    ],
)
def test_each_command_explains_itself(command: str) -> None:
    """What it does, and each option."""
    result = command_runner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    listed = re.findall(r"^  (--[a-z]+)[ A-Z]*(.*)$", result.output, re.MULTILINE)
    assert len(listed) >= 2
    if command != "status":
        assert {"--author", "--reason"} <= {name for name, _ in listed}


def test_the_installed_command_does_it(site: Site) -> None:
    """From a shell, with the folder in the environment."""
    program = Path(sys.executable).with_name("dagster-amoro")
    done = subprocess.run(
        [program, "pause", "--group", "g", *BY],
        env={**os.environ, "AMORO_CONF_DIR": str(site.folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"group g is paused until somebody resumes it, by {ANN}: a move.")
    assert len(site.services.ledger.pauses()) == 1
