"""What does one tick decide on? All that it read, with the rules that it follows."""

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from datetime import datetime

from dagster_amoro.core.groups import Group
from dagster_amoro.core.limits import CountResources, Limits
from dagster_amoro.core.looks import Look
from dagster_amoro.core.model import Incident, Orphan, ScaleUp, Transition
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import RestartPolicy, RunState, TickSettings, holds_claim
from dagster_amoro.core.registrations import Registrations
from dagster_amoro.core.replacement import AskNewcomers, Newcomers

Obstacle = Callable[[str | None], str | None]
"""Why orphans of the container with this name cannot be restarted; None: they can."""


def with_token(run_key: str, token: str | None) -> str:
    """The run key of a tick whose cursor has this token."""
    return run_key if token is None else f"{run_key} {token}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistrySnapshot:
    """One look at the registry, in one snapshot."""

    resources: int  # rows in `resource`
    groups: tuple[str, ...]  # names in `resource_group`
    orphans: Mapping[str, Orphan]  # by resource id
    expired: int = 0  # heartbeats that were too old and have been removed
    corrected: int = 0  # heartbeats that lay in the future and count from now on
    sized: Mapping[str, Group] = field(
        default_factory=dict
    )  # those that say something of their size
    live: Mapping[str, int] = field(default_factory=dict)  # threads of these groups
    # What would be orphans, but for that they are young and never registered, by resource id.
    starting: Mapping[str, Orphan] = field(default_factory=dict)
    # `start_time` of the orphans, as the database has it, by resource id.
    start_times: Mapping[str, object] = field(default_factory=dict)
    # `start_time` of the newest resource in those that an AMS refills, see `Look`.
    newest: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """What was looked up about orphans that are new, and about incidents whose orphan is gone."""

    # Resources with an incident that are orphans no longer, but have a row: they registered.
    present: AbstractSet[str] = frozenset()
    # Of those, what names the ones whose registrations are doubted, by resource id.
    registrations: Mapping[str, Registrations] = field(default_factory=dict)
    # Attempts of earlier incidents that count for new orphans, by resource id.
    prior_attempts: Mapping[str, int] = field(default_factory=dict)
    # `newest_start` of new incidents by group, see `last_seen_alive`.
    newest_starts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class TickInputs:
    """What was read, by whom the rules are made, and the time.

    Three questions are asked only where their answer matters, since each costs a statement or a
    container: `obstacle`, `count` and `newcomers`. Each answers the same throughout a tick.
    """

    snapshot: RegistrySnapshot
    incidents: Sequence[Incident]  # all that are open, the oldest first
    now: datetime  # aware UTC
    policy: RestartPolicy
    settings: TickSettings
    obstacle: Obstacle
    limits: Limits = field(default_factory=Limits)
    scale_ups: Mapping[str, ScaleUp] = field(default_factory=dict)  # by group
    pauses: Pauses = field(default_factory=Pauses)
    looks: Mapping[str, Look] = field(default_factory=dict)  # of the tick before, by group
    runs: Mapping[str, RunState] = field(default_factory=dict)  # of claims, see `holds_claim`
    fence: int | None = None  # of the lease in force; None: without leases
    # Of the cursor that the tick began with: every run key that it makes ends with it. None: it is
    # not known which ticks there were before.
    token: str | None = None
    last_served_group: str | None = None  # the group that the last batch served last
    attached: bool = False  # whether the registry is an AMS's, which scales its groups itself
    dry_run: bool = False
    count: CountResources = dict
    newcomers: AskNewcomers = lambda _: Newcomers()
    # None: the incidents are those of the snapshot already.
    changes: Changes | None = None
    # The groups in which this tick began a round. None: that is still to be decided.
    begun: frozenset[str] | None = None

    def is_claimed(self, claimed: Incident | ScaleUp) -> bool:
        """Whether it is in the hands of a run, or of one that this tick requests again."""
        if claimed.claimed_by is None:
            return False
        held = holds_claim(claimed, self.runs, self.now, self.fence)
        return held or self.was_never_requested(claimed)

    def was_never_requested(self, claimed: Incident | ScaleUp) -> bool:
        """Whether the tick that gave it to a run was cut off before it could request that run.

        The token of a cursor is replaced as soon as a tick has requested its runs. A run key that
        ends with it, and that Dagster does not know, was never requested.
        """
        key = claimed.claimed_by
        if self.token is None or key is None or key in self.runs:
            return False
        return key.endswith(f" {self.token}") and self.is_of_lease(claimed)

    def is_of_lease(self, claimed: Incident | ScaleUp) -> bool:
        """Whether it was given to its run under the lease in force."""
        return self.fence is None or claimed.fence == self.fence

    def after_steps(
        self, steps: Sequence[Transition], results: Sequence[Incident | None]
    ) -> "TickInputs":
        """The inputs once the steps that the snapshot asked for have been taken.

        The result of a step is the incident that it left; None: somebody else moved it first.
        """
        touched = {step.before.incident_id for step in steps if step.before}
        untouched = [each for each in self.incidents if each.incident_id not in touched]
        moved = [each for each in results if each is not None and each.is_open]
        return replace(self, incidents=untouched + moved, changes=None)

    def after_rounds(self, replaced: Mapping[int, Incident], begun: frozenset[str]) -> "TickInputs":
        """The inputs once rounds have begun in these groups.

        `replaced` are the incidents whose threads a new resource is to bring, by number.
        """
        incidents = [replaced.get(each.incident_id, each) for each in self.incidents]
        return replace(self, incidents=incidents if replaced else self.incidents, begun=begun)
