"""Does a group need a new resource to reach its min-parallelism, and how often was it tried?

What AMS does for its groups (`OptimizerGroupKeeper`), with one difference: orphans that are going
to be restarted count, so that nothing is started twice for the same threads.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, Final, NamedTuple, Self

from dagster_amoro.core.model import Incident, OperatorRequest, Orphan, State
from dagster_amoro.core.policy import RestartPolicy, due_at

ON_ITS_WAY: Final = frozenset({State.WAITING, State.DISPATCHED, State.CLAIMED})
"""In these states an incident can lead to a restart."""


class ScaleUpState(StrEnum):
    """Where the last round of a group stands."""

    REQUESTED = "requested"  # with a run, unless its claim lapsed
    STARTED = "started"  # the container accepted, and the resource is recorded
    FAILED = "failed"
    UNNEEDED = "unneeded"  # the threads were there by then
    STOPPED = "stopped"  # too many rounds did not help; a person is needed


class ScaleUp(NamedTuple):
    """The rounds in a row in which a group got, or was to get, a new resource."""

    group_name: str
    min_parallelism: int  # threads, as configured when the first of the rounds began
    rounds: int = 0  # each counted before the container is called
    resource_id: str = ""  # of the last round
    threads: int = 0  # of that resource
    state: ScaleUpState = ScaleUpState.UNNEEDED
    claimed_by: str | None = None  # as in `Incident`
    claimed_until: datetime | None = None
    next_at: datetime | None = None  # no round begins before
    last_error: str | None = None
    fence: int | None = None
    version: int = 0  # counts steps; the ledger compares it before each

    def evolve(self, **changes: Any) -> Self:  # noqa: ANN401 - any field of the record
        """A copy with these fields changed, one version on."""
        return self._replace(version=self.version + 1, **changes)


class ScaleDecision(Enum):
    """What is to be done for a group."""

    REST = "rest"  # it has what it needs, or will have it
    SETTLE = "settle"  # it has again what it needs: the rounds are forgotten
    WAIT = "wait"  # a round is under way, or the next one is not due
    START = "start"
    STOP = "stop"  # say that it did not help
    STOPPED = "stopped"  # that was said


def is_coming(incident: Incident | None, policy: RestartPolicy, now: datetime) -> bool:
    """Whether the threads of an orphan can be expected back.

    They can while it is in its grace period or being restarted; not once its last restart failed,
    or its attempts are used up.

    Args:
        incident: The orphan's; None: it was not noticed yet, and will be.
        policy: The policy of its group.
        now: Aware UTC.
    """
    if incident is None:
        return True
    if incident.state not in ON_ITS_WAY:
        return False
    if incident.operator_request is not None:
        return incident.operator_request == OperatorRequest.RESTART
    if incident.last_error is not None:
        return False
    until = incident.claimed_until if incident.state is State.CLAIMED else None
    is_held = until is not None and now < until  # its last attempt may be under way
    return is_held or incident.attempts_used < policy.max_retries or now < due_at(incident, policy)


def coming(
    orphans: Iterable[Orphan],
    incidents: Mapping[str, Incident],
    policy: RestartPolicy,
    now: datetime,
) -> int:
    """The threads of these orphans that can be expected back; `incidents` by resource id."""
    return sum(
        orphan.thread_count or 0
        for orphan in orphans
        if is_coming(incidents.get(orphan.resource_id), policy, now)
    )


def scale_decision(  # noqa: PLR0911, PLR0913 - a return for each row of the table
    scale_up: ScaleUp | None,
    *,
    min_parallelism: int,
    live: int,
    coming: int,
    claimed: bool,
    max_rounds: int,
    now: datetime,
) -> ScaleDecision:
    """What to do for a group now; the first row that applies.

    | when | course |
    |---|---|
    | a run is at it | wait |
    | live >= min-parallelism | settle, if there were rounds |
    | live + coming >= min-parallelism | rest |
    | the min-parallelism is another one than at the first round | start |
    | it was stopped | stopped |
    | now < the next round | wait |
    | rounds < most rounds | start |
    | else | stop |

    Args:
        scale_up: Its rounds so far; None: there were none.
        min_parallelism: The threads that it must have.
        live: The threads that it has.
        coming: Those that can be expected back.
        claimed: Whether a run is at it.
        max_rounds: In a row.
        now: Aware UTC.
    """
    if scale_up is not None and claimed:
        return ScaleDecision.WAIT
    if live >= min_parallelism:
        return ScaleDecision.SETTLE if scale_up else ScaleDecision.REST
    if live + coming >= min_parallelism:
        return ScaleDecision.REST
    if scale_up is None or scale_up.min_parallelism != min_parallelism:
        return ScaleDecision.START
    if scale_up.state is ScaleUpState.STOPPED:
        return ScaleDecision.STOPPED
    if scale_up.next_at is not None and now < scale_up.next_at:
        return ScaleDecision.WAIT
    return ScaleDecision.START if scale_up.rounds < max_rounds else ScaleDecision.STOP


def next_round(  # noqa: PLR0913 - what a round is made of
    scale_up: ScaleUp | None,
    group_name: str,
    *,
    min_parallelism: int,
    threads: int,
    resource_id: str,
    interval: timedelta,
    now: datetime,
) -> ScaleUp:
    """The next round, counted before it is made; the pause after it grows with their number."""
    before = scale_up or ScaleUp(group_name, min_parallelism)
    rounds = before.rounds + 1 if before.min_parallelism == min_parallelism else 1
    return before.evolve(
        min_parallelism=min_parallelism,
        rounds=rounds,
        resource_id=resource_id,
        threads=threads,
        state=ScaleUpState.REQUESTED,
        next_at=now + interval * (rounds + 1),
        last_error=None,
    )
