"""Which restarts are blocked now: by a limit, by a container, or since scale-ups did not help?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dagster_amoro.core.limits import CountResources, Limits, blocked_groups
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.pauses import Pause, Pauses
from dagster_amoro.core.policy import Verdict
from dagster_amoro.core.scale_up import ON_ITS_WAY, ScaleUp, ScaleUpState


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockedRestarts:
    """What is not restarted now although it is time; nothing of it is paused."""

    limited: Mapping[str, str]  # why the limits hold a group back, by its name
    held: Sequence[Incident]  # the orphans that the limits hold back
    failed: Sequence[Incident]  # orphans whose last start failed, the newest first
    stopped: Sequence[ScaleUp]  # the last rounds of groups whose scale-ups did not help
    pauses: Sequence[Pause]  # those that hold: what is paused is not blocked

    @property
    def restarts(self) -> int:
        """How many orphans are concerned."""
        return len({incident.incident_id for incident in (*self.held, *self.failed)})


def blocked_restarts(
    verdicts: Iterable[tuple[Incident, Verdict]],
    scale_ups: Iterable[ScaleUp],
    pauses: Pauses,
    limits: Limits,
    count: CountResources,
) -> BlockedRestarts:
    """Sorts out which restarts are blocked, as a tick would decide on them.

    Args:
        verdicts: All open incidents, each with what a tick would do about it.
        scale_ups: The last rounds of the groups that are scaled up.
        pauses: Those that hold now.
        limits: Of what a tick restarts.
        count: Says how many resources each group has; asked only if there is a limit.
    """
    verdicts = list(verdicts)
    due = [
        incident
        for incident, verdict in verdicts
        if verdict is Verdict.RESTART
        and incident.state is State.WAITING
        and not incident.operator_request
    ]
    groups = {incident.group_name for incident in due}
    limited = blocked_groups(groups, (each.group_name for each, _ in verdicts), count, limits)
    failed = [
        incident
        for incident, verdict in verdicts
        if incident.last_error is not None
        and incident.state in ON_ITS_WAY
        and verdict is not Verdict.HOLD
    ]
    return BlockedRestarts(
        limited=limited,
        held=[incident for incident in due if incident.group_name in limited],
        failed=sorted(failed, key=lambda each: each.attempted_at or each.detected_at, reverse=True),
        stopped=[
            each
            for each in scale_ups
            if each.state is ScaleUpState.STOPPED and not pauses.of_group(each.group_name)
        ],
        pauses=list(pauses.holding.values()),
    )
