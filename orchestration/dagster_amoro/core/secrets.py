"""Which properties are secrets, and how are they hidden in texts?

`Mask` hides the known ones, however a text writes them, `hide_assigned` what looks like one. Both
take time in proportion to the text, whatever it holds: texts are the output of failing programs.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote, quote_plus

HIDDEN: Final = "***"

_WORDS: Final = (
    *("password", "passwd", "pwd", "secret", "token", "credential", "passphrase"),
    *("apikey", "accesskey", "accountkey", "privatekey", "jaas", "signature"),
)
_SEPARATORS: Final = re.compile(r"[\W_]+")
# A name and what stands between it and its value, as options, properties, JSON, also within JSON,
# and URLs have them. Of names without `=` or `:` only options (`--password x`) have a value.
_NAME: Final = re.compile(
    r"""(?<![\w.\-]) (?P<name> [\w.\-]++ (?:\ key\b)?+ )
        (?P<between> (?:\\*+["'])?+ (?: \s*+[=:][^\S\n]*+ | ,?\s++ ) )""",
    re.VERBOSE | re.IGNORECASE,
)
_VALUE: Final = re.compile(
    r"""  "(?:[^"\\]|\\.)*+"                             # as JSON has it
        | '[^']*+'
        | (?P<quote>\\{1,3}+["']) .{0,8192}? (?P=quote)  # as JSON within JSON has it
        | \\*+["'] [^\n]*+                               # quoted, and cut off
        | (?:[^\s"',;&]|["'](?![\s,;&:)\]}]|\Z))++       # bare, until what can follow a value
    """,
    re.VERBOSE | re.DOTALL,
)
_IN_URL: Final = re.compile(r"(//[^/\s:@]{0,256}+:)(?!\d{1,5}/)[^\s@]{1,1024}+(?=@)")
_IN_HEADER: Final = re.compile(r"\b((?:bearer|basic)\s++)[\w.~+/=\-]{16,}+", re.IGNORECASE)
_SHORTEST: Final = 4  # characters; shorter values stand in too many places by chance
_COMMON: Final = frozenset({"true", "false", "none", "null", "yes", "no"})


def is_secret(name: str) -> bool:
    """Whether a property, option or variable of this name may hold a secret."""
    bare = _SEPARATORS.sub("", name).lower()
    return any(word in bare for word in _WORDS)


def without_secrets(properties: Mapping[str, str]) -> dict[str, str]:
    """The properties, the values of secrets hidden."""
    mask = Mask(properties)
    return {key: HIDDEN if is_secret(key) else mask.hide(text) for key, text in properties.items()}


def hide_assigned(text: str) -> str:
    """The text without what follows `password=`, `secret: `, `--token ` and the like."""
    pieces, end = [], 0
    for begin, stop in _assigned(text):
        pieces += [text[end:begin], HIDDEN]
        end = stop
    shown = "".join([*pieces, text[end:]])
    return _IN_HEADER.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}", shown))


class Mask:
    """Hides the secrets among some properties, wherever a text repeats them."""

    def __init__(self, *properties: Mapping[str, str]) -> None:
        """Learns the values of properties that are secrets by their names.

        And what other values assign to such names, as `-Dpassword=…` does in Java's options.
        """
        found = {form for each in properties for value in _secrets(each) for form in _forms(value)}
        longest_first = sorted(found, key=len, reverse=True)
        self._values: Final = (
            re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        )

    def hide(self, text: str) -> str:
        """The text with its secrets replaced by `***`."""
        return self._hide_values(hide_assigned(self._hide_values(text)))

    def _hide_values(self, text: str) -> str:
        # What is left can be a secret again, where one has asterisks; each round is shorter.
        while self._values is not None and self._values.search(text):
            text = self._values.sub(HIDDEN, text)
        return text


def _assigned(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of secrets begin and end."""
    end = 0
    for found in _NAME.finditer(text):
        name, between = found["name"], found["between"]
        takes_value = name.startswith("-") or "=" in between or ":" in between
        if found.start() < end or not (takes_value and is_secret(name)):
            continue
        value = _VALUE.match(text, found.end())
        if value and value[0].strip("\"'()[]{}.").lower() not in _COMMON:
            end = value.end()
            yield value.start(), end


def _secrets(properties: Mapping[str, str]) -> Iterator[str]:
    for key, value in properties.items():
        if is_secret(key):
            yield value
        else:
            yield from (value[begin:stop].strip("\"'") for begin, stop in _assigned(value))


def _forms(value: str) -> Iterator[str]:
    """The value as programs write it: as it is, and escaped for JSON, Python or a URL."""
    bare = value.strip()
    if len(bare) < _SHORTEST or bare.lower() in _COMMON:
        return
    yield from (value, bare, repr(bare)[1:-1], json.dumps(bare)[1:-1])
    yield json.dumps(bare, ensure_ascii=False)[1:-1]
    if bare.isprintable():  # half a character cannot be encoded
        yield from (quote(bare), quote(bare, safe=""), quote_plus(bare))
