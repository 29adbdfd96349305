"""How does a text that others have a hand in go out, to a terminal, a log, a page or the ledger?

Ids, names, errors and the ends of logs are written by whoever can write a row or make a program
fail. So every text goes through `shown` at the place where it leaves us, and none acts there: it
moves no cursor, turns no letters around and forges no line. How, the light client says.
"""

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from dagster_amoro_worker.secrets import hide_assigned
from dagster_amoro_worker.texts import CONTINUED, Shown, harmless, is_inert, shown, without_odd

__all__ = [
    "CONTINUED",
    "Shown",
    "fenced",
    "harmless",
    "harmless_json",
    "in_markdown",
    "in_one_line",
    "is_inert",
    "shown",
    "shown_json",
    "shown_lines",
]
_ANY_END: Final = re.compile(rf"\r?\n(?:{re.escape(CONTINUED)})?")
_FENCE: Final = re.compile("`+")
_SIGN_OF_MARKDOWN: Final = re.compile(r"[!-/:-@\[-`{-~]")


def shown_lines(lines: Iterable[str]) -> Shown:
    """Lines of ours, in each of which others may have a hand."""
    return Shown("\n".join(map(shown, lines)))


def shown_json(value: object, **options: Any) -> Shown:  # noqa: ANN401 - those of json.dumps
    """A value as JSON text, which holds what it held, but for secrets."""
    return Shown(harmless_json(_hidden(value), **options))


def harmless_json(value: object, **options: Any) -> str:  # noqa: ANN401 - as above
    """A value as JSON text, with what could act on whoever shows it escaped."""
    text = json.dumps(value, ensure_ascii=False, **options)
    return without_odd(text, lambda character: json.dumps(character)[1:-1])


def _hidden(value: object) -> object:
    if isinstance(value, str):
        return hide_assigned(value)
    if isinstance(value, Mapping):
        return {key: _hidden(each) for key, each in value.items()}
    return list(map(_hidden, value)) if isinstance(value, (list, tuple)) else value


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
