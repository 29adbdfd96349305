"""What do registry and ledger say that a tick decides on?

`status` reads the same, so that it can show the plan of the next tick.
"""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from typing import Final

from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.core.groups import min_parallelism
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.looks import Look, last_seen_alive
from dagster_amoro.core.model import Incident, ScaleUp
from dagster_amoro.core.pauses import Pause, Pauses
from dagster_amoro.core.policy import RestartPolicy, RunState, TickSettings, is_starting
from dagster_amoro.core.replacement import AskNewcomers, Newcomers
from dagster_amoro.core.tick_inputs import Changes, Obstacle, RegistrySnapshot, TickInputs
from dagster_amoro.core.tick_plan import missing, unknown
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry, instant

_ASKED_AT_ONCE: Final = 16  # containers; any number of names may stand in the registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What the ledger says; nothing, where it is not there yet."""

    incidents: Sequence[Incident] = ()
    scale_ups: Mapping[str, ScaleUp] = field(default_factory=dict)
    pauses: Sequence[Pause] = ()
    looks: Mapping[str, Look] = field(default_factory=dict)
    # Asked for new orphans: the attempts that count for resources which recovered since a moment.
    unstable: Callable[[datetime], Mapping[str, int]] = lambda _since: {}
    # Asked for young orphans: the incidents that ended since a moment, as their resource was back.
    recovered: Callable[[datetime], Sequence[Incident]] = lambda _since: ()


@dataclass(frozen=True, kw_only=True, slots=True)
class TickReader:
    """Puts together what a tick decides on; nothing is written."""

    registry: Registry
    ledger: Ledger
    containers: ContainerLookup
    policy: RestartPolicy
    limits: Limits
    settings: TickSettings
    attached: bool

    def read_ledger(self) -> Recorded:
        """What the ledger says; in attached mode AMS scales the groups up, so no rounds of ours."""
        return Recorded(
            incidents=self.ledger.open_incidents(),
            scale_ups={} if self.attached else self.ledger.scale_ups(),
            pauses=self.ledger.pauses(),
            looks=self.ledger.looks() if self.attached else {},
            unstable=self.ledger.unstable,
            recovered=self.ledger.recovered,
        )

    def read(  # noqa: PLR0913 - what was read before
        self,
        recorded: Recorded,
        snapshot: RegistrySnapshot,
        *,
        now: datetime,
        fence: int | None,
        runs: Mapping[str, RunState] | None = None,
        last_served_group: str | None = None,
        token: str | None = None,
    ) -> TickInputs:
        """The inputs of a tick, with what changed since the incidents were recorded."""
        snapshot = with_starting(snapshot, recorded, self.policy, now)
        return TickInputs(
            snapshot=snapshot,
            incidents=recorded.incidents,
            now=now,
            policy=self.policy,
            limits=self.limits,
            settings=self.settings,
            scale_ups=recorded.scale_ups,
            pauses=Pauses(recorded.pauses, now),
            looks=recorded.looks,
            runs=runs or {},
            fence=fence,
            last_served_group=last_served_group,
            token=token,
            attached=self.attached,
            dry_run=self.ledger.dry_run,
            obstacle=self._obstacles({each.container_name for each in snapshot.orphans.values()}),
            count=cache(self.registry.resource_counts),
            newcomers=newcomers_of(self.registry),
            changes=self._changes(recorded, snapshot, now),
        )

    def _obstacles(self, containers: AbstractSet[str | None]) -> Obstacle:
        """Asks once a tick, not once an orphan; several side by side, since each may hang."""
        ask = cache(self.containers.obstacle)
        if len(containers) > 1:
            with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
                list(pool.map(ask, containers))
        return ask

    def _changes(self, recorded: Recorded, snapshot: RegistrySnapshot, now: datetime) -> Changes:
        gone = missing(snapshot, recorded.incidents)
        groups = {each.group_name or "" for each in unknown(snapshot, recorded.incidents)}
        stable_after = self.policy.stable_after
        doubted = {i.resource_id for i in recorded.incidents if i.doubts_registrations}
        doubted &= {*gone}
        return Changes(
            present=self.registry.present(gone) if gone else frozenset(),
            registrations=self.registry.registrations(doubted) if doubted else {},
            prior_attempts=recorded.unstable(now - stable_after) if groups and stable_after else {},
            newest_starts=self._newest_starts(recorded, snapshot, groups) if groups else {},
        )

    def _newest_starts(
        self, recorded: Recorded, snapshot: RegistrySnapshot, groups: AbstractSet[str]
    ) -> Mapping[str, str]:
        sized = {name: snapshot.sized[name] for name in groups & snapshot.sized.keys()}
        floors = {name: min_parallelism(group) for name, group in sized.items()}
        return last_seen_alive(
            recorded.looks,
            self.registry.newest_starts(groups),
            floors={name: floor for name, floor in floors.items() if floor is not None},
            newcomers=newcomers_of(self.registry),
        )


def with_starting(
    snapshot: RegistrySnapshot, recorded: Recorded, policy: RestartPolicy, now: datetime
) -> RegistrySnapshot:
    """The snapshot, with the newborns apart from the orphans.

    A resource is starting if it is younger than the grace period and, as far as the ledger knows,
    never registered. Whether one without any incident did is not known to anybody.
    """
    young = {
        orphan.resource_id
        for orphan in unknown(snapshot, recorded.incidents)
        if is_starting(instant(snapshot.start_times.get(orphan.resource_id)), policy, now)
    }
    if young:
        young -= {each.resource_id for each in recorded.recovered(now - policy.grace_period)}
    orphans = dict(snapshot.orphans) if young else snapshot.orphans
    starting = {key: orphans.pop(key) for key in young}  # type: ignore[attr-defined]
    return replace(snapshot, orphans=orphans, starting=starting)


def newcomers_of(registry: Registry) -> AskNewcomers:
    """Asks a registry what came to groups; asked again for the same, it says the same."""

    @cache
    def ask(since: frozenset[tuple[str, str]]) -> Newcomers:
        groups = dict(since)
        resources = registry.new_resources(groups)
        return Newcomers(resources, {name: n for name, (_, n) in registry.capacity(groups).items()})

    return lambda since: ask(frozenset(since.items())) if since else Newcomers()
