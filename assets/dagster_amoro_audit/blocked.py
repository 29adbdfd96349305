"""Which restarts are refused now: by a limit, by a container, or since refills did not help?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from dagster_amoro.core.limits import blocked_groups
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.pauses import Pause, Pauses
from dagster_amoro.core.policy import Verdict, decide
from dagster_amoro.core.scale_up import ON_ITS_WAY, ScaleUp, ScaleUpState
from dagster_amoro.healing.keeper import Keeper


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusals:
    """What is not restarted now although it is time; nothing of it is paused."""

    guarded: Mapping[str, str]  # why the limits hold a group back, by its name
    held: Sequence[Incident]  # the orphans that they hold back
    failed: Sequence[Incident]  # whose last start failed, the newest first
    stopped: Sequence[ScaleUp]  # groups whose rounds did not help
    pauses: Sequence[Pause]  # those that hold: what is paused is no refusal

    @property
    def restarts(self) -> int:
        """How many orphans are concerned."""
        return len({incident.incident_id for incident in (*self.held, *self.failed)})


def refused(
    keeper: Keeper, incidents: Iterable[Incident], pauses: Pauses, now: datetime
) -> Refusals:
    """Looks for refused restarts, as a tick would decide on them.

    Args:
        keeper: Whose limits and refills these are.
        incidents: All that are open.
        pauses: Those that hold at `now`.
        now: Aware UTC.

    Raises:
        StoreUnavailableError: Registry or ledger did not answer.
    """
    incidents = list(incidents)
    verdicts = {each.incident_id: _verdict(keeper, each, pauses, now) for each in incidents}
    due = [
        each
        for each in incidents
        if verdicts[each.incident_id] is Verdict.RESTART
        and each.state is State.WAITING
        and not each.operator_request
    ]
    guarded = blocked_groups(
        {each.group_name for each in due},
        (each.group_name for each in incidents),
        keeper.registry.resource_counts,
        keeper.limits,
    )
    failed = [
        each
        for each in incidents
        if each.last_error is not None
        and each.state in ON_ITS_WAY
        and verdicts[each.incident_id] is not Verdict.HOLD
    ]
    scale_ups = {} if keeper.ams or not keeper.policy.enabled else keeper.ledger.scale_ups()
    return Refusals(
        guarded=guarded,
        held=[each for each in due if each.group_name in guarded],
        failed=sorted(failed, key=lambda each: each.attempted_at or each.detected_at, reverse=True),
        stopped=[
            each
            for each in scale_ups.values()
            if each.state is ScaleUpState.STOPPED and not pauses.of_group(each.group_name)
        ],
        pauses=list(pauses.holding.values()),
    )


def _verdict(keeper: Keeper, incident: Incident, pauses: Pauses, now: datetime) -> Verdict:
    pause = pauses.of(incident.resource_id, incident.group_name)
    decision = decide(
        incident,
        obstacle=None,
        policy=keeper.policy,
        claimed=False,
        now=now,
        paused=str(pause) if pause else None,
    )
    return decision.verdict
