"""How are durations, switches and names read that a configuration or a container's property has?"""

import re
from typing import Final

from dagster_amoro_worker.durations import DURATION_ACCEPTS, parse_duration

__all__ = [
    "DURATION_ACCEPTS",
    "NAME_ACCEPTS",
    "NAME_PATTERN",
    "parse_duration",
    "parse_keeper_name",
    "parse_switch",
]
NAME_ACCEPTS: Final = "a letter, then letters, digits and underscores, 40 at most; or nothing"
NAME_PATTERN: Final = "([A-Za-z][A-Za-z0-9_]{0,39})?"
"""Of a keeper's name, as a regular expression: what Dagster takes in the names of jobs."""


def parse_keeper_name(value: object) -> str:
    """What a keeper is called; a ValueError says that nothing in Dagster can be called so."""
    if not isinstance(value, str) or not re.fullmatch(NAME_PATTERN, value):
        raise ValueError(f"accepted is {NAME_ACCEPTS}")
    return value


def parse_switch(value: object) -> bool:
    """True or false, in any case."""
    switch = {"true": True, "false": False}.get(str(value).lower())
    if switch is None:
        raise ValueError("neither true nor false")
    return switch
