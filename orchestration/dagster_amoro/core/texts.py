"""How does a text that others have a hand in go out, to a terminal, a log, a page or the ledger?

Ids, names, errors and the ends of logs are written by whoever can write a row or make a program
fail. So every text goes through `shown` at the place where it leaves us, and none acts there: it
moves no cursor, turns no letters around and forges no line.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

from dagster_amoro.core.secrets import hide_assigned

CONTINUED: Final = "  | "
"""How every line of a text begins but the first, so that none looks like a line of ours."""

_LINE_END: Final = re.compile(rf"\r?\n(?!{re.escape(CONTINUED)})")
_ANY_END: Final = re.compile(rf"\r?\n(?:{re.escape(CONTINUED)})?")
_ODD: Final = re.compile(r"[^\n\x20-\x7e]")
_FENCE: Final = re.compile("`+")
_SIGN_OF_MARKDOWN: Final = re.compile(r"[!-/:-@\[-`{-~]")


class Shown(str):
    """A text that can go out as it is."""

    __slots__ = ()


def shown(text: str) -> Shown:
    """The text without what looks like a secret, and harmless."""
    return text if isinstance(text, Shown) else _shown(text)


@lru_cache(maxsize=256)  # a tick says the same of thousands
def _shown(text: str) -> Shown:
    return Shown(harmless(hide_assigned(text)))


def shown_lines(lines: Iterable[str]) -> Shown:
    """Lines of ours, in each of which others may have a hand."""
    return Shown("\n".join(map(shown, lines)))


def shown_json(value: object, **options: Any) -> Shown:  # noqa: ANN401 - those of json.dumps
    """A value as JSON text, which holds what it held, but for secrets."""
    return Shown(harmless_json(_hidden(value), **options))


def harmless_json(value: object, **options: Any) -> str:  # noqa: ANN401 - as above
    """A value as JSON text, with what could act on whoever shows it escaped."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return _without_odd(text, lambda character: json.dumps(character)[1:-1])


def _hidden(value: object) -> object:
    if isinstance(value, str):
        return hide_assigned(value)
    if isinstance(value, Mapping):
        return {key: _hidden(each) for key, each in value.items()}
    return list(map(_hidden, value)) if isinstance(value, (list, tuple)) else value


def harmless(text: str) -> str:
    r"""The text, unable to act on what shows it; what is harmless already stays as it is.

    Whatever is no letter, mark, number, sign or blank is written as Python would, `\x1b`: escape
    sequences, marks that turn the direction of writing, halves of characters. A tab is four
    blanks, and a line that is not the first begins with `CONTINUED`.
    """
    if text.isprintable() or isinstance(text, Shown):
        return text
    lines = _LINE_END.sub(f"\n{CONTINUED}", text.rstrip("\r\n").replace("\t", "    "))
    return _without_odd(lines, lambda character: character.encode("unicode_escape").decode())


def in_one_line(text: str) -> str:
    r"""The text as `shown` has it, but its ends of lines as `\n`: for a cell or a tag."""
    return harmless(_ANY_END.sub(r"\\n", hide_assigned(text)))


def fenced(text: str) -> str:
    """Markdown that shows a text as it is; the text cannot end the block that it is in."""
    longest = max(map(len, _FENCE.findall(text)), default=0)
    fence = "`" * max(longest + 1, 3)
    return f"{fence}\n{text}\n{fence}"


def in_markdown(text: str) -> str:
    """Markdown that shows a text in one line as it is; no sign in it means anything."""
    return _SIGN_OF_MARKDOWN.sub(r"\\\g<0>", in_one_line(text))


def is_inert(character: str) -> bool:
    """Whether a character does nothing but to be seen, or to leave a gap."""
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _without_odd(text: str, escaped: Callable[[str], str]) -> str:
    return _ODD.sub(lambda odd: odd[0] if is_inert(odd[0]) else escaped(odd[0]), text)
