"""How are durations, switches and names read that a configuration or a container's property has?"""

import re
from datetime import timedelta
from typing import Final

from dagster_amoro.core.groups import nanoseconds

DURATION_ACCEPTS: Final = (
    "a whole number with one of the units d, h, min, s, ms, \u00b5s or ns, "
    "or without a unit for milliseconds"
)
NAME_ACCEPTS: Final = "a letter, then letters, digits and underscores, 40 at most; or nothing"
NAME_PATTERN: Final = "([A-Za-z][A-Za-z0-9_]{0,39})?"
"""Of a keeper's name, as a regular expression: what Dagster takes in the names of jobs."""


def parse_keeper_name(value: object) -> str:
    """What a keeper is called; a ValueError says that nothing in Dagster can be called so."""
    if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value):
        raise ValueError(f"accepted is {NAME_ACCEPTS}")
    return value


def parse_duration(value: object) -> timedelta:
    """A duration as Amoro writes it: `5min`, `30 s`, or a bare number of milliseconds.

    What is finer than a microsecond is cut off.

    Raises:
        ValueError: It is something else, or too long; the message says what is accepted.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    try:
        return timedelta(microseconds=nanoseconds(text if isinstance(text, str) else "") // 1000)
    except OverflowError:
        raise ValueError(f"that is too long; accepted is {DURATION_ACCEPTS}") from None
    except ValueError:
        raise ValueError(f"accepted is {DURATION_ACCEPTS}") from None


def parse_switch(value: object) -> bool:
    """True or false, in any case."""
    switch = {"true": True, "false": False}.get(str(value).lower())
    if switch is None:
        raise ValueError("neither true nor false")
    return switch
