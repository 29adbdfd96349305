"""Long random histories of a fleet: whatever happens in whatever order, the rules hold.

The stores are real, on an SQLite file. Workers, their container, Dagster and time are made up here.
Ticks and runs are threads of which one at a time goes on, up to its next transaction or into the
container, when it is told to: so a history decides what comes between any two of their steps, and
the same history always ends in the same way.

A history that breaks a rule is cut down to the deeds that it takes, and these are shown: they can
be added to `KNOWN` as they are. More histories than by default, or others:

    DAGSTER_AMORO_HISTORIES=20000 DAGSTER_AMORO_SEED=1000 pytest tests/integration/test_histories.py
"""

import json
import os
import random
import re
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum, auto
from functools import partial
from itertools import combinations
from pathlib import Path
from threading import Semaphore, Thread, local
from typing import Any, Final, NamedTuple, TypeVar

import pytest
import sqlalchemy as sa

from dagster_amoro.containers.base import Container
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.errors import ContainerError, ReleaseFailedError, StartFailedError
from dagster_amoro.core.errors import StoreUnavailableError as UnavailableError
from dagster_amoro.core.model import EventKind, Resource, State
from dagster_amoro.core.policy import RestartPolicy, RunState, TickSettings
from dagster_amoro.healing import scaling as scale_ups
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.restart import Outcome
from dagster_amoro.healing.tick import TickResult
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry

HISTORIES: Final = int(os.environ.get("DAGSTER_AMORO_HISTORIES", "300"))
SEED: Final = int(os.environ.get("DAGSTER_AMORO_SEED", "0"))
LENGTH: Final = 60  # deeds of a history
FEW: Final = 25  # deeds, of which every pair is tried to be left out
START: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SECOND: Final = timedelta(seconds=1)
PATIENCE: Final = 60  # seconds of real time until a step that does not return is a deadlock
TABLES: Final = (
    "resource",
    "optimizer",
    "resource_group",
    "keeper_incident",
    "keeper_event",
    "keeper_removed_row",
    "keeper_scale_up",
)
BROKEN: Final = '{"a":'
_T = TypeVar("_T")
_Method = TypeVar("_Method", bound=Callable[..., None])


class StartOutcome(Enum):
    """What a container makes of a start."""

    STARTS = auto()
    FAILS = auto()
    EXITS = auto()
    FAILS_UNSPEAKABLY = auto()
    STARTS_AND_FAILS = auto()
    STARTS_UNSTORABLY = auto()


class Mishap(Enum):
    """What Dagster can do to a run."""

    ENDED = auto()  # cancelled in the queue, seen dead, or ended by force while it lives on
    DELETED = auto()  # or never there: the daemon died before it had made it
    EXECUTED_AGAIN = auto()  # with its key and another id


class Act(Enum):
    """What an operator can do to a resource.

    Whatever else was meant, a broken one is mended and one that is gone is declared again.
    """

    EDIT = auto()
    BREAK = auto()
    REMOVE = auto()


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happens to a tick or a run on its way to the next pause."""

    outcome: StartOutcome = StartOutcome.STARTS
    refuses: bool = False  # the container cannot stop anything
    fails_in: int | None = None  # statements until the store fails; a commit is one
    answer_is_lost: bool = False  # the store fails after it has committed


class Killed(BaseException):
    """The process of a tick or a run is gone: raised at its pause, and at each that follows."""


class Actor:
    """A tick or a run in a thread of its own, which goes on when it is told to."""

    def __init__(self, name: str, body: Callable[["Actor"], None]) -> None:
        self.name: Final = name
        self.sleeps_until: datetime | None = None
        self.is_over = False
        self.was_killed = False
        self._error: BaseException | None = None
        self._go: Final = Semaphore(0)
        self._paused: Final = Semaphore(0)
        self._thread: Final = Thread(target=self._run, args=(body,), name=name, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Lets it go on up to its next pause, or its end."""
        self._go.release()
        assert self._paused.acquire(timeout=PATIENCE), f"{self.name} hangs"
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def pause(self) -> None:
        """Called by its own thread: waits until it may go on."""
        if not self.was_killed:
            self._paused.release()
            self._go.acquire()
        if self.was_killed:
            raise Killed

    def _run(self, body: Callable[["Actor"], None]) -> None:
        try:
            self._go.acquire()
            if not self.was_killed:
                body(self)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever let it go on
            self._error = None if self.was_killed else error
        self.is_over = True
        self._paused.release()


class Stage:
    """Who acts now, and what is to go wrong: what databases and container ask before each step."""

    def __init__(self) -> None:
        self.actor: Actor | None = None  # None: the test itself, which never pauses
        self.step = Step()
        self.committed: Callable[[], None] = lambda: None
        self.commits = 0

    def pause(self) -> None:
        """Lets others act first, where an actor is on stage."""
        if self.actor is not None:
            self.actor.pause()

    def check_alive(self) -> None:
        """Lets nothing be done by who was killed."""
        if self.actor is not None and self.actor.was_killed:
            raise Killed

    def let(self, actor: Actor, step: Step) -> None:
        """Lets an actor go on up to its next pause."""
        self.actor, self.step = actor, step
        try:
            actor.go_on()
        finally:
            self.actor, self.step = None, Step()

    def kill(self, actor: Actor) -> None:
        """Ends an actor where it stands, as `kill -9` does: nothing that follows has an effect."""
        actor.was_killed = True
        if not actor.is_over:
            self.let(actor, Step())


class StagedDatabase(Database):
    """A real database whose transactions wait for their turn, and fail when they are told to."""

    def __init__(self, url: sa.URL, name: str, stage: Stage) -> None:
        super().__init__(url, name)
        self._stage: Final = stage
        self._fails_in: int | None = None
        self._writing: Final = local()  # whether this thread's transaction is open
        sa.event.listen(self.engine, "connect", _forget_durability)
        sa.event.listen(self.engine, "before_cursor_execute", self._count)
        sa.event.listen(self.engine, "commit", self._count)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """As in production, when its turn has come."""
        with self._staged(), super().reading() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """As in production, when its turn has come."""
        with self._staged():
            self._writing.is_open = True
            try:
                with super().writing() as connection:
                    yield connection
            finally:
                self._writing.is_open = False
            self._stage.commits += 1
            self._stage.committed()
            if self._stage.step.answer_is_lost:
                raise UnavailableError("the answer was lost")

    @contextmanager
    def _staged(self) -> Iterator[None]:
        if getattr(self._writing, "is_open", False):  # a look from within: others cannot write
            yield
            return
        self._stage.pause()
        self._fails_in = self._stage.step.fails_in
        try:
            yield
        finally:
            if self._stage.actor is None and self._fails_in is not None:
                self._stage.step = replace(self._stage.step, fails_in=self._fails_in)
            self._fails_in = None

    def _count(self, *_: object) -> None:
        if self._fails_in is not None:
            self._fails_in -= 1
            if self._fails_in < 0:
                cause = sqlite3.OperationalError("disk I/O error")
                raise sa.exc.OperationalError("", {}, cause)


def _forget_durability(connection: Any, _record: object) -> None:  # noqa: ANN401 - DBAPI
    connection.execute("PRAGMA synchronous = OFF")


@dataclass(kw_only=True)
class Launch:
    """A worker that was started; it may live and register, or not."""

    launch_id: str
    resource_id: str
    group: str
    threads: int = 1
    token: str | None = None  # of its optimizer row
    is_alive: bool = True
    is_settled: bool = False  # the turn that started it has ended with that
    is_lost: bool = False  # nobody can know of it any more


