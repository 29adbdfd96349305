"""Keeps fleets of workers alive from Dagster: Apache Amoro's optimizers, or your own.

What `__all__` lists, and `dagster_amoro.testing`, is the public API. Everything else in this
package is private: it may change or go in any release.

Each name is imported when it is first used, so that a worker that only needs `Heartbeat` loads
neither Dagster nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dagster_amoro.code_location import build_definitions
    from dagster_amoro.config import Settings, load_settings
    from dagster_amoro.containers.base import Container
    from dagster_amoro.containers.command.container import CommandContainer
    from dagster_amoro.core.errors import (
        AmsUnavailableError,
        ConfigError,
        ContainerError,
        KeeperError,
        LeaseLostError,
        OverdueError,
        PropertiesError,
        ReleaseFailedError,
        StartFailedError,
        StoreUnavailableError,
        UnknownTargetError,
    )
    from dagster_amoro.core.model import Resource
    from dagster_amoro.healing.fleet import declare, declare_group, scale_out
    from dagster_amoro.worker import Heartbeat

    __version__: str

__all__ = [
    "AmsUnavailableError",
    "CommandContainer",
    "ConfigError",
    "Container",
    "ContainerError",
    "Heartbeat",
    "KeeperError",
    "LeaseLostError",
    "OverdueError",
    "PropertiesError",
    "ReleaseFailedError",
    "Resource",
    "Settings",
    "StartFailedError",
    "StoreUnavailableError",
    "UnknownTargetError",
    "__version__",
    "build_definitions",
    "declare",
    "declare_group",
    "load_settings",
    "scale_out",
]

_HOMES: Final = {  # of the public names; errors are in `core.errors`
    **dict.fromkeys(("Settings", "load_settings"), "config"),
    **dict.fromkeys(("declare", "declare_group", "scale_out"), "healing.fleet"),
    "CommandContainer": "containers.command.container",
    "Container": "containers.base",
    "Heartbeat": "worker",
    "Resource": "core.model",
    "build_definitions": "code_location",
}


def __getattr__(name: str) -> object:
    """A public name, imported when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - slow, and seldom asked for

        found: object = version("dagster-amoro")
    else:
        found = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'core.errors')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """The public names, imported already or not."""
    return sorted({*globals(), *__all__})
