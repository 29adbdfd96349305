"""What a container of ours was given as its properties, and which of them is wrong, and how."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.errors import ConfigError, shorten
from dagster_amoro.core.values import parse_duration

_T = TypeVar("_T")
DURATIONS: Final = "a whole number with a unit, such as 500ms, 10s or 1min"


@dataclass(frozen=True, slots=True)
class Given:
    """The properties as they were given; each error names container and property."""

    container: str
    implementation: str  # its class, as `container-impl` has it
    properties: Mapping[str, str]

    def check_keys(self, keys: Sequence[str], prefix: str = "") -> None:
        """A ConfigError says that a property is none of these, nor begins with the prefix."""
        accepted = [*keys, *([prefix] if prefix else ())]
        for key in self.properties:
            if key not in keys and not (prefix and key.startswith(prefix)):
                near = difflib.get_close_matches(key, accepted, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ";"
                others = f" and {prefix}NAME" if prefix else ""
                raise ConfigError(  # without its value, which may be a secret
                    f"container {self.container!r}: unknown property {key!r}{hint} "
                    f"accepted are {', '.join(keys)}{others}"
                )

    def read(self, key: str, default: str | None, parse: Callable[[str], _T], accepted: str) -> _T:
        """The value of a property; a ConfigError says that it is missing or not accepted."""
        value = self.properties.get(key, default)
        if value is None:
            raise self.error(key, f" is missing; it is {accepted}")
        try:
            return parse(value)
        except (ValueError, TypeError, RuntimeError) as error:
            shown = shorten(repr(value), 300)
            raise self.error(key, f" is {shown}: {error}; accepted is {accepted}") from error

    def check_below(self, key: str, given: float, timeout: str) -> None:
        """A part of a call ends before the call does, which would be ended in the middle."""
        settings = ContainerSettings(
            name="", implementation=self.implementation, properties=self.properties
        )
        limit = getattr(settings.limits, timeout.replace("-", "_"))
        if given >= limit.total_seconds():
            flaw = f"not less than {timeout}, which is {limit.total_seconds():g} s"
            value = self.properties.get(key, f"{given:g} s")
            raise self.error(key, f" is {value!r}: {flaw}; accepted is less than that")

    def error(self, key: str, problem: str) -> ConfigError:
        """The error of a property."""
        return ConfigError(f"container {self.container!r}: property {key!r}{problem}")


def seconds(text: str) -> float:
    """A duration; a ValueError says that it is none."""
    try:
        return parse_duration(text).total_seconds()
    except ValueError as error:
        raise ValueError("not a duration") from error
