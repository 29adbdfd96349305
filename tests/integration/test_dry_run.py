"""A dry run takes the whole path, records what it would have done, and does nothing.

A fleet lives through a day of deaths that a script made up beforehand: once under a keeper that
acts, once under one that rehearses. Whether an optimizer comes back is up to the script, which
knows the time and the attempts that the ledger counts, and not up to a container that did
something: so both fleets live through the same day, and both ledgers must tell the same story.

What only a start can show, a container that refuses, no dry run can know. Such containers are left
out here; one that is not there for a while, which both keepers see beforehand, is not.
"""

import random
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from pathlib import Path
from typing import Any, Final, NamedTuple

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml

from dagster_amoro.config import load_settings
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import EventKind, State
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.restart import RestartResult
from dagster_amoro.healing.scaling import ScaleUpOutcome
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, optimizer, resource, resource_group
from dagster_amoro.testing import RecordingContainer
from tests.helpers.fleet import GRACE, Fleet, Shelf, fleet, fleet_services, with_settings

pytestmark = pytest.mark.long

MIDNIGHT: Final = datetime(2026, 10, 25, 0, 0, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
DAY: Final = 1_440  # minutes
RESOURCES: Final = 60
GROUPS: Final = 6
DEATHS: Final = 170  # of the whole fleet, in a day
SEED: Final = 20_261_025
POLICY: Final = RestartPolicy(
    enabled=True, max_retries=3, grace_period=5 * MINUTE, stable_after=60 * MINUTE
)
AWAY: Final = range(6 * 60, 8 * 60)  # minutes in which one container is not configured
# By the database's clock, which no test can set: a heartbeat that is not too old today, and one
# that is.
FRESH: Final = datetime(9000, 1, 1, tzinfo=UTC).replace(tzinfo=None)
STALE: Final = datetime(2000, 1, 1, tzinfo=UTC).replace(tzinfo=None)
TABLES: Final = (resource, optimizer, resource_group)
_WRITING: Final = re.compile(r"\s*(INSERT|UPDATE|DELETE|REPLACE|CREATE|ALTER|DROP)", re.IGNORECASE)
_LAUNCH: Final = re.compile(r" \(recording-launch \d+\)")  # a dry run launches nothing
_MARK: Final = "dry run, nothing is done: "
Rows = dict[str, list[tuple[Any, ...]]]


class Fate(Enum):
    """What becomes of an optimizer that died."""

    RETURNS = auto()  # by itself, after so many minutes
    HEALS = auto()  # some minutes after a certain attempt
    NEVER = auto()
    RELEASED = auto()  # somebody removes its resource


class Death(NamedTuple):
    """A line of the script."""

    resource_id: str
    fate: Fate
    minutes: int  # until its fate, from the death or from the attempt
    attempt: int


class Told(NamedTuple):
    """What an event says, but for whether it was a dry run's."""

    kind: str
    at: datetime
    attempt: int | None
    run_id: str | None
    message: str
    threads: tuple[object, object]  # wanted and live ones of its group


def script(seed: int) -> dict[int, list[Death]]:
    """Deaths by the minute of the day, more than one at once now and then."""
    chance = random.Random(seed)  # noqa: S311 - a script, and no secret
    deaths: dict[int, list[Death]] = {}
    for _ in range(DEATHS):
        fate = chance.choices(list(Fate), weights=[8, 12, 3, 1])[0]
        death = Death(
            f"w-{chance.randrange(RESOURCES):02}", fate, chance.randint(1, 12), chance.randint(1, 3)
        )
        deaths.setdefault(chance.randrange(DAY - 60), []).append(death)
    return deaths


class Moving(Shelf):
    """Containers, one of which is not configured for a while."""

    away = False

    def obstacle(self, name: str | None) -> str | None:
        """As of other containers, but for the one that moves."""
        return "it is being moved" if self.away and name == "moving" else super().obstacle(name)


@dataclass
class World:
    """A fleet and its keeper, through a day of the script."""

    keeper: Services
    acting: Services  # the same keeper, not rehearsing
    containers: dict[str, RecordingContainer]
    shelf: Moving
    outside: Database  # the registry, as everybody else reaches it
    spied: list[str] = field(default_factory=list)  # the keeper's statements that write there
    now: datetime = MIDNIGHT
    last_served_group: str | None = None
    down: dict[str, tuple[Death, datetime]] = field(default_factory=dict)
    states: list[list[tuple[str, State, int]]] = field(default_factory=list)  # after each tick
    messages: list[str] = field(default_factory=list)

    def rehearse(self) -> None:
        """From now on it is a dry run."""
        self.services = self.acting.in_dry_run()

    def enforce(self) -> None:
        """From now on it is none any more."""
        self.services = self.acting

    # The script.

    def populate(self) -> None:
        """Sixty resources in six groups, all of them alive."""
        self.acting.registry.create()
        names = ["steady", "steady", "moving", "steady", "stubborn", "steady"]
        groups = [{"group_name": f"g-{n}", "container_name": names[n]} for n in range(GROUPS)]
        self.write(sa.insert(resource_group), groups)
        self.write(sa.insert(resource), [_row(n, names[n % GROUPS]) for n in range(RESOURCES)])
        for number in range(RESOURCES):
            self.registers(f"w-{number:02}")

    def registers(self, resource_id: str) -> None:
        """An optimizer registers for it, and its heartbeats come."""
        values = {"token": f"{resource_id} {self.now:%H:%M}", "resource_id": resource_id}
        shared = {"group_name": _group_of(resource_id), "thread_count": 2, "touch_time": FRESH}
        self.write(sa.insert(optimizer), [values | shared])

    def dies(self, resource_id: str) -> None:
        """Its heartbeats end; AMS, if it is there, removes the optimizer."""
        mine = optimizer.c.resource_id == resource_id
        if self.acting.registry.heartbeat_timeout is None:
            self.write(sa.delete(optimizer).where(mine))
        else:
            self.write(sa.update(optimizer).where(mine).values(touch_time=STALE))

    def release(self, resource_id: str) -> None:
        """Somebody removes its resource row."""
        self.write(sa.delete(resource).where(resource.c.resource_id == resource_id))

    def write(self, statement: sa.Executable, rows: list[dict[str, Any]] | None = None) -> None:
        """Anybody's change of the registry."""
        with self.outside.writing() as connection:
            connection.execute(statement, rows)

    def happens(self, deaths: list[Death]) -> None:
        """What the script says for this minute."""
        attempts_used = {i.resource_id: i for i in self.services.ledger.open_incidents()}
        for resource_id, (death, since) in list(self.down.items()):
            incident = attempts_used.get(resource_id)
            attempted = incident.attempted_at if incident else None
            if death.fate is Fate.HEALS:
                if not incident or incident.attempts < death.attempt or attempted is None:
                    continue
                since = attempted  # noqa: PLW2901 - it waits from the attempt on
            if death.fate is Fate.NEVER or self.now < since + death.minutes * MINUTE:
                continue
            if death.fate is Fate.RELEASED:
                self.release(resource_id)
            else:
                del self.down[resource_id]
                self.registers(resource_id)
        for death in deaths:
            if death.resource_id not in self.down:
                self.down[death.resource_id] = (death, self.now)
                self.dies(death.resource_id)

    # The keeper.

    def play(self, deaths: Mapping[int, list[Death]], minutes: range = range(DAY)) -> None:
        """The script's day, or a part of it; a tick a minute, and runs at once."""
        for minute in minutes:
            self.shelf.away = minute in AWAY
            self.now = MIDNIGHT + minute * MINUTE
            self.happens(deaths.get(minute, []))
            self.step()

    def step(self) -> list[RestartResult]:
        """A tick, the runs that it requests, and the proof of what they did to the registry."""
        before = self.rows() if self.services.ledger.dry_run else None
        seen = self.services.ticker.tick(
            lambda _: {},
            AmsRestartDetector(),
            last_served_group=self.last_served_group,
        )
        self.last_served_group = seen.plan.last_served_group
        self.messages.append(seen.summary)
        turns = []
        for order in seen.dispatches:
            run_id = f"run of {order.run_key}"
            taken = self.services.restarter.claim(order.run_key, run_id)
            turns += [self.services.restarter.restart(each.incident_id, run_id) for each in taken]
        assert before is None or self.rows() == before
        self.states.append(
            sorted(
                (i.resource_id, i.state, i.attempts_used)
                for i in self.services.ledger.open_incidents()
            )
        )
        return turns

    def rows(self) -> Rows:
        """Every row of the registry."""
        with self.outside.reading() as connection:
            return {
                table.name: sorted(tuple(row) for row in connection.execute(_stored(table)))
                for table in TABLES
            }

    # What it recorded.

    def stories(self) -> dict[tuple[str, datetime], list[Told]]:
        """The events of every incident, by its resource and detection."""
        numbers = sa.text("SELECT incident_id FROM keeper_incident")
        with self.services.ledger.reading() as connection:
            found = connection.scalars(numbers).all()
        stories = {}
        for number in found:
            incident = self.services.ledger.incident(number)
            assert incident is not None
            events = self.services.ledger.events(number)
            stories[incident.resource_id, incident.detected_at] = [
                Told(
                    str(event.kind),
                    event.at,
                    event.attempt,
                    _without_numbers(event.run_id),
                    _without_numbers(event.message.replace(_MARK, "")) or "",
                    (event.details.get("wanted"), event.details.get("live")),
                )
                for event in events
            ]
        return stories

    def outcomes(self) -> dict[tuple[str, datetime], tuple[object, ...]]:
        """Each incident as it stands, but for its number and whose it is."""
        query = sa.text(
            "SELECT resource_id, detected_at, state, attempts, prior_attempts, attempted_at, "
            "dispatches, closed_at, version, note, last_error, claimed_until FROM keeper_incident"
        )
        with self.services.ledger.reading() as connection:
            return {(row[0], row[1]): tuple(row[2:]) for row in connection.execute(query)}

    def calls(self) -> int:
        """How often a container was called."""
        return sum(len(each.calls) for each in self.containers.values())


def _row(number: int, container: str) -> dict[str, Any]:
    return {
        "resource_id": f"w-{number:02}",
        "group_name": f"g-{number % GROUPS}",
        "container_name": container,
        "thread_count": 2,
        "total_memory": 0,
        "properties": '{"a":"1"}',
    }


def _group_of(resource_id: str) -> str:
    return f"g-{int(resource_id.removeprefix('w-')) % GROUPS}"


def _stored(table: sa.Table) -> sa.Executable:
    """Without SQLAlchemy's conversions."""
    return sa.select(*(sa.type_coerce(column, sa.types.NULLTYPE) for column in table.columns))


def _without_numbers(text: str | None) -> str | None:
    """Without the number of a launch."""
    return None if text is None else _LAUNCH.sub("", text)


@contextmanager
def world(folder: Path, *, attached: bool = False, **settings: Any) -> Iterator[World]:  # noqa: ANN401
    """A fleet of its own, with a registry and a ledger in two files."""
    folder.mkdir()
    url = sa.URL.create("sqlite", database=str(folder / "registry.db"))
    containers = {name: RecordingContainer(name) for name in ("steady", "moving", "stubborn")}
    containers["stubborn"].opt_out()
    shelf = Moving(**containers)
    base = replace(
        with_settings(fleet_services(folder), check_interval=MINUTE),
        registry=Registry(Database(url, "registry"), None if attached else 30 * MINUTE),
        ledger=Ledger(Database(url.set(database=str(folder / "ledger.db")), "ledger")),
        containers=shelf,
        policy=POLICY,
        **settings,
    )
    if attached:  # whose tables are AMS's
        Registry(base.registry.database, None).create()
    with closing(Database(url, "outside")) as outside:
        made = World(base, base, containers, shelf, outside)
        made.acting = replace(base, clock=lambda: made.now)
        made.services = made.acting
        made.populate()
        _spy(base.registry.database.engine, made.spied)
        yield made
    base.close()


def _spy(engine: sa.Engine, spied: list[str]) -> None:
    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(*arguments: object) -> None:
        statement = str(arguments[2])
        if _WRITING.match(statement):
            spied.append(statement)


@pytest.mark.parametrize(
    ("attached", "limits"),
    [
        pytest.param(False, Limits(max_restarts=1), id="standalone, in waves"),
        pytest.param(True, Limits(max_orphaned=0.4), id="attached, up to a share"),
    ],
)
def test_a_dry_run_of_a_day_tells_what_the_keeper_would_have_done(
    tmp_path: Path, *, attached: bool, limits: Limits
) -> None:
    """Events, times, attempts, states and outcomes are those of the fleet that was kept alive."""
    deaths = script(SEED)
    with (
        world(tmp_path / "enforced", attached=attached, limits=limits) as enforced,
        world(tmp_path / "rehearsed", attached=attached, limits=limits) as from_dry_run,
    ):
        from_dry_run.rehearse()
        for each in (enforced, from_dry_run):
            each.play(deaths)
        assert from_dry_run.calls() == 0
        assert from_dry_run.spied == []
        assert from_dry_run.states == enforced.states
        assert from_dry_run.stories() == enforced.stories()
        assert from_dry_run.outcomes() == enforced.outcomes()
        # The day had everything in it, and the proof above can fail.
        assert enforced.calls() > DEATHS / 2
        assert enforced.spied
        kinds = {told.kind for story in enforced.stories().values() for told in story}
        assert {"started", "recovered", "exhausted", "released", "reported"} <= kinds
        guarded = "left for the next tick" if limits.max_restarts else "orphaned, allowed 40%"
        assert any(guarded in message for message in enforced.messages)


def test_all_that_a_dry_run_writes_says_so(tmp_path: Path) -> None:
    """Every event, every incident and the message of every tick."""
    with world(tmp_path / "world") as made:
        made.rehearse()
        made.play(script(SEED), range(120))
        with made.services.ledger.reading() as connection:
            messages = connection.scalars(sa.text("SELECT message FROM keeper_event")).all()
            marks = connection.scalars(sa.text("SELECT dry_run FROM keeper_incident")).all()
        assert messages
        assert all(message.startswith(_MARK) for message in messages)
        assert set(marks) == {1}
        assert all("ry run" in message for message in made.messages)


# From a dry run to one that acts, and back.


@contextmanager
def rehearsed_outage(folder: Path, minutes: int) -> Iterator[World]:
    """A dry run in which one resource never comes back: given up after twenty minutes."""
    with world(folder / "world") as made:
        made.rehearse()
        made.play({0: [Death("w-01", Fate.NEVER, 0, 0)]}, range(minutes))
        yield made


def newest(made: World) -> tuple[State, int, int, list[str]]:
    """The last incident: its state, attempts and spent attempts, and its story's kinds."""
    with made.services.ledger.reading() as connection:
        number = connection.scalar(sa.text("SELECT max(incident_id) FROM keeper_incident"))
    incident = made.services.ledger.incident(number or 0)
    assert incident is not None
    kinds = [str(event.kind) for event in made.services.ledger.events(incident.incident_id)]
    return incident.state, incident.attempts, incident.attempts_used, kinds


@pytest.mark.parametrize("minutes", [1, 6, 11, 16], ids="{} attempts before".format)
def test_attempts_that_were_not_made_do_not_count(tmp_path: Path, minutes: int) -> None:
    """After the dry run it gets three real attempts before it is given up."""
    with rehearsed_outage(tmp_path, minutes) as made:
        assert newest(made)[2] == minutes // 5
        made.enforce()
        made.play({}, range(minutes, minutes + 1))
        assert newest(made)[3][minutes // 5 * 4 + 1] == EventKind.ENFORCED
        made.play({}, range(minutes + 1, minutes + 60))
        assert made.containers["steady"].requested == ["w-01"] * 3
        state, _, attempts_used, _ = newest(made)
        assert (state, attempts_used) == (State.EXHAUSTED, 3)


def test_what_a_dry_run_would_have_removed_is_there_and_is_restarted(tmp_path: Path) -> None:
    """It is an orphan like any other, with a budget of its own."""
    with rehearsed_outage(tmp_path, 30) as made:
        assert newest(made)[0] is State.EXHAUSTED
        assert made.services.registry.read_snapshot().orphans == {}
        made.enforce()
        made.play({}, range(30, 36))
        assert made.containers["steady"].requested == ["w-01"]
        assert newest(made)[:3] == (State.WAITING, 1, 1)


def test_a_hand_over_of_a_dry_run_is_not_taken_up_by_a_run_that_acts(tmp_path: Path) -> None:
    """It waited in the queue while the mode was changed: nothing is given up by its word."""
    with rehearsed_outage(tmp_path, 20) as made:
        made.now += MINUTE  # it is about to be given up
        (order,) = made.services.ticker.tick(lambda _: {}, AmsRestartDetector()).dispatches
        made.enforce()
        assert made.services.restarter.claim(order.run_key, "run") == []
        made.play({}, range(21, 28))
        assert made.containers["steady"].requested == ["w-01"] * 2
        assert newest(made)[:3] == (State.WAITING, 5, 2)  # three that were not made among them


def test_a_recovery_right_after_a_dry_run_leaves_a_fresh_budget(tmp_path: Path) -> None:
    """Its next death does not continue a count of attempts that nobody made."""
    with rehearsed_outage(tmp_path, 11) as made:
        made.enforce()
        made.now += MINUTE
        made.registers("w-01")
        made.step()
        assert newest(made)[0] is State.RECOVERED
        made.now += MINUTE
        made.dies("w-01")
        made.step()
        assert newest(made)[:3] == (State.WAITING, 0, 0)


def test_back_to_a_dry_run_a_resource_that_was_healed_is_seen_again(tmp_path: Path) -> None:
    """That an earlier dry run would have removed it says nothing any more."""
    with rehearsed_outage(tmp_path, 30) as made:
        made.enforce()
        made.play({}, range(30, 36))
        made.registers("w-01")
        made.step()
        made.rehearse()
        made.now += MINUTE
        made.step()
        made.dies("w-01")
        made.now += MINUTE
        made.step()
        assert newest(made)[0] is State.WAITING
        assert list(made.services.registry.read_snapshot().orphans) == ["w-01"]


def test_back_to_a_dry_run_an_open_incident_goes_on_and_nothing_is_done(tmp_path: Path) -> None:
    """And when it is enforced again, three attempts are left once more."""
    with world(tmp_path / "world") as made:
        made.play({0: [Death("w-01", Fate.NEVER, 0, 0)]}, range(11))
        assert made.containers["steady"].requested == ["w-01"] * 2
        made.rehearse()
        calls = made.calls()
        made.play({}, range(11, 16))
        assert made.calls() == calls
        assert newest(made)[2] == 3
        made.enforce()
        made.play({}, range(16, 60))
        assert made.containers["steady"].requested == ["w-01"] * 5
        assert newest(made)[0] is State.EXHAUSTED


def test_rounds_that_were_not_made_do_not_count(tmp_path: Path) -> None:
    """A dry run fills a group in vain until it stops; who acts afterwards begins anew."""
    with world(tmp_path / "world") as made:
        min_parallelism = {"group_name": "low", "container_name": "steady"}
        made.write(
            sa.insert(resource_group), [min_parallelism | {"properties": '{"min-parallelism":"4"}'}]
        )
        made.rehearse()
        from_dry_run = [fill(made) for _ in range(30)]
        assert ScaleUpOutcome.STARTED in from_dry_run
        assert from_dry_run[-1] is None
        assert "low has 0 of 4 threads, and 3 rounds did not help" in made.messages[-1]
        assert (made.calls(), made.spied) == (0, [])
        made.enforce()
        assert ScaleUpOutcome.STARTED in [fill(made) for _ in range(3)]
        assert made.calls() == 1


def fill(made: World) -> ScaleUpOutcome | None:
    """A tick a minute later, and the run that it requests for a group below its min-parallelism."""
    made.now += MINUTE
    order = made.services.ticker.tick(lambda _: {}, AmsRestartDetector())
    made.messages.append(order.summary)
    if not order.scale_ups:
        return None
    (run,) = order.scale_ups
    (scale_up,) = made.services.scaler.claim(run.run_key, "run")
    return made.services.scaler.scale_up(scale_up.group_name, "run").outcome


def test_shares_and_threads_leave_out_what_would_have_been_removed(tmp_path: Path) -> None:
    """So that the limits judge as they would, and the audit's numbers are those of the day."""
    with world(tmp_path / "enforced") as enforced, rehearsed_outage(tmp_path, 30) as from_dry_run:
        enforced.play({0: [Death("w-01", Fate.NEVER, 0, 0)]}, range(30))
        ours, theirs = from_dry_run.services.registry, enforced.services.registry
        assert ours.resource_counts() == theirs.resource_counts()
        assert ours.capacity(["g-0", "g-1"]) == theirs.capacity(["g-0", "g-1"])
        assert ours.read_snapshot().resources == theirs.read_snapshot().resources


# As Dagster runs it.


def test_real_runs_of_a_dry_run_do_nothing_and_say_so(tmp_path: Path) -> None:
    """The sensor's message, the step and the story of a whole life as an orphan."""
    with fleet(tmp_path) as made:
        made.worker(properties={"a": "1"})
        made.services = made.services.in_dry_run()
        before = registry_rows(made)
        endings = []
        made.tick()
        for _ in range(4):
            (request,) = made.later().tick()
            assert request.run_key
            result = made.launch(request)
            endings.append(result.success)
            assert "ry run" in told_by(result)
        assert endings == [True, True, True, False]  # given up: heard of, as it would be
        made.later().tick()
        assert made.message.startswith("Dry run, nothing is done: ")
        assert made.container.calls == ()
        assert registry_rows(made) == before
        assert made.incidents()[0].state is State.EXHAUSTED


def test_the_mode_comes_from_the_configuration(tmp_path: Path) -> None:
    """`keeper.mode: dry-run` in config.yaml; without it, the same keeper acts."""
    for mode, started in (("dry-run", 0), ("enforce", 1)):
        folder = tmp_path / mode
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(configuration(mode)))
        configured = Services.connect(load_settings(folder, {}))
        with fleet(folder) as made:
            made.services = replace(
                made.services,
                registry=configured.registry,
                ledger=configured.ledger,
                containers=configured.containers,
                policy=configured.policy,
            )
            acting = replace(made.services, registry=Registry(configured.registry.database, GRACE))
            acting.registry.create()
            made_by_hand = _row(1, "recording")
            with acting.registry.database.writing() as connection:
                connection.execute(sa.insert(resource), [made_by_hand])
            made.tick()
            said = made.message
            (request,) = made.later().tick()
            assert made.launch(request).success
            assert ("ry run" in said) is (mode == "dry-run")
            row = made.services.registry.read_resource("w-01").row
            assert row is not None
            assert ("recording-launch" in row["properties"]) is bool(started)
        configured.close()


def configuration(mode: str) -> dict[str, object]:
    """A config.yaml of a standalone registry."""
    container = f"{RecordingContainer.__module__}.{RecordingContainer.__name__}"
    return {
        "ams": {
            "database": {"type": "sqlite", "url": "sqlite:///registry.db"},
            "optimizer.auto-restart-enabled": True,
            "optimizer.auto-restart-grace-period": f"{int(GRACE.total_seconds())} s",
        },
        "keeper": {"registry": "standalone", "mode": mode},
        "containers": [{"name": "recording", "container-impl": container}],
    }


def registry_rows(made: Fleet) -> dict[str, list[tuple[object, ...]]]:
    """Every row of Amoro's tables."""
    tables = {table.name for table in TABLES}
    return {name: rows for name, rows in made.dump().items() if name in tables}


def told_by(result: Any) -> str:  # noqa: ANN401 - Dagster's result
    """What the steps of a run show: of a success what they observed, of a failure why."""
    events = result.all_events
    shown = [
        str(entry)
        for event in events
        if event.event_type is dg.DagsterEventType.ASSET_OBSERVATION
        for entry in event.asset_observation_data.asset_observation.metadata.values()
    ]
    failures = [event.step_failure_data for event in events if event.is_step_failure]
    return " ".join([*shown, *(str(each.user_failure_data) for each in failures)])
