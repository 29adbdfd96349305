"""Does a group need a new resource to reach its floor, and how often was that tried already?

What AMS does for its groups (`OptimizerGroupKeeper`), with one difference: orphans that are going
to be restarted count, so that nothing is started twice for the same threads.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, Final, NamedTuple, Self

from dagster_amoro.core.model import Incident, Ordered, Orphan, State
from dagster_amoro.core.policy import RestartPolicy, due_at

ON_ITS_WAY: Final = frozenset({State.WAITING, State.HANDED_OVER, State.CLAIMED})
"""In these states an incident can lead to a restart."""


class RefillState(StrEnum):
    """Where the last round of a group stands."""

    REQUESTED = "requested"  # with a run, unless its claim lapsed
    STARTED = "started"  # the container accepted, and the resource is recorded
    FAILED = "failed"
    UNNEEDED = "unneeded"  # the threads were there by then
    STOPPED = "stopped"  # too many rounds did not help; a person is needed


class Refill(NamedTuple):
    """The rounds in a row in which a group got, or was to get, a new resource."""

    group_name: str
    floor: int  # threads, as configured when the first of the rounds began
    rounds: int = 0  # each counted before the container is called
    resource_id: str = ""  # of the last round
    threads: int = 0  # likewise
    state: RefillState = RefillState.UNNEEDED
    claimed_by: str | None = None  # as in `Incident`
    claimed_until: datetime | None = None
    next_at: datetime | None = None  # no round begins before
    last_error: str | None = None
    fence: int | None = None
    version: int = 0  # counts steps; the ledger compares it before each

    def evolve(self, **changes: Any) -> Self:  # noqa: ANN401 - any field of the record
        """A copy with these fields changed, one version on."""
        return self._replace(version=self.version + 1, **changes)


class Course(Enum):
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
    if incident.ordered is not None:
        return incident.ordered == Ordered.RESTART
    if incident.last_error is not None:
        return False
    until = incident.claimed_until if incident.state is State.CLAIMED else None
    is_held = until is not None and now < until  # its last attempt may be under way
    return is_held or incident.spent < policy.max_retries or now < due_at(incident, policy)


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


def course(  # noqa: PLR0911, PLR0913 - a return for each row of the table
    refill: Refill | None,
    *,
    floor: int,
    live: int,
    coming: int,
    claimed: bool,
    most_rounds: int,
    now: datetime,
) -> Course:
    """What to do for a group now; the first row that applies.

    | when | course |
    |---|---|
    | a run is at it | wait |
    | live >= floor | settle, if there were rounds |
    | live + coming >= floor | rest |
    | the floor is another one than at the first round | start |
    | it was stopped | stopped |
    | now < the next round | wait |
    | rounds < most rounds | start |
    | else | stop |

    Args:
        refill: Its rounds so far; None: there were none.
        floor: The threads that it must have.
        live: The threads that it has.
        coming: Those that can be expected back.
        claimed: Whether a run is at it.
        most_rounds: In a row.
        now: Aware UTC.
    """
    if refill is not None and claimed:
        return Course.WAIT
    if live >= floor:
        return Course.SETTLE if refill else Course.REST
    if live + coming >= floor:
        return Course.REST
    if refill is None or refill.floor != floor:
        return Course.START
    if refill.state is RefillState.STOPPED:
        return Course.STOPPED
    if refill.next_at is not None and now < refill.next_at:
        return Course.WAIT
    return Course.START if refill.rounds < most_rounds else Course.STOP


def next_round(  # noqa: PLR0913 - what a round is made of
    refill: Refill | None,
    group_name: str,
    *,
    floor: int,
    threads: int,
    resource_id: str,
    interval: timedelta,
    now: datetime,
) -> Refill:
    """The next round, counted before it is made; the pause after it grows with their number."""
    before = refill or Refill(group_name, floor)
    rounds = before.rounds + 1 if before.floor == floor else 1
    return before.evolve(
        floor=floor,
        rounds=rounds,
        resource_id=resource_id,
        threads=threads,
        state=RefillState.REQUESTED,
        next_at=now + interval * (rounds + 1),
        last_error=None,
    )
