"""The fleet of a history, its clock, and what happens to its rows."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from dagster_amoro.core.model import EventKind, Resource
from dagster_amoro.core.policy import RestartPolicy, RunState
from tests.simulation.actors import Actor
from tests.simulation.container import FakeContainer, FakeContainers, Launch
from tests.simulation.databases import Row, Stores

if TYPE_CHECKING:
    from dagster_amoro.healing.assembly import Services
    from tests.simulation.life import Story

START: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


SECOND: Final = timedelta(seconds=1)
MICROSECOND: Final = timedelta(microseconds=1)
DAY: Final = timedelta(days=1)


BROKEN: Final = '{"a":'


class Answering:
    """An AMS that is always there."""

    def ping(self) -> None:
        """It answers."""


@dataclass(kw_only=True)
class Run:
    """A run as Dagster knows it, and its process, if it has one."""

    run_id: str
    run_key: str
    keeper: int
    scale_ups: bool = False  # it is one of scale_up_groups
    state: RunState | None = RunState.QUEUED  # None: it was deleted
    # In its process: one for each incident that it restarts, of which the first one claims.
    actors: list[Actor] = field(default_factory=list)


class World(ABC):
    """The fleet, its databases, its container and its clock, and what can be done to them."""

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
        self.cursors = [0, 0]  # by keeper: how often Dagster kept the result of one of its ticks
        self.wrong: list[str] = []  # seen where nothing can be raised
        self.requested: set[tuple[int, int]] = set()  # incident and attempt
        # By actor: the incident, what was launched for it, and the group that is refilled.
        self.turns: dict[str, tuple[int, list[Launch], str]] = {}
        self.resources: dict[str, Row] = {}  # as they should be
        self.intact: dict[str, str | None] = {}  # properties before they were broken
        self.names: list[str] = []
        self.redeclared: set[str] = set()
        self.tokens = 0
        self.stories: dict[int, Story] = {}
        self.message: list[Row] = []  # all events so far
        self.closed: dict[int, Row] = {}
        self.deaths: dict[int, Row] = {}  # incidents as they were when their cause was looked at
        self.min_parallelisms: dict[str, int] = {}  # of groups that have one
        self.births = 0  # of resources, in the order of their start times
        self.new_resources: dict[str, int] = {}  # the newest event when they came, by resource
        self.missing: dict[str, int] = {}  # by refilling run: most threads missing in its turn
        self.starting: dict[str, str] = {}  # what a refilling run is just starting
        # By actor: what was an orphan when it made its last step but one, and its last step.
        self.orphans: dict[str, tuple[set[str], set[str]]] = {}
        self.stood: dict[str, bool] = {}  # by restarting actor: whether its turn began too late
        stores.reset()

    @property
    def policy(self) -> RestartPolicy:
        """The policy of both keepers."""
        return self.keepers[0].policy

    @abstractmethod
    def check_request(self, resource: Resource) -> None:
        """Whether the container may start a worker for this resource now."""

    @abstractmethod
    def check_release(self, launch: Launch) -> None:
        """Whether the container may stop this worker now."""

    def note_launch(self, launch: Launch) -> None:
        """A turn has started a worker."""
        assert self.stage.actor is not None
        self.turns[self.stage.actor.name][1].append(launch)

    def hang(self, span: timedelta) -> None:
        """Keeps the present actor in the container for so long."""
        assert self.stage.actor is not None
        self._sleep(self.stage.actor, self.now + span)

    def _sleep(self, actor: Actor, until: datetime) -> None:
        while self.now < until:
            actor.sleeps_until = until
            self.stage.pause()
        actor.sleeps_until = None

    def awake(self) -> list[Actor]:
        """Ticks and runs that can go on at once."""
        return [actor for actor in self._actors() if not self._is_asleep(actor)]

    def _actors(self) -> list[Actor]:
        return [
            *self.sensing.values(),
            *(actor for run in self.runs for actor in run.actors if not actor.is_over),
        ]

    def _is_asleep(self, actor: Actor) -> bool:
        return actor.sleeps_until is not None and self.now < actor.sleeps_until

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
        launch.has_registered, launch.registered_dying = True, not launch.is_alive
        launch.token = f"token-{self.tokens}"
        self._write(
            "INSERT INTO optimizer (token, resource_id, group_name, thread_count) "
            "VALUES (?, ?, ?, ?)",
            launch.token,
            launch.resource_id,
            launch.group,
            launch.threads,
        )

    def _beat(self) -> None:
        """All workers that live and have registered touch their rows."""
        for launch in self._registered():
            if launch.is_alive:
                self.tokens += 1  # whatever the clock of the machine says, it is another time
                touched = "strftime('%Y-%m-%d %H:%M:%S.', 'now') || printf('%06d', ?)"
                self._write(
                    f"UPDATE optimizer SET touch_time = {touched} WHERE token = ?",  # noqa: S608
                    self.tokens,
                    launch.token,
                )

    def _ending(self) -> list[Launch]:
        return [x for x in self.container.launches if x.is_ending and not x.token]

    def _unregister(self, launch: Launch) -> None:
        self._write("DELETE FROM optimizer WHERE token = ?", launch.token)
        launch.token = None

    def _expire(self) -> None:
        for launch in self._registered():
            if not launch.is_alive:
                self._unregister(launch)

    def _declare(self, key: str, group: str, threads: int = 1, age: timedelta = SECOND) -> None:
        self._write(
            "INSERT INTO resource (resource_id, group_name, container_name, thread_count, "
            "total_memory, start_time, properties) VALUES (?, ?, 'c', ?, 0, '', '{}')",
            key,
            group,
            threads,
        )
        self._date(key, age)
        (self.resources[key],) = self.stores.rows(
            "SELECT * FROM resource WHERE resource_id = ?", key
        )

    def _date(self, key: str, age: timedelta = SECOND) -> None:
        self.births += 1  # each is younger than all before it
        self._write(
            "UPDATE resource SET start_time = ? WHERE resource_id = ?",
            (self.now - age + self.births * MICROSECOND).replace(tzinfo=None).isoformat(sep=" "),
            key,
        )

    def _remove(self, key: str) -> None:
        del self.resources[key]
        self.intact.pop(key, None)
        self._write("DELETE FROM resource WHERE resource_id = ?", key)
        self._lose(key, self._started(key))

    def _started(self, key: str) -> str | None:
        """What the ledger says that an attempt of the open incident started last."""
        rows = self.stores.rows(
            "SELECT content FROM keeper_removed_row JOIN keeper_incident USING (incident_id) "
            "WHERE open_resource_id = ? ORDER BY removal_id DESC LIMIT 1",
            key,
        )
        found = json.loads(rows[0]["content"])["properties"] if rows else "{}"
        named: str | None = json.loads(found).get("launch") if found != BROKEN else None
        return named

    def _lose(self, key: str, but: str | None = None) -> None:
        """What runs for a resource is the operator's from now on, but for one launch."""
        for launch in self.container.launches:
            mine = launch.resource_id == key and launch.launch_id != but
            launch.is_lost = launch.is_lost or mine

    def _set_properties(self, key: str, text: str | None) -> None:
        self._write("UPDATE resource SET properties = ? WHERE resource_id = ?", text, key)
        self.resources[key]["properties"] = text

    def _write_floors(self) -> None:
        for group, min_parallelism in self.min_parallelisms.items():
            text = json.dumps({"min-parallelism": str(min_parallelism)})
            self._write(
                "UPDATE resource_group SET properties = ? WHERE group_name = ?", text, group
            )

    def _switch(self, *, on: bool) -> None:
        policy = replace(self.policy, enabled=on)
        self.keepers = [replace(keeper, policy=policy) for keeper in self.keepers]

    def _write(self, statement: str, *values: object) -> None:
        self.stores.eye.execute(statement, values)

    def _named(self, key: str) -> str | None:
        """The worker that a resource's row names, or named before it was broken."""
        text = self.intact.get(key) or self.resources.get(key, {}).get("properties")
        named: str | None = json.loads(text or "{}").get("launch")
        return named

    def _events(self, kind: EventKind) -> list[Row]:
        return self.stores.rows("SELECT * FROM keeper_event WHERE kind = ? ORDER BY 1", kind)

    def _newest_event(self) -> int:
        newest = self.stores.rows("SELECT coalesce(max(event_id), 0) AS n FROM keeper_event")
        found: int = newest[0]["n"]
        return found

    def _live(self, group: str) -> int:
        query = "SELECT coalesce(sum(thread_count), 0) AS n FROM optimizer WHERE group_name = ?"
        threads: int = self.stores.rows(query, group)[0]["n"]
        return threads

    def _note(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001 - an assertion
        if not holds:
            self.wrong.append(otherwise)
