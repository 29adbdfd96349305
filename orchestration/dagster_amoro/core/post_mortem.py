"""How did a worker end, as far as its container can tell?"""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Final, NamedTuple

from dagster_amoro.core.errors import shorten
from dagster_amoro.core.formatting import duration
from dagster_amoro.core.texts import harmless, in_one_line

KILLED: Final = "killed"
OUT_OF_MEMORY: Final = "out of memory"
LOST_HOST: Final = "lost host"
NEVER_STARTED: Final = "never started"
FAILED: Final = "failed"  # an engine says no more in one word
FINISHED: Final = "finished"
UNKNOWN: Final = "unknown"
OTHER: Final = "other"

# What says little of the end itself, or depends on who asks: another host may know more.
_VAGUE: Final = (UNKNOWN, NEVER_STARTED, LOST_HOST)

# How Flink, Spark and YARN call the ends of what they ran.
_ENDS: Final = {
    "FAILED": FAILED,
    "ERROR": FAILED,
    "FINISHED": FINISHED,
    "SUCCEEDED": FINISHED,
    "KILLED": KILLED,
    "CANCELED": KILLED,
}

_WORDS: Final = {KILLED, OUT_OF_MEMORY, LOST_HOST, NEVER_STARTED, FAILED, FINISHED, UNKNOWN}
_EXIT: Final = re.compile("exit (?:[0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])")
_LONGEST_CAUSE: Final = 40  # characters
_LONGEST_TEXT: Final = 300
_LONGEST_LOG: Final = 2000
_LOOKED_AT: Final = 20_000


class PostMortem(NamedTuple):
    """What is known of the end of a worker."""

    cause: str  # a few words to count by: one of those above, `exit 3`, or a container's own
    text: str  # one sentence for people, without its full stop
    log: str = ""  # the last lines of what the worker said

    def cleaned(self, hide: Callable[[str], str]) -> "PostMortem":
        """Without secrets, as `hide` hides them, harmless to whoever shows it, and not too long."""
        # Far more is looked at than is kept, so that no part of a secret is left at an end.
        cause, text, log = (harmless(hide(str(part)[-_LOOKED_AT:])) for part in self)
        word = in_one_line(cause)
        word = word if len(word) <= _LONGEST_CAUSE else f"{word[: _LONGEST_CAUSE - 1]}…"
        return PostMortem(word, shorten(text, _LONGEST_TEXT), log[-_LONGEST_LOG:])


def tells_more(cause: str, than: str | None) -> bool:
    """Whether a cause that was found later takes the place of the one that is known.

    None: none is known.
    """
    if than is None:
        return True
    return (than in _VAGUE and cause not in _VAGUE) or (than == UNKNOWN != cause)


def class_of(cause: str | None) -> str:
    """The cause, of few that there are; a container may have any of its own, which are `OTHER`."""
    if cause is None:
        return UNKNOWN
    return cause if cause in _WORDS or _EXIT.fullmatch(cause) else OTHER


def by_state(what: str, state: str, why: str = "") -> PostMortem:
    """What an engine says of the end of what it ran: its last state, and why, in its own words."""
    first = why.partition("\n")[0]
    text = f"{what} is {state}{': ' if first else ''}{first}"
    return PostMortem(_ENDS.get(state, UNKNOWN), text, why)


def by_code(code: int, how: str, seconds: float, *, for_memory: bool = False) -> tuple[str, str]:
    """The cause and the sentence for a program's end.

    `code` is its exit code, or below zero the signal that killed it; `how` says this in words.
    """
    after = f"{duration(timedelta(seconds=seconds))} after its start"
    if code >= 0:
        return f"exit {code}", f"its last worker ended {how} {after}"
    if for_memory:
        return OUT_OF_MEMORY, f"its last worker was killed by the kernel, out of memory, {after}"
    return KILLED, f"its last worker was killed {how} {after}"