class FakeContainer:
    """Starts made-up workers, and stops the one that a resource's properties name."""

    supports_auto_restart = True

    def __init__(self, history: "History") -> None:
        self._history: Final = history
        self.launches: Final[list[Launch]] = []

    def launch(self, resource_id: str, group: str, threads: int = 1) -> Launch:
        """A new worker."""
        launch_id = f"launch-{len(self.launches)}"
        new = Launch(launch_id=launch_id, resource_id=resource_id, group=group, threads=threads)
        self.launches.append(new)
        return new

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Takes its time, then does what the step of the history says."""
        self._history.check_request(resource)
        self._history.stage.pause()
        outcome = self._history.stage.step.outcome
        if outcome is StartOutcome.FAILS:
            raise StartFailedError("told to fail")
        if outcome is StartOutcome.EXITS:
            sys.exit(3)
        if outcome is StartOutcome.FAILS_UNSPEAKABLY:
            raise OSError("half a character \ud800 and a NUL \0")
        new = self.launch(resource.resource_id, resource.group_name, resource.thread_count)
        new.is_lost = outcome is StartOutcome.STARTS_AND_FAILS
        self._history.note_launch(new)
        if outcome is StartOutcome.STARTS_AND_FAILS:
            raise OSError("no answer after the start")
        startup: dict[str, Any] = {"launch": new.launch_id}
        if outcome is StartOutcome.STARTS_UNSTORABLY:
            startup["odd"] = "half a character \ud800"
        return startup

    def release_resource(self, resource: Resource) -> None:
        """Ends the worker that the properties name, and takes its time afterwards."""
        self._history.stage.check_alive()
        for launch in self.launches:
            if launch.launch_id == resource.properties.get("launch"):
                self._history.check_release(launch)
                if self._history.stage.step.refuses:
                    launch.is_lost = True
                    raise ReleaseFailedError("told to fail")
                launch.is_alive = False
        self._history.stage.pause()


class FakeContainers:
    """The one container, which can opt out, under its name."""

    def __init__(self, container: Container) -> None:
        self._container: Final = container
        self.opts_out = False

    def get(self, name: str) -> Container:
        """The container."""
        if name != "c":
            raise ContainerError(f"there is no container {name!r}")
        return self._container

    def obstacle(self, name: str | None) -> str | None:
        """Whether it opts out."""
        return f"container {name!r} opts out" if self.opts_out or name != "c" else None


@dataclass(kw_only=True)
class Run:
    """A run as Dagster knows it, and its process, if it has one."""

    run_id: str
    run_key: str
    keeper: int
    scale_ups: bool = False  # it is one of scale_up_groups
    state: RunState | None = RunState.QUEUED  # None: it was deleted
    actor: Actor | None = None


_ANY_OPEN: Final = frozenset(state for state in State if state.is_open)
_REMOVING: Final = frozenset(state for state in State if state.is_removing)
_NOT_REMOVING: Final = _ANY_OPEN - _REMOVING
_WORKING: Final = frozenset({State.WAITING, State.DISPATCHED, State.CLAIMED})
_CLAIMED: Final = frozenset({State.CLAIMED})
# Which states each kind of event may follow, and the state that follows it.
LIFE: Final[dict[EventKind, tuple[frozenset[State], State]]] = {
    EventKind.REPORTED: (_NOT_REMOVING, State.UNSUPPORTED),
    EventKind.DISPATCHED: (_ANY_OPEN, State.DISPATCHED),
    EventKind.CLAIMED: (_REMOVING | {State.DISPATCHED}, State.CLAIMED),
    EventKind.ATTEMPT: (_CLAIMED, State.CLAIMED),
    EventKind.STARTED: (_CLAIMED, State.WAITING),
    EventKind.ATTEMPT_FAILED: (_CLAIMED, State.CLAIMED),
    EventKind.GIVEN_BACK: (_CLAIMED | _REMOVING, State.WAITING),
    EventKind.GIVING_UP: (_CLAIMED | {State.GIVING_UP}, State.GIVING_UP),
    EventKind.SUPERSEDING: (_CLAIMED | {State.SUPERSEDING}, State.SUPERSEDING),
    EventKind.REPLACED: (_WORKING, State.WAITING),
    EventKind.RECOVERED: (_ANY_OPEN, State.RECOVERED),
    EventKind.RELEASED: (_NOT_REMOVING, State.RELEASED),
    EventKind.EXHAUSTED: (frozenset({State.GIVING_UP}), State.EXHAUSTED),
    EventKind.SUPERSEDED: (frozenset({State.SUPERSEDING}), State.SUPERSEDED),
}
IN_A_RUN: Final = {
    EventKind.ATTEMPT,
    EventKind.STARTED,
    EventKind.ATTEMPT_FAILED,
    EventKind.GIVEN_BACK,
    EventKind.GIVING_UP,
    EventKind.EXHAUSTED,
    EventKind.SUPERSEDING,
    EventKind.SUPERSEDED,
}
Row = dict[str, Any]


@dataclass
class Story:
    """What the events of an incident say about it, read by somebody who knows nothing else."""

    policy: RestartPolicy
    detected_at: datetime
    state: State = State.WAITING
    attempts: int = 0
    attempted_at: datetime | None = None
    dispatches: int = 0
    claims: int = 0
    run_id: str | None = None
    row: Row = field(default_factory=dict)  # as it is kept
    length: int = 1

    def go_on(self, event: Row) -> None:
        """Takes one more event, if it can follow."""
        kind = EventKind(event["kind"])
        may_follow, after = LIFE[kind]
        assert self.state in may_follow, f"{kind} follows {self.state}"
        removing = self.state.is_removing and after.is_open
        self.state = self.state if removing else after
        self.length += 1
        if kind in IN_A_RUN:
            assert event["run_id"] == self.run_id, f"{kind} by a run that has no claim"
        if kind is EventKind.DISPATCHED:
            self.dispatches += 1
        elif kind is EventKind.CLAIMED:
            self.claims += 1
            self.run_id = event["run_id"]
            assert self.claims <= self.dispatches, "a dispatch was taken up twice"
        elif kind is EventKind.ATTEMPT:
            self._attempt(event)
        elif kind is EventKind.GIVING_UP:
            assert self.attempts == self.policy.max_retries
            assert removing or _time(event["at"]) >= self._due_at()

    def _attempt(self, event: Row) -> None:
        self.attempts += 1
        assert event["attempt"] == self.attempts <= self.policy.max_retries
        assert _time(event["at"]) >= self._due_at(), "an attempt within the grace period"
        self.attempted_at = _time(event["at"])

    def _due_at(self) -> datetime:
        return (self.attempted_at or self.detected_at) + self.policy.grace_period


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class Answering:
    """An AMS that is always there."""

    def ping(self) -> None:
        """It answers."""


class Stores:
    """The database of all histories, emptied before each."""

    def __init__(self, file: Path) -> None:
        url = sa.URL.create("sqlite", database=str(file))
        self.stage = Stage()
        self.databases = [StagedDatabase(url, "registry", self.stage) for _ in range(2)]
        self.registries = [Registry(database, None) for database in self.databases]
        self.standalone = [Registry(each, timedelta(days=1000)) for each in self.databases]
        self.ledgers = [Ledger(database) for database in self.databases]
        for registry, ledger in zip(self.standalone, self.ledgers, strict=True):
            registry.create()
            ledger.open_incidents()
        self.eye = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self.eye.row_factory = sqlite3.Row

    def reset(self) -> None:
        """As if nothing had ever happened."""
        deletes = [f"DELETE FROM {table};" for table in (*TABLES, "sqlite_sequence")]  # noqa: S608
        self.eye.executescript("\n".join(["BEGIN;", *deletes, "COMMIT;"]))

    def rows(self, query: str, *values: object) -> list[Row]:
        """What the database has, as somebody else sees it."""
        return [dict(row) for row in self.eye.execute(query, values)]

    def dump(self) -> dict[str, list[Row]]:
        """Every row of every table."""
        return {table: self.rows(f"SELECT * FROM {table} ORDER BY 1") for table in TABLES}  # noqa: S608

    def close(self) -> None:
        """Closes every connection."""
        self.eye.close()
        for database in self.databases:
            database.close()


WHICH: Final = range(6)  # of the things there are, counted round
BOTH: Final = (False, True)
MOSTLY: Final = (True, True, True, False)
OUTCOMES: Final = (*[StartOutcome.STARTS] * 6, *StartOutcome)


@dataclass(frozen=True)
class Possibility:
    """Something that can happen in a history."""

    weight: Callable[["History"], int]  # how often, compared to others; 0: it cannot happen now
    options: Mapping[str, Sequence[Any]]  # what it can happen with, the simplest first


POSSIBILITIES: Final[dict[str, Possibility]] = {}


def _always(_: "History") -> bool:
    return True


def can_happen(
    idle: int,
    busy: int,
    when: Callable[["History"], object] = _always,
    **options: Sequence[Any],
) -> Callable[[_Method], _Method]:
    """Makes a method of `History` one of the things that can happen.

    Args:
        idle: How often, compared to others, when nobody is at work.
        busy: How often when a tick or a run is under way.
        when: Where it can happen at all.
        options: What it can happen with.
    """

    def registered(method: _Method) -> _Method:
        def weight(history: "History") -> int:
            return (busy if history.awake() else idle) if when(history) else 0

        POSSIBILITIES[method.__name__] = Possibility(weight, options)
        return method

    return registered


class Deed(NamedTuple):
    """Something that happened, and with what; what there is none of is left out."""

    name: str
    arguments: dict[str, Any]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{key}={_shown(value)}" for key, value in self.arguments.items())
        return f"Deed({self.name!r}, dict({arguments}))"


def _shown(value: object) -> str:
    return str(value) if isinstance(value, Enum) else repr(value)


class History:
    """One history: a fleet, its keepers, and everything that happens to them."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.stage = stores.stage
        self.now = START
        self.container = FakeContainer(self)
        self.containers = FakeContainers(self.container)
        self.keepers: list[Services] = []
        self.heals = False  # whether workers register when all is quiet
        self.runs: list[Run] = []
        self.sensing: dict[int, Actor] = {}  # by keeper
        self.wrong: list[str] = []  # seen where nothing can be raised
        self.requested: set[tuple[int, int]] = set()  # incident and attempt
        # By run: the incident, what was launched for it, and the group that is refilled.
        self.turns: dict[str, tuple[int, list[Launch], str]] = {}
        self.resources: dict[str, Row] = {}  # as they should be
        self.intact: dict[str, str | None] = {}  # properties before they were broken
        self.names: list[str] = []
        self.redeclared: set[str] = set()
        self.tokens = 0
        self.stories: dict[int, Story] = {}
        self.message: list[Row] = []  # all events so far
        self.closed: dict[int, Row] = {}
        self.min_parallelisms: dict[str, int] = {}  # of groups that have one
        self.births = 0  # of resources, in the order of their start times
        self.new_resources: dict[str, int] = {}  # the newest event when they came, by resource
        self.missing: dict[str, int] = {}  # by refilling run: most threads missing in its turn
        self.starting: dict[str, str] = {}  # what a refilling run is just starting
        self.stood: dict[str, bool] = {}  # by restarting run: whether its turn began too late
        stores.reset()

    # --- The beginning ---------------------------------------------------------------------------

    @can_happen(
        0,
        0,
        size=(1, 2, 3),
        groups=(1, 2),
        missed=(0, 1, 2, 3),
        max_retries=(0, 1, 2, 3),
        grace=(60, 60, 0),
        claim=(600, 600, 30),
        most=(1, 2),
        heals=BOTH,
        min_parallelism=(0, 0, 1, 2, 3),
        attached=BOTH,
    )
    def begins(  # noqa: PLR0913 - what differs from history to history
        self,
        *,
        size: int,
        groups: int,
        missed: int,
        max_retries: int,
        grace: int,
        claim: int,
        most: int,
        heals: bool,
        min_parallelism: int,
        attached: bool,
    ) -> None:
        """A fleet, some of whose workers have died, and two daemons that look after it."""
        self.heals = heals
        self.attached = attached
        sized = bool(min_parallelism) and not attached
        registries = self.stores.standalone if sized else self.stores.registries
        self.stage.committed = self.check_resources
        self.keepers = [
            Services(
                registry=registry,
                ledger=ledger,
                containers=self.containers,
                policy=RestartPolicy(
                    enabled=True, max_retries=max_retries, grace_period=grace * SECOND
                ),
                settings=TickSettings(
                    check_interval=SECOND,
                    claim_timeout=claim * SECOND,
                    max_restarts_per_run=most,
                ),
                clock=lambda: self.now,
                ams=Answering() if min_parallelism and attached else None,  # type: ignore[arg-type]
            )
            for registry, ledger in zip(registries, self.stores.ledgers, strict=True)
        ]
        if min_parallelism:
            self.min_parallelisms = {f"g{number}": min_parallelism for number in range(groups)}
            for group in self.min_parallelisms:
                self._write("INSERT INTO resource_group VALUES (?, 'c', '{}')", group)
            self._write_floors()
        for number in range(size):
            self.names.append(f"r{number}")
            self._declare(f"r{number}", f"g{number % groups}")
            launch = self.container.launch(f"r{number}", f"g{number % groups}")
            launch.is_settled = True
            self._set_properties(f"r{number}", json.dumps({"launch": launch.launch_id}))
            launch.is_alive = number >= missed
            if launch.is_alive:
                self._register(launch)

    @property
    def policy(self) -> RestartPolicy:
        """The policy of both keepers."""
        return self.keepers[0].policy

    # --- What can happen: time, ticks and runs ---------------------------------------------------

    @can_happen(8, 2, keeper=range(2), waits=MOSTLY, launches=MOSTLY)
    def ticks(self, keeper: int, *, waits: bool, launches: bool) -> None:
        """A tick, and another one by the other daemon, to which nothing is left to do.

        At once or after the grace period; the runs stay in the queue for now or are launched.
        """
        self.now += self.policy.grace_period if waits else timedelta(0)
        self._request(keeper, self._tick(keeper))
        for _ in range(
            2 if self.min_parallelisms else 0
        ):  # what is hopeless is known to the next tick
            self._request(keeper, self._tick(keeper))
        before = self.stores.dump()
        again = self._tick(1 - keeper)
        assert again.dispatches == (), "a second tick requests runs"
        assert again.scale_ups is None, "a second tick refills"
        assert self.stores.dump() == before, "a second tick changes something"
        for run in self._launchable() if launches else []:
            self._launch(run)

    @can_happen(1, 2, seconds=(60, 1, 30, 600, 3000))
    def time_passes(self, seconds: int) -> None:
        """The clock of both daemons goes on."""
        self.now += seconds * SECOND

    @can_happen(1, 1, keeper=range(2), fails_in=range(15))
    def tick_fails(self, keeper: int, fails_in: int) -> None:
        """A store fails during a tick, which then has changed nothing."""
        before = self.stores.dump()
        self.stage.step = Step(fails_in=fails_in)
        try:
            done = self._tick(keeper)
        except UnavailableError:
            assert self.stores.dump() == before, "a tick that abstained has written"
        else:
            self._request(keeper, done)
        finally:
            self.stage.step = Step()

    @can_happen(1, 1, lambda self: len(self.sensing) < 2, keeper=range(2))
    def tick_begins(self, keeper: int) -> None:
        """A tick that others may interrupt at every step."""
        if keeper not in self.sensing:
            name = f"tick of {keeper} at {self.now:%H:%M:%S}"
            self.sensing[keeper] = Actor(name, partial(self._tick_slowly, keeper))

    @can_happen(6, 3, lambda self: self._launchable(), which=WHICH)
    def run_is_launched(self, which: int) -> None:
        """Dagster launches a run from its queue."""
        self._launch(_pick(self._launchable(), which))

    @can_happen(1, 1, lambda self: self.runs, which=WHICH, mishap=tuple(Mishap))
    def dagster_errs(self, which: int, mishap: Mishap) -> None:
        """Dagster, or who uses it, does what the restarts do not expect."""
        run = _pick(self.runs[::-1], which)
        if mishap is Mishap.EXECUTED_AGAIN:
            self._new_run(run.run_key, run.keeper, scale_ups=run.scale_ups)
        else:
            run.state = RunState.ENDED if mishap is Mishap.ENDED else None

    @can_happen(0, 10, lambda self: self.awake(), which=WHICH, steps=range(1, 16), outcome=OUTCOMES)
    def actor_goes_on(self, which: int, steps: int, outcome: StartOutcome) -> None:
        """A tick or a run makes some steps."""
        actor = _pick(self.awake(), which)
        for _ in range(steps):
            self._go_on(actor, Step(outcome=outcome))

    @can_happen(
        0,
        3,
        lambda self: self.awake(),
        which=WHICH,
        outcome=OUTCOMES,
        refuses=BOTH,
        fails_in=(None, None, 0, 1, 2, 3),
        answer_is_lost=BOTH,
    )
    def actor_stumbles(
        self,
        *,
        which: int,
        outcome: StartOutcome,
        refuses: bool,
        fails_in: int | None,
        answer_is_lost: bool,
    ) -> None:
        """A tick or a run makes a step on which something goes wrong."""
        step = Step(
            outcome=outcome, refuses=refuses, fails_in=fails_in, answer_is_lost=answer_is_lost
        )
        self._go_on(_pick(self.awake(), which), step)

    @can_happen(1, 1, lambda self: self._actors(), which=WHICH)
    def actor_dies(self, which: int) -> None:
        """The process of a tick or a run is killed, and nobody is told."""
        actor = _pick(self._actors(), which)
        for launch in self.turns.get(actor.name, (0, [], ""))[1]:
            launch.is_lost = launch.is_lost or not launch.is_settled
        self.stage.kill(actor)
        self._sweep()

    @can_happen(2, 1, outcome=OUTCOMES, waits=MOSTLY)
    def all_goes_its_way(self, outcome: StartOutcome, *, waits: bool) -> None:
        """A tick, after the grace period or at once, and every run that is there goes through."""
        self.now += self.policy.grace_period if waits else timedelta(0)
        self._request(0, self._tick(0))
        self._run_everything(Step(outcome=outcome))

    # --- What can happen: workers and operators --------------------------------------------------

    @can_happen(4, 3, lambda self: self._workers(), which=WHICH, lives=BOTH)
    def worker_changes(self, which: int, *, lives: bool) -> None:
        """A worker registers, or its row is removed because it died or is out of contact."""
        launch = _pick(self._workers()[::-1], which)
        if launch.token is None:
            self._register(launch)
        else:
            launch.is_alive = launch.is_alive and lives
            self._unregister(launch)

    @can_happen(2, 3, which=WHICH, act=tuple(Act))
    def operator_acts(self, which: int, act: Act) -> None:
        """Somebody changes a resource's row, or its properties, at any moment."""
        key = _pick(self.names, which)
        if key not in self.resources:
            self._declare(key, "g0")
            self.redeclared.add(key)
            return
        text = self.resources[key]["properties"]
        if act is Act.REMOVE:
            self._remove(key)
        elif text == BROKEN:
            self._set_properties(key, self.intact.pop(key))
        elif act is Act.BREAK:
            self.intact[key] = text
            self._set_properties(key, BROKEN)
        else:
            old = json.loads(text)
            self._set_properties(key, json.dumps({**old, "n": str(int(old.get("n", 0)) + 1)}))

    @can_happen(1, 1, opts_out=BOTH)
    def configuration_is_loaded(self, *, opts_out: bool) -> None:
        """The container opts out, or auto-restart is off; then all is as before.

        Runs under way go on with the old one.
        """
        changed = self.containers.opts_out or not self.policy.enabled
        self.containers.opts_out = opts_out and not changed
        self._switch(on=changed or opts_out)

    @can_happen(1, 1, lambda self: self.min_parallelisms, min_parallelism=range(4))
    def floor_changes(self, min_parallelism: int) -> None:
        """An operator wants another number of threads, or AMS resets it."""
        self.min_parallelisms = dict.fromkeys(self.min_parallelisms, min_parallelism)
        self._write_floors()

    @can_happen(3, 3, lambda self: self.attached and self.min_parallelisms, which=WHICH)
    def ams_refills(self, which: int) -> None:
        """AMS starts and records a resource for the threads that have no optimizer."""
        group = _pick(list(self.min_parallelisms), which)
        missing = self.min_parallelisms[group] - self._live(group)
        if missing > 0:
            key = f"a{self.births}"
            launch = self.container.launch(key, group, missing)
            launch.is_settled = True
            self._declare(key, group, missing)
            self._set_properties(key, json.dumps({"launch": launch.launch_id}))
            self.new_resources[key] = self._newest_event()

    # --- The end ---------------------------------------------------------------------------------

    def ends(self) -> None:
        """The world has been quiet for long enough: nothing is stuck."""
        self._goes_quiet()
        self.rules_hold()
        self._nothing_is_stuck()

    def clear(self) -> None:
        """Nobody is left at work."""
        self.stage.committed = lambda: None
        for actor in self._actors():
            self.stage.kill(actor)

    def _goes_quiet(self) -> None:
        self._switch(on=True)
        for _ in range((16 if self.min_parallelisms else 4) * (self.policy.max_retries + 3)):
            self._run_everything(Step())
            self._expire()
            done = self._tick(0)
            busy = self._actors() or done.dispatches or done.scale_ups
            if not busy and not self._unfinished() and not self._scaling_up():
                break
            self._request(0, done)
            self._run_everything(Step())
            for launch in self._unregistered() if self.heals else []:
                self._register(launch)
            self.now += self.policy.grace_period + self.keepers[0].claim_timeout + SECOND

    def _nothing_is_stuck(self) -> None:
        for launch in self.container.launches:
            if launch.is_alive and not launch.is_lost:
                assert launch.launch_id == self._named(launch.resource_id), f"{launch} is forgotten"
        assert self._unfinished() == []
        for group, min_parallelism in (
            self.min_parallelisms.items() if self.heals and not self.attached else ()
        ):
            stopped = "SELECT * FROM keeper_scale_up WHERE group_name = ? AND state = 'stopped'"
            reached = self._live(group) >= min_parallelism or self.stores.rows(stopped, group)
            assert reached or self.containers.opts_out, (
                f"{group} does not reach its min-parallelism"
            )

    def _scaling_up(self) -> list[Row]:
        """The groups whose rounds are not over; where nobody registers, they come to a stop."""
        query = "SELECT * FROM keeper_scale_up WHERE state <> 'stopped'"
        return self.stores.rows(query) if not self.containers.opts_out else []

    def _named(self, key: str) -> str | None:
        """The worker that a resource's row names, or named before it was broken."""
        text = self.intact.get(key) or self.resources.get(key, {}).get("properties")
        named: str | None = json.loads(text or "{}").get("launch")
        return named

    def _unfinished(self) -> list[Row]:
        """Open incidents of resources that nothing keeps from being restarted."""
        return [
            incident
            for incident in self.stores.rows(
                "SELECT * FROM keeper_incident WHERE closed_at IS NULL"
            )
            if incident["state"] != State.UNSUPPORTED
            or not (
                self.containers.opts_out
                or self.resources[incident["resource_id"]]["properties"] == BROKEN
            )
        ]

    # --- The rules -------------------------------------------------------------------------------

    def rules_hold(self) -> None:
        """What no history may ever break."""
        assert not self.wrong, self.wrong
        self._check_events()
        self._check_incidents()
        self._check_workers()
        self.check_resources()
        assert not self.wrong, self.wrong

    def _check_events(self) -> None:
        events = self.stores.rows("SELECT * FROM keeper_event ORDER BY event_id")
        assert events[: len(self.message)] == self.message, "an event was changed"
        for event in events[len(self.message) :]:
            if event["incident_id"] is None:
                continue  # it is a group's
            if event["kind"] == EventKind.DETECTED:
                assert event["incident_id"] not in self.stories
                self.stories[event["incident_id"]] = Story(self.policy, _time(event["at"]))
            else:
                self.stories[event["incident_id"]].go_on(event)
        self.message = events

    def _check_incidents(self) -> None:
        incidents = self.stores.rows("SELECT * FROM keeper_incident")
        assert [i["incident_id"] for i in incidents] == sorted(self.stories)
        for incident in incidents:
            story = self.stories[incident["incident_id"]]
            found = (incident["state"], incident["attempts"], incident["dispatches"])
            assert found == (story.state, story.attempts, story.dispatches), "events tell another"
            assert incident["version"] >= story.length - 1
            before = self.closed.get(incident["incident_id"], incident)
            assert incident == before, "a closed incident was changed"
            if not story.state.is_open:
                self.closed[incident["incident_id"]] = incident
                assert incident["closed_at"]
                assert incident["claimed_by"] is None
                assert incident["open_resource_id"] is None
        open_ones = [i["resource_id"] for i in incidents if not i["closed_at"]]
        assert len(open_ones) == len(set(open_ones)), "two open incidents of one resource"

    def _check_workers(self) -> None:
        tokens = {row["token"] for row in self.stores.rows("SELECT token FROM optimizer")}
        assert tokens == {launch.token for launch in self._registered()}, "optimizer was written"
        settled = [
            launch.resource_id
            for launch in self.container.launches
            if launch.is_alive and launch.is_settled and not launch.is_lost
        ]
        assert len(settled) == len(set(settled)), "two workers run under one id"

    def check_resources(self) -> None:
        """After each commit: a row is removed only when it is kept, and only properties change."""
        self._date_newcomers()
        found = {row["resource_id"]: row for row in self.stores.rows("SELECT * FROM resource")}
        for run_id in self.missing:
            self.missing[run_id] = max(self.missing[run_id], self._missing(run_id))
        for key, expected in self.resources.items():
            if key not in found:
                self._check_removal(key, expected)
            elif found[key] != expected:
                self._check_change(expected, found[key])
        ours = {json.loads(row["details"])["resource"] for row in self._events(EventKind.SCALE_UP)}
        added = found.keys() - self.resources.keys()
        self._note(added <= ours, f"{added} were added")
        removed = "SELECT * FROM keeper_incident WHERE state IN ('exhausted', 'superseded')"
        for row in self.stores.rows(removed):
            key = row["resource_id"]
            done = row["incident_id"] in self.closed or key not in found or key in self.redeclared
            self._note(done, f"{key} is given up and its row is still there")
        self.resources = found
        self.intact = {key: text for key, text in self.intact.items() if key in found}

    def _check_removal(self, key: str, expected: Row) -> None:
        if key in self.starting.values():
            return  # whoever has just recorded it takes it back
        kept = [
            json.loads(row["content"])
            for row in self.stores.rows(
                "SELECT content FROM keeper_removed_row JOIN keeper_incident USING (incident_id) "
                "WHERE resource_id = ?",
                key,
            )
        ]
        self._note(expected in kept, f"{key} was removed as {expected} and is kept as {kept}")
        if expected["properties"] == BROKEN:
            self._lose(key)

    def _check_change(self, expected: Row, found: Row) -> None:
        before, after = expected["properties"], found["properties"]
        self._note(found == expected | {"properties": after}, f"{expected} was changed to {found}")
        self._note(before != BROKEN != after, f"{before} was changed to {after}")
        if before != BROKEN:
            kept = {"launch": None, **json.loads(before)} | {
                "launch": json.loads(after).get("launch")
            }
            self._note(kept == json.loads(after), f"{before} was changed to {after}")

    def check_request(self, resource: Resource) -> None:
        """Before each start: it was counted, it is the only one, and nobody stands there."""
        key = resource.resource_id
        assert self.stage.actor is not None
        if self.stage.actor.name in self.missing:
            self._check_scale_up(self.stage.actor.name, resource)
            return
        standing = self.stores.rows("SELECT * FROM optimizer WHERE resource_id = ?", key)
        self._note(not standing, f"{key} is started though an optimizer stands for it")
        there = self.stores.rows("SELECT * FROM resource WHERE resource_id = ?", key)
        self._note(bool(there), f"{key} is started though its row is gone")
        actor = self.stage.actor
        assert actor is not None
        run_id, incident_id = actor.name, self.turns[actor.name][0]
        attempts = self.stores.rows(
            "SELECT * FROM keeper_event WHERE incident_id = ? AND run_id = ? AND kind = ? "
            "ORDER BY event_id DESC LIMIT 1",
            incident_id,
            run_id,
            EventKind.ATTEMPT,
        )
        if not attempts:
            self.wrong.append(f"{key} is started by an attempt that was not counted")
            return
        attempt = (incident_id, attempts[0]["attempt"])
        self._note(attempt not in self.requested, f"incident and attempt {attempt} started twice")
        self.requested.add(attempt)
        (incident,) = self.stores.rows(
            "SELECT * FROM keeper_incident WHERE incident_id = ?", incident_id
        )
        (run,) = (run for run in self.runs if run.run_id == run_id)
        lapsed = self.now >= _time(attempts[0]["at"]) + self.keepers[0].claim_timeout
        alone = incident["claimed_by"] in {run_id, None}
        self._note(
            alone or lapsed or run.state is RunState.ENDED,
            f"{key} is started by {run_id} while {incident['claimed_by']} has it",
        )
        late = self.stood.get(run_id, False) and self._is_stood_in(incident)
        self._note(not late, f"{key} is started though others took its place")

    def _check_scale_up(self, run_id: str, resource: Resource) -> None:
        """Before a refill: so many threads were missing at one moment of its turn."""
        missing = max(self.missing[run_id], self._missing(run_id))
        self._note(
            resource.thread_count <= missing,
            f"{resource.thread_count} threads are started in {resource.group_name}, "
            f"where {missing} are missing",
        )
        self.starting[run_id] = resource.resource_id

    def _missing(self, run_id: str) -> int:
        """The threads that nobody brings to the group of a refilling run, by the raw tables."""
        group = self._group_of(run_id)
        query = """
            SELECT r.thread_count, i.state, i.last_error, i.attempts, i.claimed_by,
                   i.claimed_until, coalesce(i.attempted_at, i.detected_at) AS since,
                   (SELECT kind FROM keeper_event e WHERE e.incident_id = i.incident_id
                    ORDER BY event_id DESC LIMIT 1) AS newest
            FROM resource r LEFT JOIN keeper_incident i ON i.open_resource_id = r.resource_id
            WHERE r.group_name = ?
              AND NOT EXISTS (SELECT 1 FROM optimizer o WHERE o.resource_id = r.resource_id)
        """
        dead = self.stores.rows(query, group)
        coming: int = sum(row["thread_count"] for row in dead if self._is_coming(row))
        return self.min_parallelisms.get(group, 0) - self._live(group) - coming

    def _is_coming(self, row: Row) -> bool:
        if row["state"] is None:
            return True
        if row["state"] not in _WORKING or row["last_error"] is not None:
            return False
        has_time = self.now < _time(row["since"]) + self.policy.grace_period
        trying = row["newest"] == EventKind.ATTEMPT and self.now < _time(row["claimed_until"])
        return has_time or trying or row["attempts"] < self.policy.max_retries

    def _live(self, group: str) -> int:
        query = "SELECT coalesce(sum(thread_count), 0) AS n FROM optimizer WHERE group_name = ?"
        threads: int = self.stores.rows(query, group)[0]["n"]
        return threads

    def _group_of(self, run_id: str) -> str:
        return self.turns[run_id][2]

    def _events(self, kind: EventKind) -> list[Row]:
        return self.stores.rows("SELECT * FROM keeper_event WHERE kind = ? ORDER BY 1", kind)

    def _newest_event(self) -> int:
        newest = self.stores.rows("SELECT coalesce(max(event_id), 0) AS n FROM keeper_event")
        found: int = newest[0]["n"]
        return found

    def _is_stood_in(self, incident: Row) -> bool:
        """Whether its threads came, or are about to come, with another resource."""
        return self._is_replaced(incident) or self._is_outnumbered(incident)

    def _is_replaced(self, incident: Row) -> bool:
        """Whether the very resource that was started for it is there, or about to be."""
        told = [
            e
            for e in self._events(EventKind.REPLACED)
            if e["incident_id"] == incident["incident_id"]
        ]
        new = told[-1]["message"].split(",")[0] if told else None
        return new in self.starting.values() or (new in self.resources and self._has_hope(new))

    def _is_outnumbered(self, incident: Row) -> bool:
        """Whether its group got as many threads after its detection, and has what it must have."""
        (detected,) = [
            e["event_id"]
            for e in self._events(EventKind.DETECTED)
            if e["incident_id"] == incident["incident_id"]
        ]
        group = incident["group_name"]
        newer = [
            self.resources[key]
            for key, at in self.new_resources.items()
            if at >= detected and key in self.resources and key != incident["resource_id"]
        ]
        mine = [
            row
            for row in newer
            if row["group_name"] == group and self._has_hope(row["resource_id"])
        ]
        standing = [row for row in mine if self._stands(row["resource_id"])]
        enough = sum(row["thread_count"] for row in standing) >= incident["thread_count"]
        reached = (
            self._live(group) >= self.min_parallelisms[group]
            if group in self.min_parallelisms
            else False
        )
        return enough and reached

    def _has_hope(self, key: str) -> bool:
        query = "SELECT state FROM keeper_incident WHERE open_resource_id = ?"
        states = [row["state"] for row in self.stores.rows(query, key)]
        return all(state in _WORKING for state in states)

    def _stands(self, key: str) -> bool:
        return bool(self.stores.rows("SELECT 1 FROM optimizer WHERE resource_id = ?", key))

    def _date_newcomers(self) -> None:
        """Lets what was just recorded be newer than all else, whatever the database's clock."""
        for row in self.stores.rows("SELECT resource_id FROM resource"):
            key = row["resource_id"]
            if key not in self.resources and key not in self.new_resources:
                self.new_resources[key] = self._newest_event()
                self._date(key)

    def _date(self, key: str) -> None:
        self.births += 1
        self._write(
            "UPDATE resource SET start_time = ? WHERE resource_id = ?",
            (START + self.births * SECOND).replace(tzinfo=None).isoformat(sep=" "),
            key,
        )

    def _write_floors(self) -> None:
        for group, min_parallelism in self.min_parallelisms.items():
            text = json.dumps({"min-parallelism": str(min_parallelism)})
            self._write(
                "UPDATE resource_group SET properties = ? WHERE group_name = ?", text, group
            )

    def check_release(self, launch: Launch) -> None:
        """Before each stop: no worker that stands is stopped, unless it is one's own."""
        own = self.stage.actor is not None and launch in self.turns[self.stage.actor.name][1]
        stands = launch.token is not None and (
            launch.resource_id in self.resources.keys() - self.redeclared
        )
        self._note(own or not stands, f"{launch} is stopped though it stands")

    def note_launch(self, launch: Launch) -> None:
        """A turn has started a worker."""
        assert self.stage.actor is not None
        self.turns[self.stage.actor.name][1].append(launch)

    def _note(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001 - an assertion
        if not holds:
            self.wrong.append(otherwise)

    # --- How it is done --------------------------------------------------------------------------

    def _tick(self, keeper: int) -> TickResult:
        commits = self.stage.commits
        done = self.keepers[keeper].ticker.tick(self._run_states, AmsRestartDetector())
        assert self.stage.commits - commits <= 1, "a tick is one transaction"
        return done

    def _tick_slowly(self, keeper: int, actor: Actor) -> None:
        del actor
        mine = self.keepers[keeper]
        try:
            done = mine.ticker.tick(self._run_states, AmsRestartDetector())
        except UnavailableError:
            return
        self._request(keeper, done)

    def _run_states(self, owners: Sequence[str]) -> Mapping[str, RunState]:
        by_id: dict[str, RunState | None]
        by_id = {run.run_id: run.state for run in self.runs if run.run_id in owners}
        by_key: dict[str, RunState | None]
        by_key = {run.run_key: run.state for run in self.runs if run.state is RunState.ENDED}
        by_key |= {run.run_key: run.state for run in self.runs if run.state is not RunState.ENDED}
        return {owner: state for owner, state in (by_id | by_key).items() if state is not None}

    def _request(self, keeper: int, done: TickResult) -> None:
        for order in done.dispatches:
            if order.run_key not in {run.run_key for run in self.runs}:
                self._new_run(order.run_key, keeper)
        if done.scale_ups:
            self._new_run(done.scale_ups.run_key, keeper, scale_ups=True)

    def _new_run(self, run_key: str, keeper: int, *, scale_ups: bool = False) -> None:
        run_id = f"run-{len(self.runs)}"
        self.runs.append(Run(run_id=run_id, run_key=run_key, keeper=keeper, scale_ups=scale_ups))

    def _launch(self, run: Run) -> None:
        run.state = RunState.ACTIVE
        work = self._scale_up if run.scale_ups else self._work
        run.actor = Actor(run.run_id, partial(work, run, self.keepers[run.keeper]))

    def _work(self, run: Run, keeper: Services, actor: Actor) -> None:
        """What Dagster does with `restart_orphans`: a step for each, tried again after a while."""
        try:
            incidents = keeper.restarter.claim(run.run_key, run.run_id)
        except UnavailableError:
            return
        turns = [(self.now, 0, incident.incident_id) for incident in incidents]
        while turns:
            turns.sort()
            at, tries, incident_id = turns.pop(0)
            self._sleep(actor, at)
            if self._takes_turn(run, keeper, incident_id) and tries < keeper.policy.max_retries:
                turns.append((self.now + keeper.policy.grace_period, tries + 1, incident_id))

    def _scale_up(self, run: Run, keeper: Services, actor: Actor) -> None:
        """What Dagster does with `scale_up_groups`: a step for each group."""
        del actor
        try:
            taken = keeper.scaler.claim(run.run_key, run.run_id)
        except UnavailableError:
            return
        for scale_up in taken:
            launches: list[Launch] = []
            self.turns[run.run_id] = (0, launches, scale_up.group_name)
            self.missing[run.run_id] = self._missing(run.run_id)
            try:
                filled = keeper.scaler.scale_up(scale_up.group_name, run.run_id)
            except UnavailableError:
                continue
            finally:
                del self.missing[run.run_id]
                self.starting.pop(run.run_id, None)
            is_started = filled.outcome is scale_ups.ScaleUpOutcome.STARTED
            for launch in launches:
                launch.is_settled = is_started
            if is_started:
                self._check_replaced(scale_up.resource_id)

    def _check_replaced(self, new: str) -> None:
        """After a refill: none of those in whose place it came was restarted meanwhile."""
        for told in self._events(EventKind.REPLACED):
            if told["message"].startswith(f"{new},"):
                restarted = [
                    each
                    for each in self._events(EventKind.ATTEMPT)
                    if each["incident_id"] == told["incident_id"]
                    and each["event_id"] > told["event_id"]
                ]
                self._note(not restarted, f"{new} came in the place of what was restarted")

    def _sleep(self, actor: Actor, until: datetime) -> None:
        while self.now < until:
            actor.sleeps_until = until
            self.stage.pause()
        actor.sleeps_until = None

    def _takes_turn(self, run: Run, keeper: Services, incident_id: int) -> bool:
        """Takes a turn; returns whether it is to be tried again."""
        launches: list[Launch] = []
        self.turns[run.run_id] = (incident_id, launches, "")
        self.stood[run.run_id] = self._is_stood_in(
            self.stores.rows("SELECT * FROM keeper_incident WHERE incident_id = ?", incident_id)[0]
        )
        try:
            turn = keeper.restarter.restart(incident_id, run.run_id)
        except UnavailableError:
            return True
        for launch in launches:
            launch.is_settled = turn.outcome is Outcome.STARTED
        return turn.outcome is Outcome.FAILED

    def _go_on(self, actor: Actor, step: Step) -> None:
        if not actor.is_over and not self._is_asleep(actor):
            self.stage.let(actor, step)
        self._sweep()

    def _finish(self, actor: Actor, step: Step) -> None:
        while not actor.is_over and not self._is_asleep(actor):
            self._go_on(actor, step)
        self._sweep()

    def _sweep(self) -> None:
        """Takes from the stage what is over; Dagster sees runs end that end by themselves."""
        for run in self.runs:
            if run.actor is not None and run.actor.is_over:
                killed = run.actor.was_killed
                run.actor = None
                if run.state is RunState.ACTIVE and not killed:
                    run.state = RunState.ENDED
        self.sensing = {
            keeper: actor for keeper, actor in self.sensing.items() if not actor.is_over
        }

    def _run_everything(self, step: Step) -> None:
        for actor in self._actors():
            self._finish(actor, step)
        for run in self._launchable():
            self._launch(run)
            assert run.actor is not None
            self._finish(run.actor, step)

    def _is_asleep(self, actor: Actor) -> bool:
        return actor.sleeps_until is not None and self.now < actor.sleeps_until

    def _actors(self) -> list[Actor]:
        return [*self.sensing.values(), *(run.actor for run in self.runs if run.actor)]

    def awake(self) -> list[Actor]:
        """Ticks and runs that can go on at once."""
        return [actor for actor in self._actors() if not self._is_asleep(actor)]

    def _launchable(self) -> list[Run]:
        return [run for run in self.runs if run.state is RunState.QUEUED]

    def _registered(self) -> list[Launch]:
        return [launch for launch in self.container.launches if launch.token]

    def _unregistered(self) -> list[Launch]:
        return [x for x in self.container.launches if x.is_alive and not x.token]

    def _workers(self) -> list[Launch]:
        return [launch for launch in self.container.launches if launch.is_alive or launch.token]

    def _register(self, launch: Launch) -> None:
        self.tokens += 1
        launch.token = f"token-{self.tokens}"
        self._write(
            "INSERT INTO optimizer (token, resource_id, group_name, thread_count) "
            "VALUES (?, ?, ?, ?)",
            launch.token,
            launch.resource_id,
            launch.group,
            launch.threads,
        )

    def _unregister(self, launch: Launch) -> None:
        self._write("DELETE FROM optimizer WHERE token = ?", launch.token)
        launch.token = None

    def _expire(self) -> None:
        for launch in self._registered():
            if not launch.is_alive:
                self._unregister(launch)

    def _declare(self, key: str, group: str, threads: int = 1) -> None:
        self._write(
            "INSERT INTO resource (resource_id, group_name, container_name, thread_count, "
            "total_memory, start_time, properties) VALUES (?, ?, 'c', ?, 0, '', '{}')",
            key,
            group,
            threads,
        )
        self._date(key)
        (self.resources[key],) = self.stores.rows(
            "SELECT * FROM resource WHERE resource_id = ?", key
        )

    def _remove(self, key: str) -> None:
        del self.resources[key]
        self.intact.pop(key, None)
        self._write("DELETE FROM resource WHERE resource_id = ?", key)
        self._lose(key)

    def _lose(self, key: str) -> None:
        """What runs for a resource is the operator's from now on."""
        for launch in self.container.launches:
            launch.is_lost = launch.is_lost or launch.resource_id == key

    def _set_properties(self, key: str, text: str | None) -> None:
        self._write("UPDATE resource SET properties = ? WHERE resource_id = ?", text, key)
        self.resources[key]["properties"] = text

    def _switch(self, *, on: bool) -> None:
        policy = replace(self.policy, enabled=on)
        self.keepers = [replace(keeper, policy=policy) for keeper in self.keepers]

    def _write(self, statement: str, *values: object) -> None:
        self.stores.eye.execute(statement, values)


def _pick(candidates: Sequence[_T], which: int) -> _T:
    return candidates[which % len(candidates)]


Source = Callable[[History], Iterable[Deed]]
"""What happens, given what has happened so far."""


def simulate(stores: Stores, source: Source) -> tuple[list[Deed], Exception | None]:
    """Plays a history; returns what happened in it, and how it broke a rule if it did."""
    history = History(stores)
    happened: list[Deed] = []
    try:
        for deed in source(history):
            if not happened or POSSIBILITIES[deed.name].weight(history):
                happened.append(deed)
                getattr(history, deed.name)(**deed.arguments)
                history.rules_hold()
        history.ends()
    except Exception as error:  # noqa: BLE001 - whatever it is, it is shown with its history
        return happened, error
    finally:
        history.clear()
    return happened, None


def invented(chance: random.Random) -> Source:
    """A history of its own for each state of the random number generator."""

    def deeds(history: History) -> Iterator[Deed]:
        mood = {name: chance.choice([0, 1, 1, 3]) for name in POSSIBILITIES}
        yield _any("begins", chance)
        for _ in range(LENGTH):
            usual = {name: what.weight(history) for name, what in POSSIBILITIES.items()}
            weights = {name: weight * mood[name] for name, weight in usual.items()}
            weights = weights if any(weights.values()) else usual
            (name,) = chance.choices(list(weights), list(weights.values()))
            yield _any(name, chance)

    return deeds


def _any(name: str, chance: random.Random) -> Deed:
    options = POSSIBILITIES[name].options
    return Deed(name, {key: chance.choice(values) for key, values in options.items()})


def shortest(stores: Stores, deeds: list[Deed], error: Exception) -> tuple[list[Deed], Exception]:
    """The history without what can be left out or be simpler, and still with the same end."""
    rule = _rule(error)
    progress = True
    while progress:
        progress = False
        for simpler in (_with_less, _without_two, _with_simpler_arguments):
            for candidate in simpler(deeds):
                happened, found = simulate(stores, lambda _, told=candidate: told)  # type: ignore[misc]
                if found is not None and _rule(found) == rule and happened != deeds:
                    deeds, error, progress = happened, found, True
                    break
    return deeds, error


def _with_less(deeds: list[Deed]) -> Iterator[list[Deed]]:
    """Without some deeds in a row, as many as possible; the beginning stays."""
    size = len(deeds) // 2
    while size:
        for at in range(1, len(deeds), size):
            yield deeds[:at] + deeds[at + size :]
        size //= 2


def _without_two(deeds: list[Deed]) -> Iterator[list[Deed]]:
    """Without two deeds of which one undoes the other."""
    for one, two in combinations(range(1, len(deeds)), 2) if len(deeds) <= FEW else ():
        yield [deed for at, deed in enumerate(deeds) if at not in {one, two}]


def _with_simpler_arguments(deeds: list[Deed]) -> Iterator[list[Deed]]:
    """With one argument of one deed that is simpler, the simplest first."""
    for at, deed in enumerate(deeds):
        for key, value in deed.arguments.items():
            options = POSSIBILITIES[deed.name].options[key]
            for option in options[: options.index(value)]:
                simpler = deed._replace(arguments={**deed.arguments, key: option})
                yield [*deeds[:at], simpler, *deeds[at + 1 :]]


def _rule(error: Exception) -> tuple[object, ...]:
    """Which rule was broken: what was raised, where, and how its message begins."""
    frames = traceback.extract_tb(error.__traceback__)
    message = re.sub(r"\d+", "", str(error))[:40]
    return type(error), frames[-1].filename, frames[-1].lineno, message


def _fleet(**changes: int) -> Deed:
    """One worker that is dead and that nobody may try to restart more often than once."""
    usual = {"size": 1, "groups": 1, "missed": 1, "max_retries": 1, "grace": 60, "claim": 600}
    usual |= {"most": 1, "heals": False, "min_parallelism": 0}
    return Deed("begins", {**usual, "attached": False, **changes})


def _goes_on(which: int, steps: int, outcome: StartOutcome = StartOutcome.STARTS) -> Deed:
    return Deed("actor_goes_on", {"which": which, "steps": steps, "outcome": outcome})


_TICK: Final = Deed("ticks", {"keeper": 0, "waits": True, "launches": True})
_WORKER: Final = Deed("worker_changes", {"which": 0, "lives": True})
_LAPSE: Final = Deed("time_passes", {"seconds": 600})
_STORE_FAILS: Final = Deed(
    "actor_stumbles",
    {
        "which": 0,
        "outcome": StartOutcome.STARTS,
        "refuses": False,
        "fails_in": 0,
        "answer_is_lost": False,
    },
)
_GRACE_IS_OVER: Final = Deed("time_passes", {"seconds": 60})
_IN_THE_CONTAINER: Final = 9  # steps of a run; two fewer, and it stops what an earlier start left
_IN_THE_CONTAINER_AGAIN: Final = 7  # steps of its second attempt; as above
_ABOUT_TO_REMOVE: Final = 6  # steps of a run that gives up
_TO_THE_END: Final = 15

# Histories that broke a rule once, or would if one line were missing.
KNOWN: Final[dict[str, list[Deed]]] = {
    "two that were declared anew wait for each other": [
        _fleet(size=3, missed=3, max_retries=0, min_parallelism=1),
        Deed("operator_acts", {"which": 2, "act": Act.REMOVE}),
        _TICK,
        Deed("operator_acts", {"which": 2, "act": Act.EDIT}),
        _TICK,
        Deed("operator_acts", {"which": 0, "act": Act.REMOVE}),
        Deed("operator_acts", {"which": 0, "act": Act.EDIT}),
    ],
    "the row is broken while its worker is started": [
        _fleet(),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER),
        Deed("operator_acts", {"which": 0, "act": Act.BREAK}),
    ],
    "the row is removed while an earlier worker is stopped": [
        _fleet(),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER - 2),
        Deed("operator_acts", {"which": 0, "act": Act.REMOVE}),
    ],
    "a worker registers while an earlier one is stopped": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _TO_THE_END, StartOutcome.STARTS_AND_FAILS),
        _GRACE_IS_OVER,
        _goes_on(0, _IN_THE_CONTAINER_AGAIN - 2),
        _WORKER,
    ],
    "the row is edited while it is removed": [
        _fleet(max_retries=0),
        _TICK,
        _TICK,
        _goes_on(0, _ABOUT_TO_REMOVE),
        Deed("operator_acts", {"which": 0, "act": Act.EDIT}),
    ],
    "the worker registers and dies while its row is removed": [
        _fleet(max_retries=0, missed=0),
        _WORKER,
        _TICK,
        _TICK,
        _goes_on(0, _ABOUT_TO_REMOVE),
        _WORKER,
        _goes_on(0, 1),
        _WORKER,
        _goes_on(0, _TO_THE_END),
    ],
    "a start fails with a text that cannot be stored": [
        _fleet(),
        _TICK,
        Deed("all_goes_its_way", {"outcome": StartOutcome.FAILS_UNSPEAKABLY, "waits": True}),
    ],
    "a start returns what cannot be stored": [
        _fleet(),
        _TICK,
        Deed("all_goes_its_way", {"outcome": StartOutcome.STARTS_UNSTORABLY, "waits": True}),
    ],
    "a start takes so long that another one has brought it back": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER),
        _LAPSE,
        _TICK,
        _goes_on(1, _TO_THE_END),
        _WORKER,
        _TICK,
        _goes_on(0, _TO_THE_END),
    ],
    "a start takes so long that it came back, died and was started again": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _TO_THE_END, StartOutcome.STARTS_AND_FAILS),
        _GRACE_IS_OVER,
        _goes_on(0, _IN_THE_CONTAINER_AGAIN),
        _WORKER,
        _TICK,
        _WORKER,
        _TICK,
        _TICK,
        _goes_on(1, _TO_THE_END),
        _goes_on(0, _TO_THE_END),
    ],
    "a start was overtaken, and then the ledger does not say so": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER),
        _LAPSE,
        _TICK,
        _goes_on(1, _IN_THE_CONTAINER),
        _goes_on(0, 3),
        _STORE_FAILS,
        _goes_on(0, _TO_THE_END),
    ],
}


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[Stores]:
    """A database file with all tables."""
    found = Stores(tmp_path / "fleet.db")
    yield found
    found.close()


@pytest.mark.parametrize("name", KNOWN)
def test_what_broke_a_rule_once_does_not_do_so_again(name: str, stores: Stores) -> None:
    """A known history happens just as it is told, and breaks no rule."""
    happened, error = simulate(stores, lambda _: KNOWN[name])
    if error is not None:
        raise error
    assert happened == KNOWN[name]


def test_whatever_happens_the_rules_hold(stores: Stores) -> None:
    """No history breaks a rule, and when the world goes quiet nothing is stuck."""
    for seed in range(SEED, SEED + HISTORIES):
        deeds, error = simulate(stores, invented(random.Random(seed)))  # noqa: S311 - no secret
        if error is not None:
            deeds, error = shortest(stores, deeds, error)
            told = "".join(f"    {deed},\n" for deed in deeds)
            raise AssertionError(f"history {seed}: {error}\n[\n{told}]") from error
