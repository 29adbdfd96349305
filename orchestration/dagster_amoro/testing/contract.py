"""Does a container class keep the protocol that the plugin relies on?"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from dagster_amoro.containers.base import Container
from dagster_amoro.core.errors import describe
from dagster_amoro.core.model import Resource

_STATES: Final = ("running", "ended", "unknown")
_EXAMPLE: Final = Resource(
    resource_id="contract-1",
    group_name="contract",
    container_name="contract",
    thread_count=1,
    memory_mb=64,
)


def check_container(
    container_class: Callable[[str, Mapping[str, str]], Container],
    properties: Mapping[str, str],
    resource: Resource = _EXAMPLE,
) -> None:
    """Starts and releases a resource for real, and looks at each answer on the way.

    Args:
        container_class: Built as `container_class(name, properties)`, as a configuration does it.
        properties: Those of its entry in `containers:`; with them, a start must succeed.
        resource: What to start. It is released at the end, also where a check fails.

    Raises:
        AssertionError: The class breaks the protocol; the message says where and how.
    """
    given = dict(properties)
    container = container_class(resource.container_name, given)
    _require(given == dict(properties), "the constructor changes the properties it is given")
    for method in ("request_resource", "release_resource"):
        _require(callable(getattr(container, method, None)), f"it has no method {method}")
    found = getattr(container, "supports_auto_restart", None)
    problem = f"supports_auto_restart is {found!r}, neither True nor False"
    _require(isinstance(found, bool), problem)
    resource = resource.with_properties({})  # with a mapping of its own
    _release(container, resource, "a resource that was never started")
    started = resource
    try:
        started = _start(container, resource)
        _check_status(container, started, _STATES)
        _release(container, started, "a resource that runs")
        _check_status(container, started, ("ended", "unknown"))
        _release(container, started, "a resource that was released before")
    except AssertionError:
        container.release_resource(started)
        raise


def _start(container: Container, resource: Resource) -> Resource:
    """The resource with the start-up properties that its start returned."""
    before = dict(resource.properties)
    startup: Any = container.request_resource(resource)
    _require(resource.properties == before, "request_resource changes the resource's properties")
    problem = f"request_resource returns {type(startup).__name__}, not a mapping of texts to texts"
    _require(isinstance(startup, Mapping), problem)
    for key, value in startup.items():
        problem = f"request_resource returns {key!r}: {value!r}; keys and values are texts"
        _require(isinstance(key, str) and isinstance(value, str), problem)
    return resource.with_properties(startup)


def _release(container: Container, resource: Resource, what: str) -> None:
    before = dict(resource.properties)
    try:
        container.release_resource(resource)
    except Exception as error:
        raise AssertionError(f"release_resource of {what} raises {describe(error)}") from error
    _require(resource.properties == before, "release_resource changes the resource's properties")


def _check_status(container: Container, resource: Resource, accepted: tuple[str, ...]) -> None:
    if status := getattr(container, "status", None):
        found = status(resource)
        _require(found in accepted, f"status is {found!r}; possible here: {', '.join(accepted)}")


def _require(condition: bool, problem: str) -> None:  # noqa: FBT001 - what assert would take
    if not condition:
        raise AssertionError(problem)
