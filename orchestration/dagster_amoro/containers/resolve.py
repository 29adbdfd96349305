"""Which container does a name in the database stand for, also in a dry run?"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from threading import Lock
from typing import Final

from dagster_amoro.containers import calls
from dagster_amoro.containers.base import Container, ContainerLookup, interruptions
from dagster_amoro.containers.preview import Preview, preview
from dagster_amoro.core.ams_version import AskAmsVersion
from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.errors import ContainerError, OverdueError, describe
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import PostMortem
from dagster_amoro.core.secrets import Mask

ENTRY_POINTS: Final = "dagster_amoro.containers"  # the group in which others have theirs
_MEMBERS: Final = ("request_resource", "release_resource", "supports_auto_restart")
_JAVA: Final = "org.apache.amoro."
_AMORO: Final = {
    f"org.apache.amoro.server.manager.{kind}OptimizerContainer": (
        f"dagster_amoro.containers.amoro.{kind.lower()}.{kind}Container"
    )
    for kind in ("Local", "Flink", "Spark", "Kubernetes")
}


def build_container(
    settings: ContainerSettings, ask_ams_version: AskAmsVersion | None = None
) -> Container:
    """The container that an entry of `containers:` describes.

    Amoro's Java class names stand for the classes of this package, and a name without a dot for
    what a distribution has as an entry point of the group `dagster_amoro.containers`.

    Raises:
        ContainerError: Its class cannot be imported, cannot be built or is no container.
    """
    try:
        return _build(settings, ask_ams_version)
    except interruptions():
        raise
    except BaseException as error:  # a user's code, which may also exit, or panic in Rust
        why = describe(error, Mask(settings.properties).hide)
        raise ContainerError(
            f"container {settings.name!r} cannot be used: {settings.implementation}: {why}"
        ) from error


def _build(settings: ContainerSettings, ask_ams_version: AskAmsVersion | None) -> Container:
    path, properties = settings.implementation, dict(settings.properties)
    if amoro := _AMORO.get(path):
        container = _class(amoro)(settings.name, properties, ask_ams_version)
    elif path.startswith(_JAVA):
        raise ContainerError(f"no such class of Amoro is known; known are {', '.join(_AMORO)}")
    else:
        container = _class(path)(settings.name, properties)
    if missing := [member for member in _MEMBERS if not _has(container, member)]:
        raise ContainerError(f"it has no {' and no '.join(missing)}")
    return container


class Containers:
    """The containers of a configuration by name, each built when it is first asked for.

    One that can be built is kept. One that cannot is tried again when it is asked for again, since
    what it lacks (a folder, a client's configuration) may be there by then.
    """

    def __init__(
        self,
        settings: Mapping[str, ContainerSettings],
        ask_ams_version: AskAmsVersion | None = None,
    ) -> None:
        """Builds nothing yet."""
        self._settings: Final = dict(settings)
        self._ask_ams_version: Final = ask_ams_version
        self._lock: Final = Lock()
        self._built: Final[dict[str, Container]] = {}

    def get(self, name: str) -> Container:
        """The container of that name; a ContainerError if none can be built."""
        if name not in self._settings:
            if name == "external":  # what groups name whose optimizers people start by hand
                raise ContainerError(f"container {name!r}: what people start by hand is theirs")
            names = ", ".join(map(repr, self._settings)) or "none"
            raise ContainerError(f"container {name!r} is not configured; there are: {names}")
        with self._lock:
            if name not in self._built:
                self._built[name] = self._build(self._settings[name])
            return self._built[name]

    def obstacle(self, name: str | None) -> str | None:
        """Why the orphans of a container cannot be restarted; None if they can.

        That it does not answer in time is no reason: its starts are tried, and fail, as many times
        as the policy has it.
        """
        if name is None:
            return "it names no container"
        try:
            container = self.get(name)
            if says_it_restarts(container, self._settings[name]):
                return None
        except OverdueError:
            return None
        except ContainerError as error:
            return str(error)
        return opts_out(name)

    def tend(self) -> None:
        """Nothing: a container of somebody else might hang."""

    def close(self) -> None:
        """Nothing: calls end by themselves."""

    def _build(self, settings: ContainerSettings) -> Container:
        return build_container(settings, self._ask_ams_version)


def opts_out(name: str) -> str:
    """Why the orphans of a container are left alone that does not support restarts."""
    return f"container {name!r} opts out of restarts"


def says_it_restarts(container: Container, settings: ContainerSettings) -> bool:
    """Whether a container supports restarts; a ContainerError where it does not say."""
    try:
        return bool(container.supports_auto_restart)
    except interruptions():
        raise
    except ContainerError:
        raise
    except BaseException as error:  # a user's code, as in build_container
        message = describe(error, Mask(settings.properties).hide)
        raise ContainerError(
            f"container {settings.name!r} does not say whether it restarts: {message}"
        ) from error


@dataclass
class DryRunContainer:
    """Starts and stops nothing."""

    real: Container  # the container that it stands for
    supports_auto_restart: bool  # if that one does

    def request_resource(self, resource: Resource) -> Mapping[str, str]:  # noqa: ARG002 - the protocol
        """Starts nothing; there is nothing to save either."""
        return {}

    def release_resource(self, resource: Resource) -> None:
        """Stops nothing."""

    def preview(self, resource: Resource) -> Preview:
        """How the real one would start it."""
        return preview(self.real, resource)

    def post_mortem(self, resource: Resource) -> PostMortem | None:
        """How the last worker of the real one ended: to ask changes nothing."""
        return calls.post_mortem(self.real, resource)

    @property
    def own(self) -> Container | None:
        """The real one itself, where its class is one of ours."""
        return getattr(self.real, "own", None)


@dataclass(frozen=True)
class DryRunContainers:
    """Containers by name, which are configured and start nothing."""

    containers: ContainerLookup  # the real ones

    def get(self, name: str) -> Container:
        """One that starts nothing; a ContainerError where the real one is none."""
        real = self.containers.get(name)
        return DryRunContainer(real, self.containers.obstacle(name) is None)

    def obstacle(self, name: str | None) -> str | None:
        """Why orphans of this container could not be restarted; None: they could."""
        return self.containers.obstacle(name)

    def tend(self) -> None:
        """Nothing, as with everything else."""

    def close(self) -> None:
        """Closes the real ones."""
        self.containers.close()


def _class(path: str) -> Callable[..., Container]:
    """What a class path names, or, without a dot in it, an entry point that was installed."""
    if "." not in path:
        return _installed(path)
    module, _, name = path.rpartition(".")
    if not module or not name:
        raise ValueError("a class is named as package.module.Class")
    found: Callable[..., Container] = getattr(importlib.import_module(module), name)
    return found


def _installed(name: str) -> Callable[..., Container]:
    installed = entry_points(group=ENTRY_POINTS)
    named = {entry.value: entry for entry in installed.select(name=name)}
    if not named:
        names = ", ".join(sorted(map(repr, installed.names))) or "none"
        raise ValueError(
            "a class is named as package.module.Class; names without a dot are those that are "
            f"installed as entry points in {ENTRY_POINTS}, which are: {names}"
        )
    if len(named) > 1:
        brought = " and ".join(sorted(map(_brought, named.values())))
        raise ValueError(f"it is ambiguous: {brought} have a container of this name")
    (entry,) = named.values()
    try:
        found: Callable[..., Container] = entry.load()
    except interruptions():
        raise
    except BaseException as error:
        why = f"{entry.value} of {_brought(entry)} cannot be imported: {describe(error)}"
        raise ContainerError(why) from error
    return found


def _brought(entry: EntryPoint) -> str:
    """Which distribution has an entry point."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"


def _has(container: Container, member: str) -> bool:
    try:
        found = getattr(container, member, None)
    except Exception:  # noqa: BLE001 - it is there; what it raises is looked at when it is used
        return True
    return found is not None if member == "supports_auto_restart" else callable(found)
