"""Which errors are there, and what happens after each?

Those that a worker can meet, and how an error becomes a text, are of the light client.
"""

from dagster_amoro_worker.errors import (
    ConfigError,
    KeeperError,
    StoreUnavailableError,
    describe,
    shorten,
)

__all__ = [
    "AmsUnavailableError",
    "ConfigError",
    "ContainerError",
    "KeeperError",
    "LeaseLostError",
    "OverdueError",
    "PropertiesError",
    "ReleaseFailedError",
    "StartFailedError",
    "StoreUnavailableError",
    "UnansweredCommitError",
    "UnknownTargetError",
    "describe",
    "shorten",
]


class UnansweredCommitError(StoreUnavailableError):
    """A store was to keep what was written and did not answer: nobody knows yet whether it did."""


class AmsUnavailableError(KeeperError):
    """AMS does not answer, or not as it should; nothing is decided before it does."""


class LeaseLostError(KeeperError):
    """Another deployment acts now, or may begin to at any moment; this one must not."""


class UnknownTargetError(KeeperError):
    """The group, resource or incident that was named is not there, or in no state for this."""


class PropertiesError(KeeperError):
    """A row's `properties` are not a JSON object of plain values; a person has to mend the row."""


class ContainerError(KeeperError):
    """A container could not do what it was asked to."""


class StartFailedError(ContainerError):
    """A resource could not be started; the attempt counts, and the next one follows."""


class ReleaseFailedError(ContainerError):
    """A resource may still be running, because it could not be stopped."""


class OverdueError(ContainerError):
    """A call of a container was not over in time, and was ended."""
