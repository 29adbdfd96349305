"""What do the checks look at? The ledger, the registry and the ticks of the sensor, read only."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

import dagster as dg
import sqlalchemy as sa

from dagster_amoro.asset_keys import DEFAULT, Names
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.clock import Clock
from dagster_amoro.core.groups import min_parallelism
from dagster_amoro.core.limits import Limits
from dagster_amoro.core.messages import ABSTAINED, WATCHING
from dagster_amoro.core.model import Incident
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import RestartPolicy, Verdict, decide
from dagster_amoro.healing.losses import Ended, closed, kept, lost
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry
from dagster_amoro.stores.schema import incident
from dagster_amoro_audit import findings
from dagster_amoro_audit.findings import Finding, blocked_restarts

Looks = Mapping[str, Callable[[], Finding]]
"""By the name of a check: looks, and says what it found."""

_DAY: Final = timedelta(days=1)
_TICKS: Final = 100  # newest ones that are looked through for one that counts


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspector:
    """Looks at a fleet as its checks do.

    A look raises a StoreUnavailableError where a store does not answer.
    """

    ledger: Ledger
    registry: Registry
    policy: RestartPolicy
    limits: Limits
    check_interval: timedelta
    clock: Clock
    alerts: AuditSettings
    scales_up: bool
    names: Names = DEFAULT

    def looks(self, instance: dg.DagsterInstance, location: str | None = None) -> Looks:
        """All looks of one moment, from a code location; what several of them need is read once."""
        now = self.clock()
        opened = cache(self.ledger.open_incidents)
        ended = cache(lambda: _ended(self.ledger, opened(), now))
        pauses = cache(lambda: Pauses(self.ledger.pauses(), now))
        least, most = self.alerts.least_success, self.alerts.flapping
        return {
            # First: it asks Dagster alone, and its result counts though the stores are away.
            "survey_is_fresh": lambda: self.freshness(instance, now, location),
            "nothing_given_up": lambda: findings.given_up(
                lost(self.ledger, self.registry, opened(), now - self.alerts.given_up_for)
            ),
            "no_incident_overdue": lambda: findings.overdue(opened(), self.policy, now, pauses()),
            "restarts_are_not_refused": lambda: self._unblocked(opened(), pauses(), now),
            "restarts_succeed": lambda: findings.restarts(ended(), least),
            "no_resource_flaps": lambda: findings.flapping(_begun(self.ledger, now), most),
            "groups_at_min_parallelism": lambda: findings.below_min_parallelism(
                *_groups(self.registry)
            ),
            "groups_not_doubled": lambda: findings.doubled(self.ledger.looks().values()),
        }

    def freshness(
        self, instance: dg.DagsterInstance, now: datetime, location: str | None = None
    ) -> Finding:
        """Whether anybody looks after the fleet, by what Dagster knows of the sensor's ticks.

        A sensor of this name in another code location looks after another fleet. None: the location
        is not known, and all of them count.
        """
        sensor = self.names.of("orphan_sensor")
        ticks = _ticks(instance, sensor, location)
        return findings.freshness(ticks, self.check_interval, now, sensor)

    def _unblocked(self, opened: Sequence[Incident], pauses: Pauses, now: datetime) -> Finding:
        verdicts = [(each, _verdict(each, self.policy, pauses, now)) for each in opened]
        rounds = self.ledger.scale_ups().values() if self.scales_up else ()
        counts = self.registry.resource_counts
        return findings.unblocked(blocked_restarts(verdicts, rounds, pauses, self.limits, counts))


def _verdict(found: Incident, policy: RestartPolicy, pauses: Pauses, now: datetime) -> Verdict:
    """What a tick would do about an open incident."""
    pause = pauses.of(found.resource_id, found.group_name)
    paused = str(pause) if pause else None
    return decide(
        found, obstacle=None, policy=policy, claimed=False, now=now, paused=paused
    ).verdict


def _ended(ledger: Ledger, opened: Sequence[Incident], now: datetime) -> list[Ended]:
    """The incidents that ended within a day, or are kept since then; none of a dry run."""
    return closed(ledger, now - _DAY) + kept(ledger, opened, now - _DAY)


def _begun(ledger: Ledger, now: datetime) -> Mapping[str, int]:
    """How often each resource was orphaned within a day; not as a dry run noted it."""
    # Counted here: for a GROUP BY a database may rather read all there is in its order.
    since = (incident.c.detected_at > now - _DAY, incident.c.dry_run == 0)
    with ledger.reading() as connection:
        return Counter(connection.scalars(sa.select(incident.c.resource_id).where(*since)))


def _groups(registry: Registry) -> tuple[dict[str, int], dict[str, int]]:
    """The min-parallelism of the groups that have one, and their live threads."""
    groups = registry.sized_groups()
    min_parallelisms = {
        name: threads for name, group in groups.items() if (threads := min_parallelism(group))
    }
    capacity = registry.capacity(min_parallelisms) if min_parallelisms else {}
    return min_parallelisms, {name: live for name, (_, live) in capacity.items()}


def _ticks(
    instance: dg.DagsterInstance, sensor: str, location: str | None
) -> list[tuple[datetime, str]]:
    """The newest ticks of the sensor, and why each completed no survey; empty: it did."""
    if instance.schedule_storage is None:  # an instance of a test, or of a script
        return []
    found = [
        (datetime.fromtimestamp(tick.timestamp, UTC), _problem(tick))
        for state in instance.all_instigator_state()
        if state.instigator_name == sensor and location in {None, _location(state.origin)}
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=_TICKS)
        if tick.status.value != "STARTED"
    ]
    return sorted(found, reverse=True)


def location_of(run: dg.DagsterRun) -> str | None:
    """The code location of a run; None: it is not known, as for a run in this very process."""
    return None if run.remote_job_origin is None else _location(run.remote_job_origin)


def _location(origin: Any) -> str:  # noqa: ANN401 - Dagster does not export the classes
    name: str = origin.repository_origin.code_location_origin.location_name
    return name


def _problem(tick: Any) -> str:  # noqa: ANN401 - Dagster does not export the class
    if tick.status.value == "FAILURE":
        return f"its tick failed: {tick.error.message.strip() if tick.error else 'no reason given'}"
    reason = tick.skip_reason or ""
    return reason if reason.startswith((ABSTAINED, WATCHING)) else ""
