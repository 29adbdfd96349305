"""A container on trial: its calls as the plugin makes them, with a look at each answer."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from dagster_amoro.containers.base import Container
from dagster_amoro.containers.waiting import within
from dagster_amoro.core.errors import ContainerError, PropertiesError, describe
from dagster_amoro.core.model import Resource
from dagster_amoro.core.properties import merge_properties

_STATES: Final = ("running", "ended", "unknown")
_POLL: Final = 0.05  # seconds between two looks at what an engine does
_TEXTS: Final = (2, 3)  # of a post mortem: cause, sentence and maybe a log


def require(condition: bool, problem: str) -> None:  # noqa: FBT001 - what assert would take
    """Fails with the problem unless the condition holds.

    Asserts of a module that is not a test would not say what was wrong.
    """
    if not condition:
        raise AssertionError(problem)


class Trial:
    """Calls a container, which is built anew for each call: the next may come from anywhere.

    An AssertionError says what the container does wrong.
    """

    def __init__(
        self,
        build: Callable[[], Container],
        *,
        count: Callable[[Resource], int] | None = None,
        patience: float = 0.0,
    ) -> None:
        """`count` tells how many workers a resource has; `patience` is how long that may take."""
        self._build: Final = build
        self._count: Final = count
        self._patience: Final = patience
        self._called: Final[list[Resource]] = []

    def start(self, resource: Resource) -> Resource:
        """Starts a worker; returns the resource as it is saved then."""
        self._called.append(resource)
        startup = self._call("request_resource", resource)
        kind = type(startup).__name__
        require(isinstance(startup, Mapping), f"request_resource returns {kind}, not a mapping")
        for key, value in startup.items():
            problem = f"request_resource returns {key!r}: {value!r}; keys and values are texts"
            require(isinstance(key, str) and isinstance(value, str), problem)
        started = resource.with_properties(startup)
        self._called.append(started)
        try:
            merge_properties(None, startup)
        except PropertiesError as error:
            raise AssertionError(f"request_resource returns what is not saved: {error}") from None
        return started

    def release(self, resource: Resource, what: str = "a resource that runs") -> None:
        """Stops what a resource names, which is no error whatever became of it."""
        try:
            self._call("release_resource", resource)
        except Exception as error:
            raise AssertionError(f"release_resource of {what} raises {describe(error)}") from error

    def runs(self, resource: Resource) -> None:
        """Fails unless the resource has one worker, now or soon."""
        if count := self._count:
            is_one = within(self._patience, lambda: count(resource) == 1, _POLL)
            require(is_one, f"{count(resource)} workers of one resource run, not one")
        require(self.status(resource) != "ended", "status is 'ended' of a worker that runs")

    def has_ended(self, resource: Resource) -> None:
        """Fails unless nothing of the resource is left, as it has to be right after a release."""
        left = self._count(resource) if self._count else 0
        require(not left, f"{left} of its workers run after release_resource")
        require(self.status(resource) != "running", "status is 'running' after release_resource")

    def has_died(self, resource: Resource) -> None:
        """Fails unless it is seen that the resource's worker is dead, now or soon."""
        gone = within(self._patience, lambda: self.status(resource) != "running", _POLL)
        require(gone, "status is 'running' of a worker that died")

    def is_gone(self, lost: Resource) -> None:
        """Fails if a launch that nobody knows of runs beside a later one of its resource.

        Where workers are counted, `runs` has seen that of the later one.
        """
        if self._count is None:
            problem = "a start whose answer was lost leaves its worker running beside the next one"
            require(self.status(lost) != "running", problem)

    def status(self, resource: Resource) -> str:
        """What the container says of a worker, if it says anything."""
        if not hasattr(self._build(), "status"):
            return "unknown"
        found = self._call("status", resource)
        require(found in _STATES, f"status is {found!r}; possible are: {', '.join(_STATES)}")
        return str(found)

    def look(self, resource: Resource) -> None:
        """Asks for everything that may be asked at any time, and looks at the answers."""
        self.status(resource)
        for method, check in (("post_mortem", _tells), ("command", _argv), ("manifest", _json)):
            if not hasattr(self._build(), method):
                continue
            with suppress(ContainerError):  # nobody knows, or there is nothing to be shown
                found = self._call(method, resource)
                require(check(found), f"{method} returns {found!r}")

    def clean_up(self) -> None:
        """Releases whatever may be left, also where the container fails in every other way."""
        for resource in reversed(self._called):
            with suppress(Exception):
                self._build().release_resource(resource)

    def _call(self, method: str, resource: Resource) -> Any:  # noqa: ANN401 - anybody's answer
        before = dict(resource.properties)
        mine = resource.with_properties({})  # with a mapping of its own
        answer = getattr(self._build(), method)(mine)
        require(mine.properties == before, f"{method} changes the resource's properties")
        return answer


def _tells(found: object) -> bool:
    """Whether it is a `PostMortem`, or nothing."""
    if not isinstance(found, tuple):
        return found is None
    return len(found) in _TEXTS and all(isinstance(each, str) for each in found)


def _argv(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)


def _json(found: object) -> bool:
    with suppress(TypeError, ValueError):
        return isinstance(found, dict) and bool(json.dumps(found))
    return False
