"""What do registry and ledger say that a tick decides on?

`status` reads the same, so that it can show the plan of the next tick.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache

from dagster_amoro.containers.base import ContainerLookup
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.model import Incident, ScaleUp
from dagster_amoro.core.pauses import Pause, Pauses
from dagster_amoro.core.policy import RestartPolicy, RunState, TickSettings
from dagster_amoro.core.replacement import AskNewcomers, Newcomers
from dagster_amoro.core.tick_inputs import Changes, RegistrySnapshot, TickInputs
from dagster_amoro.core.tick_plan import missing, unknown
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What the ledger says; nothing, where it is not there yet."""

    incidents: Sequence[Incident] = ()
    scale_ups: Mapping[str, ScaleUp] = field(default_factory=dict)
    pauses: Sequence[Pause] = ()
    # Asked for new orphans: the attempts that count for resources which recovered since a moment.
    unstable: Callable[[datetime], Mapping[str, int]] = lambda _since: {}


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
            unstable=self.ledger.unstable,
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
        return TickInputs(
            snapshot=snapshot,
            incidents=recorded.incidents,
            now=now,
            policy=self.policy,
            limits=self.limits,
            settings=self.settings,
            scale_ups=recorded.scale_ups,
            pauses=Pauses(recorded.pauses, now),
            runs=runs or {},
            fence=fence,
            last_served_group=last_served_group,
            token=token,
            attached=self.attached,
            dry_run=self.ledger.dry_run,
            obstacle=cache(self.containers.obstacle),  # once a tick, not once an orphan
            count=cache(self.registry.resource_counts),
            newcomers=newcomers_of(self.registry),
            changes=self._changes(recorded, snapshot, now),
        )

    def _changes(self, recorded: Recorded, snapshot: RegistrySnapshot, now: datetime) -> Changes:
        gone = missing(snapshot, recorded.incidents)
        groups = {each.group_name or "" for each in unknown(snapshot, recorded.incidents)}
        stable_after = self.policy.stable_after
        return Changes(
            present=self.registry.present(gone) if gone else frozenset(),
            prior_attempts=recorded.unstable(now - stable_after) if groups and stable_after else {},
            newest_starts=self.registry.newest_starts(groups) if groups else {},
        )


def newcomers_of(registry: Registry) -> AskNewcomers:
    """Asks a registry what came to groups; asked again for the same, it says the same."""

    @cache
    def ask(since: frozenset[tuple[str, str]]) -> Newcomers:
        groups = dict(since)
        resources = registry.new_resources(groups)
        return Newcomers(resources, {name: n for name, (_, n) in registry.capacity(groups).items()})

    return lambda since: ask(frozenset(since.items())) if since else Newcomers()
