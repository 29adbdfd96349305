"""Who acts when: ticks and runs are threads, of which one at a time goes on to its next pause."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from threading import Semaphore, Thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

PATIENCE: Final = 60  # seconds of real time until a step that does not return is a deadlock


class StartOutcome(Enum):
    """What a container makes of a start."""

    STARTS = auto()
    FAILS = auto()
    EXITS = auto()
    FAILS_UNSPEAKABLY = auto()
    STARTS_AND_FAILS = auto()
    STARTS_UNSTORABLY = auto()


class Telling(Enum):
    """What a container says of how a worker ended."""

    KILLED = auto()
    FAILED = auto()
    LOST_HOST = auto()
    UNKNOWN = auto()
    NOTHING = auto()
    HANGS = auto()
    RAISES = auto()
    SECRET = auto()
    CONTROLS = auto()
    HUGE = auto()


@dataclass(frozen=True, kw_only=True)
class Step:
    """What happens to a tick or a run on its way to the next pause."""

    outcome: StartOutcome = StartOutcome.STARTS
    refuses: bool = False  # the container cannot stop anything
    is_slow: bool = False  # a start takes long, and works
    hangs: bool = False  # a call of the container is ended at its deadline, whatever came of it
    fails_in: int | None = None  # statements until the store fails; a commit is one
    answer_is_lost: bool = False  # the store fails after it has committed


class Killed(BaseException):
    """The process of a tick or a run is gone: raised at its pause, and at each that follows."""


class Actor:
    """A tick or a run in a thread of its own, which goes on when it is told to."""

    def __init__(self, name: str, body: Callable[["Actor"], None]) -> None:
        self.name: Final = name
        self.sleeps_until: datetime | None = None
        self.is_over = False
        self.was_killed = False
        self._error: BaseException | None = None
        self._go: Final = Semaphore(0)
        self._paused: Final = Semaphore(0)
        self._thread: Final = Thread(target=self._run, args=(body,), name=name, daemon=True)
        self._thread.start()

    def go_on(self) -> None:
        """Lets it go on up to its next pause, or its end."""
        self._go.release()
        assert self._paused.acquire(timeout=PATIENCE), f"{self.name} hangs"
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def pause(self) -> None:
        """Called by its own thread: waits until it may go on."""
        if not self.was_killed:
            self._paused.release()
            self._go.acquire()
        if self.was_killed:
            raise Killed

    def _run(self, body: Callable[["Actor"], None]) -> None:
        try:
            self._go.acquire()
            if not self.was_killed:
                body(self)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever let it go on
            self._error = None if self.was_killed else error
        self.is_over = True
        self._paused.release()


class Stage:
    """Who acts now, and what is to go wrong: what databases and container ask before each step."""

    def __init__(self) -> None:
        self.actor: Actor | None = None  # None: the test itself, which never pauses
        self.step = Step()
        self.committed: Callable[[], None] = lambda: None
        self.commits = 0

    def pause(self) -> None:
        """Lets others act first, where an actor is on stage."""
        if self.actor is not None:
            self.actor.pause()

    def check_alive(self) -> None:
        """Lets nothing be done by who was killed."""
        if self.actor is not None and self.actor.was_killed:
            raise Killed

    def let(self, actor: Actor, step: Step) -> None:
        """Lets an actor go on up to its next pause."""
        self.actor, self.step = actor, step
        try:
            actor.go_on()
        finally:
            self.actor, self.step = None, Step()

    def kill(self, actor: Actor) -> None:
        """Ends an actor where it stands, as `kill -9` does: nothing that follows has an effect."""
        actor.was_killed = True
        if not actor.is_over:
            self.let(actor, Step())
