"""Which things there are: resources, orphans, incidents and the events of their story."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple, Self


@dataclass(frozen=True, kw_only=True, slots=True)
class Resource:
    """One worker that a container was, or is to be, asked to start."""

    resource_id: str  # up to 100 characters of anything; Amoro's are base-32 digits
    group_name: str
    container_name: str  # a name from the `containers` list of config.yaml
    thread_count: int
    memory_mb: int  # MiB; 0 where the group's properties say it, as AMS does
    properties: Mapping[str, str] = field(default_factory=dict)  # the group's, then start-up keys

    def with_properties(self, startup: Mapping[str, str]) -> "Resource":
        """The same resource after a start that returned these start-up properties."""
        return replace(self, properties={**self.properties, **startup})


class Orphan(NamedTuple):
    """A `resource` row that no optimizer row names, as it stands in the database.

    A tuple, and unread, as a snapshot can hold thousands whose incidents need nothing.
    """

    resource_id: str
    group_name: str | None
    container_name: str | None
    thread_count: int | None
    total_memory: int | None  # MiB
    properties: str | None  # JSON text
    copies: int = 1  # rows with this id; upgraded databases of Amoro may have several


class State(StrEnum):
    """Where an incident stands. The open states come first, then the outcomes."""

    WAITING = "waiting"  # in its grace period, or due and not yet given to a run
    UNSUPPORTED = "unsupported"  # reported once, never touched: it cannot be restarted
    DISPATCHED = "dispatched"  # a run was requested for it and has not claimed it
    CLAIMED = "claimed"  # a run works on it
    GIVING_UP = "giving-up"  # its row is in the ledger and is being removed
    SUPERSEDING = "superseding"  # as in GIVING_UP, since its group was scaled up without it
    RELEASING = "releasing"  # somebody removed its row; what an attempt started is being released
    KEPT = "kept"  # its attempts are used up; its row is left to a person
    RECOVERED = "recovered"  # an optimizer with its id registered
    EXHAUSTED = "exhausted"  # given up: released and removed
    RELEASED = "released"  # somebody removed its row
    SUPERSEDED = "superseded"  # its group was scaled up without it

    __hash__ = str.__hash__  # that of enums is no builtin, and a tick looks up thousands

    @property
    def is_open(self) -> bool:
        """Whether the incident still waits for its outcome."""
        return self not in _CLOSED

    @property
    def is_removing(self) -> bool:
        """Whether its removal has begun, by us or by somebody else, and must be finished."""
        return self in _REMOVING


RUN_KEY: Final = "incident.attempts.dispatch"
"""How the run key of a dispatch begins; no id of a run does."""
APPLY: Final = "apply"
"""How the name of a process begins that carries a declaration out; no id of a run does."""
_CLOSED = frozenset({State.RECOVERED, State.EXHAUSTED, State.RELEASED, State.SUPERSEDED})
_REMOVING = frozenset({State.GIVING_UP, State.SUPERSEDING, State.RELEASING})


def is_apply(owner: str) -> bool:
    """Whether this is the name of a process that carries a declaration out, and no run's id."""
    return owner.startswith(f"{APPLY} ")


class OperatorRequest(StrEnum):
    """What an operator wants to be done about an incident, whatever the policy says."""

    RESTART = "restart"  # without waiting for the end of the grace period
    GIVE_UP = "give-up"


