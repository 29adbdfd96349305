"""A container for tests that starts nothing and remembers everything."""

from collections.abc import Callable, Iterator, Mapping
from itertools import repeat
from threading import Lock
from typing import Final, Literal, NamedTuple

from dagster_amoro.core.errors import ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import PostMortem


class Call(NamedTuple):
    """One call of a container."""

    action: Literal["request", "release"]
    resource: Resource


class RecordingContainer:
    """Records its calls, in their order, and does with them what the test says.

    Properties say it where the container is built from a configuration:

    | property | meaning |
    |---|---|
    | `auto-restart` | `false`: it opts out |
    | `fail-starts` | the message with which every start fails |
    | `refuse-releases` | the message with which every release fails |
    | `dies-of` | what it says of the end of any worker, as cause, sentence and log |

    May be used by several threads.
    """

    def __init__(
        self, name: str = "recording", properties: Mapping[str, str] | None = None
    ) -> None:
        self.name: Final = name
        self.properties: Final = dict(properties or {})
        self.supports_auto_restart = self.properties.get("auto-restart", "true") != "false"
        self.during_request: Callable[[Resource], None] | None = None
        """Called within each start, before its outcome: what happens meanwhile."""
        dies_of = self.properties.get("dies-of")
        self.found = PostMortem(dies_of, dies_of, dies_of) if dies_of else None
        """What it says of the end of any worker; None: nothing."""
        self._lock: Final = Lock()
        self._calls: Final[list[Call]] = []
        self._running: Final[dict[str, str]] = {}  # resource id to launch
        self._start_failures = _failures(StartFailedError, self.properties.get("fail-starts"))
        self._refusals = _failures(ReleaseFailedError, self.properties.get("refuse-releases"))

    @property
    def calls(self) -> tuple[Call, ...]:
        """All calls so far, those that failed included."""
        with self._lock:
            return tuple(self._calls)

    @property
    def requested(self) -> list[str]:
        """The ids of the resources whose start was requested, one for each time."""
        return [call.resource.resource_id for call in self.calls if call.action == "request"]

    @property
    def released(self) -> list[str]:
        """The ids of the resources whose release was requested, one for each time."""
        return [call.resource.resource_id for call in self.calls if call.action == "release"]

    @property
    def running(self) -> frozenset[str]:
        """The ids of the resources that were started and not released since."""
        with self._lock:
            return frozenset(self._running)

    def fail_starts(self, error: BaseException | str = "set to fail", times: int = -1) -> None:
        """Lets the next starts fail, `times` of them; negative: all, 0: none any more."""
        with self._lock:
            self._start_failures = _failures(StartFailedError, error, times)

    def refuse_releases(self, error: BaseException | str = "set to fail", times: int = -1) -> None:
        """Lets the next releases fail, `times` of them; negative: all, 0: none any more."""
        with self._lock:
            self._refusals = _failures(ReleaseFailedError, error, times)

    def opt_out(self) -> None:
        """Makes its orphans ones that are only reported."""
        self.supports_auto_restart = False

    def end(self, resource_id: str) -> None:
        """Lets the worker of a resource die, as workers do: nobody hears of it."""
        with self._lock:
            self._running.pop(resource_id, None)

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Records the call and pretends to start the resource, unless the test set it to fail.

        Returns `recording-launch`, which is different for each start.
        """
        launch = self._record(Call("request", resource))
        if self.during_request is not None:
            self.during_request(resource)
        with self._lock:
            if error := next(self._start_failures, None):
                raise error
            self._running[resource.resource_id] = launch
        return {"recording-launch": launch}

    def release_resource(self, resource: Resource) -> None:
        """Records the call and ends the launch that the resource's properties name, if it runs.

        Unless the test set it to fail.
        """
        self._record(Call("release", resource))
        with self._lock:
            if error := next(self._refusals, None):
                raise error
            if self._is_running(resource):
                del self._running[resource.resource_id]

    def post_mortem(self, resource: Resource) -> PostMortem | None:  # noqa: ARG002 - the protocol
        """What the test set; it is no call that is recorded."""
        return self.found

    def status(self, resource: Resource) -> Literal["running", "ended"]:
        """Whether the launch that the resource's properties name runs."""
        with self._lock:
            return "running" if self._is_running(resource) else "ended"

    def _is_running(self, resource: Resource) -> bool:
        launch = self._running.get(resource.resource_id)
        return launch is not None and launch == resource.properties.get("recording-launch")

    def _record(self, call: Call) -> str:
        with self._lock:
            self._calls.append(call)
            return str(len(self._calls))


def _failures(
    kind: type[Exception], error: BaseException | str | None, times: int = -1
) -> Iterator[BaseException]:
    """The error for each of the next calls, without end where `times` is negative; None: none."""
    if error is None:
        return iter(())
    error = kind(error) if isinstance(error, str) else error
    return repeat(error) if times < 0 else repeat(error, times)
