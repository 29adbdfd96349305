"""What is a container built from, how long may its calls take, and how many at once?"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from dagster_amoro.core.values import DURATION_ACCEPTS, parse_duration

TIMEOUTS: Final = ("start-timeout", "stop-timeout", "status-timeout")
CONCURRENCY: Final = "max-concurrent-starts"
CALL_PROPERTIES: Final = (*TIMEOUTS, CONCURRENCY)
"""Properties that every container may have; they say how it is called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallLimits:
    """How long a call of a container may take in all, and how many of its starts run at once."""

    start_timeout: timedelta = timedelta(minutes=5)
    stop_timeout: timedelta = timedelta(minutes=2)
    status_timeout: timedelta = timedelta(seconds=10)
    max_concurrent_starts: int | None = None  # in one run; None: keeper.max-concurrent-starts

    @property
    def longest_restart(self) -> timedelta:
        """How long a restart may take: a stop of what is left, then the start."""
        return self.stop_timeout + self.start_timeout


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerSettings:
    """One entry of `containers:`."""

    name: str  # what `resource.container_name` refers to
    # Amoro's Java class name, `package.module.Class`, or the name of an installed container; not
    # imported here.
    implementation: str
    # As texts, in the form that Java gives them; a list is a JSON array of texts. Not in the
    # repr, since properties such as `export.AWS_SECRET_ACCESS_KEY` are secrets.
    # With those that AMS adds itself, where a running AMS is attached to.
    properties: Mapping[str, str] = field(repr=False)

    @property
    def limits(self) -> CallLimits:
        """The limits of its calls: its own where it has some, else those of its kind.

        Raises:
            ValueError: A property of it cannot be used; `parse_limit` says the same beforehand.
        """
        kind = self.implementation.rpartition(".")[2].removesuffix("OptimizerContainer")
        own = {key: parse_limit(key, self.properties[key]) for key in self._own_limits()}
        return replace(
            _KINDS.get(kind, CallLimits()),
            **{key.replace("-", "_"): value for key, value in own.items()},  # type: ignore[arg-type]
        )

    def _own_limits(self) -> list[str]:
        return [key for key in CALL_PROPERTIES if key in self.properties]


def parse_limit(key: str, text: str) -> timedelta | int:
    """The value of one of the `CALL_PROPERTIES`.

    Raises:
        ValueError: It is not accepted; the message is what would be.
    """
    if key == CONCURRENCY:
        if text.isascii() and text.isdigit() and int(text) > 0:
            return int(text)
        raise ValueError("a whole number from 1 on")
    try:
        found = parse_duration(text)
    except ValueError:
        found = timedelta(0)
    if not timedelta(0) < found <= _LONGEST:
        raise ValueError(f"{DURATION_ACCEPTS}, more than 0 and up to 1 d")
    return found


_LONGEST: Final = timedelta(days=1)
_MINUTE: Final = timedelta(minutes=1)
# A client of Flink or Spark is a JVM of its own, which may wait ten minutes for its cluster.
_CLIENT: Final = CallLimits(
    start_timeout=11 * _MINUTE,
    stop_timeout=5 * _MINUTE,
    status_timeout=_MINUTE,
    max_concurrent_starts=4,
)
_KINDS: Final = {
    "CommandContainer": CallLimits(start_timeout=_MINUTE, stop_timeout=_MINUTE),
    "Local": CallLimits(start_timeout=3 * _MINUTE, stop_timeout=_MINUTE),
    "Kubernetes": CallLimits(start_timeout=2 * _MINUTE),
    "Flink": _CLIENT,
    "Spark": _CLIENT,
}
