"""How does a text that others have a hand in go out, to a terminal, a log, a page or the ledger?

Ids, names, errors and the ends of logs are written by whoever can write a row or make a program
fail. So every text goes through `shown` at the place where it leaves us, and none acts there: it
moves no cursor, turns no letters around and forges no line.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Final

from dagster_amoro_worker.secrets import hide_assigned

CONTINUED: Final = "  | "
"""How every line of a text begins but the first, so that none looks like a line of ours."""

_LINE_END: Final = re.compile(rf"\r?\n(?!{re.escape(CONTINUED)})")
_ODD: Final = re.compile(r"[^\n\x20-\x7e]")


class Shown(str):
    """A text that can go out as it is."""

    __slots__ = ()


def shown(text: str) -> Shown:
    """The text without what looks like a secret, and harmless."""
    return text if isinstance(text, Shown) else _shown(text)


@lru_cache(maxsize=256)  # a tick says the same of thousands
def _shown(text: str) -> Shown:
    return Shown(harmless(hide_assigned(text)))


def harmless(text: str) -> str:
    r"""The text, unable to act on what shows it; what is harmless already stays as it is.

    Whatever is no letter, mark, number, sign or blank is written as Python would, `\x1b`: escape
    sequences, marks that turn the direction of writing, halves of characters. A tab is four
    blanks, and a line that is not the first begins with `CONTINUED`.
    """
    if text.isprintable() or isinstance(text, Shown):
        return text
    lines = _LINE_END.sub(f"\n{CONTINUED}", text.rstrip("\r\n").replace("\t", "    "))
    return without_odd(lines, lambda character: character.encode("unicode_escape").decode())


def is_inert(character: str) -> bool:
    """Whether a character does nothing but to be seen, or to leave a gap."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def without_odd(text: str, escaped: Callable[[str], str]) -> str:
    """The text with each character escaped that could do something."""
    return _ODD.sub(lambda odd: odd[0] if is_inert(odd[0]) else escaped(odd[0]), text)