class Incident(NamedTuple):
    """One resource's time as an orphan, from its detection to its outcome.

    A tuple, like `Orphan`, because a tick reads all that are open; built with keywords.
    """

    incident_id: int  # the ledger's number; 0 until it is stored
    resource_id: str
    group_name: str
    container_name: str
    thread_count: int
    detected_at: datetime
    state: State = State.WAITING
    attempts: int = 0  # starts that were decided on, each counted before it was made
    attempted_at: datetime | None = None  # when the last of them began
    # When the last of them was over; as long as that is not known, when it is over at the latest.
    attempt_ends_at: datetime | None = None
    dispatches: int = 0  # runs that were requested for it
    claimed_by: str | None = None  # the run key of a dispatch, then the id of the run at work
    claimed_until: datetime | None = None  # the claim lapses then, unless the run renews it
    note: str | None = None  # why it cannot be restarted, where state is UNSUPPORTED
    last_error: str | None = None  # of the last attempt that failed
    closed_at: datetime | None = None  # when the outcome was seen
    version: int = 0  # counts transitions; the ledger compares it before each
    # Attempts of earlier incidents that count too, since it was not stable for long enough after
    # them. Below zero: so many of its own do not count, after a reset.
    prior_attempts: int = 0
    operator_request: OperatorRequest | None = None  # by an operator, and not done yet
    # `start_time` of the newest resource in its group at the detection, as the database said it;
    # what is newer came afterwards. None: nobody adds resources to its group by themselves.
    newest_start: str | None = None
    fence: int | None = None  # the lease under which its claim was given; None: without leases
    dry_run: bool = False  # whether the last step was taken in a dry run
    # How often a run lost it before its end, or a call of its container ran into its deadline.
    setbacks: int = 0
    unused_dispatches: int = 0  # in a row, before the present one: no run has claimed them
    # Whether its last attempt is under way, or was lost on its way with its run.
    is_attempting: bool = False
    interrupted: int = 0  # attempts of its own that do not count: they were lost on their way
    # Registrations that may be of what was stopped, a JSON object: by token, when it was touched
    # last as the database said it. None: there are none.
    doubted: str | None = None
    # How its worker ended before the first attempt, as `PostMortem` says it. None: nobody asked.
    # It is no part of a step, and comes whenever it is learned.
    cause: str | None = None
    death: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether the incident still waits for its outcome."""
        return self.state.is_open

    @property
    def awaits_run(self) -> bool:
        """Whether a run was requested for it and has not claimed it."""
        if self.state.is_removing:
            return self.claimed_by is not None and self.claimed_by.startswith(RUN_KEY)
        return self.claimed_by is not None and self.state is State.DISPATCHED

    @property
    def is_in_run(self) -> bool:
        """Whether a run has claimed it and did not let go of it."""
        is_claimed = self.state is State.CLAIMED or self.state.is_removing
        return self.claimed_by is not None and is_claimed and not self.awaits_run

    @property
    def is_in_apply(self) -> bool:
        """Whether whoever carries a declaration out has taken it in hand, and not let go of it."""
        return self.claimed_by is not None and is_apply(self.claimed_by)

    @property
    def setbacks_if_lost(self) -> int:
        """Its setbacks, where the run that has it, if one has, was lost."""
        return self.setbacks + self.is_in_run

    @property
    def attempts_used(self) -> int:
        """How many attempts of its budget are used up, one that is under way included."""
        return self.attempts + self.prior_attempts - self.interrupted

    @property
    def attempts_spent(self) -> int:
        """How many attempts of its budget came to an end."""
        return self.attempts_used - self.is_attempting

    @property
    def doubts_registrations(self) -> bool:
        """Whether not just any registration says that it is back."""
        return self.is_attempting or self.doubted is not None

    def is_renewal_of(self, before: "Incident") -> bool:
        """Whether its claim was extended since, or its cause was learned, and nothing else."""
        renewed = before._replace(claimed_until=self.claimed_until, version=self.version)
        return renewed._replace(cause=self.cause, death=self.death) == self

    def evolve(self, **changes: Any) -> Self:  # noqa: ANN401 - any field of the record
        """A copy with these fields changed, one version on."""
        return self._replace(version=self.version + 1, **changes)


class EventKind(StrEnum):
    """What can happen in the story of an incident."""

    DETECTED = "detected"
    REPORTED = "reported"  # cannot be restarted, and why
    DISPATCHED = "dispatched"
    CLAIMED = "claimed"
    ATTEMPT = "attempt"  # the intent, written before the container is called
    STARTED = "started"  # the container accepted; registration decides
    ATTEMPT_FAILED = "attempt-failed"
    GIVEN_BACK = "given-back"  # a run let go of it without an attempt
    GIVING_UP = "giving-up"  # its whole resource row is kept beside it
    SUPERSEDING = "superseding"  # its whole resource row is kept beside it
    RELEASING = "releasing"  # somebody removed its row, after an attempt
    ROW_IS_BACK = "row-is-back"  # before what an attempt started was released
    DOUBTED = "doubted"  # an optimizer registered that may have been stopped by then
    RECOVERED = "recovered"
    EXHAUSTED = "exhausted"
    KEPT = "kept"  # its attempts are used up, and it is left as it is
    RELEASED = "released"
    SUPERSEDED = "superseded"
    ENFORCED = "enforced"  # a dry run is over, and what it did not do counts no longer
    # What keeps a group at its size.
    SCALE_UP = "scale-up"  # the intent to start a new resource
    SCALED_UP = "scaled-up"  # it was started and recorded
    SCALE_UP_FAILED = "scale-up-failed"
    SCALE_UP_STOPPED = "scale-up-stopped"  # too many rounds in a row did not help
    REPLACED = "replaced"  # a new resource is to take its place
    # What operators do.
    PAUSED = "paused"
    RESUMED = "resumed"
    RESTART_NOW = "restart-now"
    RESET = "reset"
    GIVE_UP = "give-up"
    RESTORED = "restored"
    ACKNOWLEDGED = "acknowledged"  # somebody looks after what was given up, or is kept
    CORRECTED = "corrected"  # a time that lay in the future counts from now on
    APPLIED = "applied"  # what config.yaml declares is carried out
    SCALED_IN = "scaled-in"  # a worker was stopped for good, and its row removed
    LEASE_TAKEN = "lease-taken"  # another deployment acts from now on


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One line of the story of an incident or a group; never changed once written."""

    kind: EventKind
    at: datetime
    message: str  # one sentence for a person
    attempt: int | None = None  # the number of the attempt it belongs to
    run_id: str | None = None  # the Dagster run that did it; None: a tick
    details: Mapping[str, Any] = field(default_factory=dict)  # JSON values


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """One step of an incident's life with its event; applied together or not at all."""

    before: Incident | None  # the state that must still hold; None: the incident is opened
    after: Incident
    event: Event
    row: Mapping[str, Any] | None = None  # a whole resource row to keep, before it is removed


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
