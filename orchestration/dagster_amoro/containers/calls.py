"""How is a container called, so that whatever it does wrong is a failure of that call alone?"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from dagster_amoro.containers.base import Container, ContainerLookup, interruptions
from dagster_amoro.containers.fences import Fence
from dagster_amoro.core.container_settings import CallLimits
from dagster_amoro.core.errors import ContainerError, OverdueError, StartFailedError, describe
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import UNKNOWN, PostMortem
from dagster_amoro.core.secrets import Mask


class Stop(NamedTuple):
    """What came of a stop."""

    notes: tuple[str, ...] = ()  # why it may not have worked
    is_overdue: bool = False  # whether it was ended because it took too long


def texts(startup: Mapping[str, str]) -> dict[str, str]:
    """Start-up properties as texts, which not every container of other people returns.

    Only texts can be saved for the stop that needs them.

    Raises:
        TypeError: The container returned no mapping.
    """
    if not isinstance(startup, Mapping):
        raise TypeError(
            f"its start returned {type(startup).__name__}, not a mapping of texts to texts, "
            "so what it started cannot be found again"
        )
    return {str(key): str(value) for key, value in startup.items()}


def start(container: Container, resource: Resource, fence: Fence | None = None) -> dict[str, str]:
    """Starts a resource for the attempt of a fence; returns its start-up properties, as texts.

    Raises:
        StartFailedError: Whatever the container raised, without the resource's secrets. Its cause
            is an OverdueError where the start took too long.
    """
    try:
        return texts(container.request_resource(resource, *shown(container, fence)))
    except interruptions():
        raise
    except BaseException as error:
        raise StartFailedError(describe(error, Mask(resource.properties).hide)) from error


def stop(container: Container, resource: Resource, what: str, fence: Fence | None = None) -> Stop:
    """Stops a resource for the attempt of a fence, as well as it can be done.

    `what` is what the notes call the resource.
    """
    try:
        container.release_resource(resource, *shown(container, fence))
    except interruptions():
        raise
    except BaseException as error:  # noqa: BLE001 - a container may raise anything
        problem = describe(error, Mask(resource.properties).hide)
        return Stop((f"could not stop {what}: {problem}",), isinstance(error, OverdueError))
    return Stop()


def post_mortem(
    container: Container, resource: Resource, hide: Callable[[str], str] | None = None
) -> PostMortem | None:
    """How the last worker of a resource ended, or why that is not known; None: it never tells.

    Secrets are hidden by `hide`, else those of the resource alone.
    """
    hide = hide or Mask(resource.properties).hide
    ask = getattr(container, "post_mortem", None)
    try:
        return _post_mortem(ask(resource) if ask else None, hide)
    except interruptions():
        raise
    except BaseException as error:  # noqa: BLE001 - a container may raise anything
        text = f"how its last worker ended cannot be learned: {describe(error, hide)}"
        return PostMortem(UNKNOWN, text).cleaned(str)


def _post_mortem(found: Any, hide: Callable[[str], str]) -> PostMortem | None:  # noqa: ANN401 - anybody's
    """What a container said, if it is of this kind; it is not read where it might have no end."""
    if not found:
        return None
    if not isinstance(found, tuple):
        raise TypeError(f"it is told by {type(found).__name__}, not by a PostMortem")
    return PostMortem(*found).cleaned(hide)


def limits_of(container: Container) -> CallLimits | None:
    """How long its calls may take; None: nobody limits them, as in a test."""
    return getattr(container, "limits", None)


def warm_up(containers: ContainerLookup, name: str) -> None:
    """Lets a container that is called in another process start that process now.

    So it is up when the caller has looked at everything else.
    """
    with suppress(ContainerError):  # its first call says so
        getattr(containers.get(name), "warm_up", lambda: None)()


def concurrent_starts(containers: ContainerLookup, name: str) -> int | None:
    """How many starts of a container may be under way at once; None: it does not say."""
    try:
        limits = limits_of(containers.get(name))
    except ContainerError:
        return None
    return limits.max_concurrent_starts if limits else None


def shown(container: Container, fence: Fence | None) -> tuple[Fence, ...]:
    """The fence as an argument, for a container that looks at fences, as `fenced` says."""
    return (fence,) if fence and getattr(container, "fenced", False) else ()
