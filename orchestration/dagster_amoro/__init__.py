"""Keeps fleets of workers alive from Dagster: Apache Amoro's optimizers, or your own.

What `__all__` lists, and `dagster_amoro.testing`, is the public API. Everything else in this
package is private: it may change or go in any release.

Each name is imported when it is first used, so that a worker that only needs `Heartbeat` loads
neither Dagster nor pandas.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from dagster_amoro.asset_keys import Translation
    from dagster_amoro.code_location import build_alert_sensor, build_definitions
    from dagster_amoro.component import KeeperComponent
    from dagster_amoro.config import Settings, load_settings
    from dagster_amoro.containers.base import Container
    from dagster_amoro.containers.command.container import CommandContainer
    from dagster_amoro.containers.kubernetes.container import PodContainer
    from dagster_amoro.core.alerts import Alert
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
        UnansweredCommitError,
        UnknownTargetError,
    )
    from dagster_amoro.core.model import Resource
    from dagster_amoro.core.post_mortem import PostMortem
    from dagster_amoro.healing.fleet import declare, declare_group, scale_in, scale_out
    from dagster_amoro.worker import Heartbeat

    __version__: str

__all__ = [
    "Alert",
    "AmsUnavailableError",
    "CommandContainer",
    "ConfigError",
    "Container",
    "ContainerError",
    "Heartbeat",
    "KeeperComponent",
    "KeeperError",
    "LeaseLostError",
    "OverdueError",
    "PodContainer",
    "PostMortem",
    "PropertiesError",
    "ReleaseFailedError",
    "Resource",
    "Settings",
    "StartFailedError",
    "StoreUnavailableError",
    "Translation",
    "UnansweredCommitError",
    "UnknownTargetError",
    "__version__",
    "build_alert_sensor",
    "build_definitions",
    "declare",
    "declare_group",
    "load_settings",
    "scale_in",
    "scale_out",
]

_HOMES: Final = {  # of the public names; errors are in `core.errors`
    **dict.fromkeys(("Settings", "load_settings"), "config"),
    **dict.fromkeys(("declare", "declare_group", "scale_in", "scale_out"), "healing.fleet"),
    "Alert": "core.alerts",
    "CommandContainer": "containers.command.container",
    "Container": "containers.base",
    "Heartbeat": "worker",
    "KeeperComponent": "component",
    "PodContainer": "containers.kubernetes.container",
    "PostMortem": "core.post_mortem",
    "Resource": "core.model",
    "Translation": "asset_keys",
    "build_alert_sensor": "code_location",
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
