"""How did the worker of a pod end, as far as the kubelet wrote it down?"""

import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from dagster_amoro.containers.kubernetes.api import at
from dagster_amoro.core.post_mortem import (
    KILLED,
    LOST_HOST,
    NEVER_STARTED,
    OUT_OF_MEMORY,
    UNKNOWN,
    PostMortem,
)

_BY_SIGNAL: Final = 128  # the exit code of a process that a signal ended is this and its number
_OUT_OF_MEMORY: Final = "OOMKilled"
_KILLS: Final = (signal.SIGKILL, signal.SIGTERM)


def newest(pods: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The pod that was made last; None: there is none."""
    return max(pods, key=lambda pod: str(at(pod, "metadata", "creationTimestamp")), default=None)


def end_of(pod: Mapping[str, Any], container: str | None = None) -> PostMortem:
    """How a pod ended, or why it does not come up.

    `container` is the one that the worker is in; None: the first.
    """
    name, state = f"its last pod {at(pod, 'metadata', 'name')}", _state_of(pod, container)
    ended = at(state, "state", "terminated") or at(state, "lastState", "terminated")
    reason = at(pod, "status", "reason")  # of what happened to all of it, such as an eviction
    if ended and (not reason or ended.get("reason") == _OUT_OF_MEMORY):
        return _by_container(name, ended)
    if reason:
        cause = LOST_HOST if reason == "NodeLost" else KILLED
        why = _joined(reason, at(pod, "status", "message"))
        return PostMortem(cause, f"{name} was ended, {why}")
    if waiting := at(state, "state", "waiting"):
        why = _joined(waiting.get("reason"), waiting.get("message"))
        return PostMortem(NEVER_STARTED, f"{name} waits, {why}")
    if unplaced := _unplaced(pod):
        return PostMortem(NEVER_STARTED, f"{name} has no node, {unplaced}")
    return PostMortem(UNKNOWN, f"{name} is {at(pod, 'status', 'phase')}")


def _state_of(pod: Mapping[str, Any], container: str | None) -> Mapping[str, Any]:
    states = at(pod, "status", "containerStatuses") or ()
    return next((each for each in states if container in (None, each.get("name"))), {})


def _by_container(name: str, ended: Mapping[str, Any]) -> PostMortem:
    code, reason = ended.get("exitCode"), str(ended.get("reason") or "without a reason")
    text = f"{name} ended with exit code {code}, {reason}, at {ended.get('finishedAt')}"
    return PostMortem(_cause(code, reason), text, str(ended.get("message") or ""))


def _cause(code: object, reason: str) -> str:
    if reason == _OUT_OF_MEMORY:
        return OUT_OF_MEMORY
    with suppress(ValueError, TypeError):
        if signal.Signals(int(str(code)) - _BY_SIGNAL) in _KILLS:
            return KILLED
    return f"exit {code}"


def _unplaced(pod: Mapping[str, Any]) -> str:
    """Why the scheduler found no node for a pod; empty: it did, or says nothing."""
    conditions = at(pod, "status", "conditions") or ()
    for each in conditions:
        if (each.get("type"), each.get("status")) == ("PodScheduled", "False"):
            return _joined(each.get("reason"), each.get("message"))
    return ""


def _joined(*parts: object) -> str:
    return ": ".join(str(part) for part in parts if part)
