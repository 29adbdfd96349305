"""The worker's side of a fleet that dagster-amoro keeps alive: says that a worker is alive.

It brings neither Dagster nor SQLAlchemy, so that it fits into any worker's image. In an environment
that has `dagster_amoro`, the same names are there, too.
"""

from dagster_amoro_worker.errors import ConfigError, KeeperError, StoreUnavailableError
from dagster_amoro_worker.heartbeat import Heartbeat

__version__: str
__all__ = ["ConfigError", "Heartbeat", "KeeperError", "StoreUnavailableError", "__version__"]


def __getattr__(name: str) -> object:
    """The version, which is slow to find and seldom asked for."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    from importlib.metadata import version  # noqa: PLC0415 - see above

    return version("dagster-amoro-worker")
