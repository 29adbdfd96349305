"""Which properties are secrets, and how are the known ones hidden in texts?

`Mask` hides them, however a text writes them, and `hide_assigned` what looks like one. Both
take time in proportion to the text, whatever it holds: texts are the output of failing programs.
"""

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import accumulate, repeat
from typing import Final
from urllib.parse import quote, quote_plus

from dagster_amoro_worker.secrets import COMMON, HIDDEN, assigned, hide_assigned, is_secret

__all__ = ["HIDDEN", "Mask", "hide_assigned", "is_secret", "without_secrets"]

_SHORTEST: Final = 4  # characters; shorter values stand in too many places by chance
_SHORTEST_PIECE: Final = 6  # of what is within base64
_LONGEST_BROKEN: Final = 300  # characters of what is looked for across ends of lines
_BREAK: Final = r"(?:(?:(?:\\r)?\\n|\\?\r?\n)[ \t|>]{0,9})?"
_HAS_BREAK: Final = re.compile(r"\n|\\n")
_ESCAPES: Final[tuple[Mapping[str, str], ...]] = (
    {"'": "&#x27;", '"': "&quot;"},
    {"'": "&apos;", '"': "&quot;"},
    {"'": "&#39;", '"': "&#34;"},
    {},
)


def without_secrets(properties: Mapping[str, str]) -> dict[str, str]:
    """The properties, the values of secrets hidden."""
    mask = Mask(properties)
    return {key: HIDDEN if is_secret(key) else mask.hide(text) for key, text in properties.items()}


def named_values(document: object) -> Iterator[Mapping[str, str]]:
    """What a document has as `name` and `value` side by side, as pods have their variables."""
    if isinstance(document, Mapping):
        name, value = document.get("name"), document.get("value")
        if isinstance(name, str) and isinstance(value, str | int | float):
            yield {name: str(value)}
        document = list(document.values())
    if isinstance(document, list):
        for each in document:
            yield from named_values(each)


class Mask:
    """Hides the secrets among some properties, wherever a text repeats them."""

    def __init__(self, *properties: Mapping[str, str]) -> None:
        """Learns the values of properties that are secrets by their names.

        And what other values assign to such names, as `-Dpassword=…` does in Java's options.
        """
        found = {form for each in properties for value in _secrets(each) for form in _forms(value)}
        self._forms: Final = sorted(found, key=len, reverse=True)  # the longest first

    @cached_property
    def _whole(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, self._forms)))

    @cached_property
    def _broken(self) -> re.Pattern[str]:
        """The same, with an end of a line wherever one can be."""
        forms = (form for form in self._forms if len(form) <= _LONGEST_BROKEN)
        return re.compile("|".join(_BREAK.join(map(re.escape, form)) for form in forms) or r"(?!)")

    def hide(self, text: str) -> str:
        """The text with its secrets replaced by `***`."""
        return self._hide_values(hide_assigned(self._hide_values(text)))

    def _hide_values(self, text: str) -> str:
        if not self._forms:
            return text
        patterns = [self._whole, self._broken] if _HAS_BREAK.search(text) else [self._whole]
        # What is left can be a secret again, where one has asterisks; each round is shorter.
        while any(pattern.search(text) for pattern in patterns):
            for pattern in patterns:
                text = pattern.sub(HIDDEN, text)
        return text


def _secrets(properties: Mapping[str, str]) -> Iterator[str]:
    for key, value in properties.items():
        if is_secret(key):
            yield value
            yield from value.splitlines()  # of a private key, each line is one
        else:
            yield from (value[begin:stop].strip("\"'") for begin, stop in assigned(value))


def _forms(value: str) -> Iterator[str]:
    """The value as programs write it: as it is, and as JSON, Python, URLs, XML or base64 do."""
    bare = value.strip()
    if len(bare) < _SHORTEST or bare.lower() in COMMON:
        return
    yield from (value, bare, repr(bare)[1:-1])
    yield from accumulate(repeat(bare, 4), lambda text, _: json.dumps(text)[1:-1])
    yield from accumulate(
        repeat(bare, 4), lambda text, _: json.dumps(text, ensure_ascii=False)[1:-1]
    )
    if bare.isprintable():  # half a character cannot be encoded
        for form in (quote(bare), quote(bare, safe=""), quote_plus(bare)):
            yield from (form, re.sub("%..", lambda code: code[0].lower(), form))
        for text in {bare, json.dumps(bare)[1:-1]}:
            yield from _encoded(text.encode())
    for quotes in _ESCAPES:
        yield _escaped(bare, quotes)


def _escaped(text: str, quotes: Mapping[str, str]) -> str:
    """The text as HTML or XML have it."""
    return html.escape(text, quote=False).translate({ord(each): quotes[each] for each in quotes})


def _encoded(value: bytes) -> Iterator[str]:
    """In base64, by itself and wherever it stands in what was encoded, and in hexadecimal."""
    yield from (value.hex(), value.hex().upper())
    for shift in range(3):
        encoded = base64.b64encode(bytes(shift) + value).decode()
        begin, end = (0, 2, 3)[shift], (shift + len(value)) * 8 // 6  # what nothing beside changes
        for piece in {encoded[begin:end], *([encoded] if not shift else [])}:
            if len(piece) >= _SHORTEST_PIECE:
                yield from (piece, piece.replace("+", "-").replace("/", "_"))
