"""What must not be shown: which properties are secrets, and how texts are rid of them."""

import re
from collections.abc import Iterable, Mapping
from typing import Final

HIDDEN: Final = "***"

_WORDS: Final = (
    *("password", "passwd", "pwd", "secret", "token", "credential", "passphrase"),
    *("apikey", "accesskey", "accountkey", "privatekey", "jaas", "signature"),
)
_SEPARATORS: Final = re.compile(r"[\W_]+")
_NAME: Final = (
    r"[\w.\-]*(?:" + "|".join(re.sub("(key)", r"[\\W_]?\1", word) for word in _WORDS) + r")[\w.\-]*"
)
# name=value and name: value, as options, Java properties, JSON and URLs have them.
_ASSIGNED: Final = re.compile(
    rf"""({_NAME}["']?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|'[^']*'|[^\s"',;&]+)""", re.IGNORECASE
)
_IN_URL: Final = re.compile(r"(//[^/\s:@]*:)[^\s@]*(?=@)")
_SHORTEST: Final = 4  # characters; shorter values stand in too many places by chance
_COMMON: Final = frozenset({"true", "false", "none", "null"})


def is_secret(name: str) -> bool:
    """Whether a property, option or variable of this name may hold a secret."""
    bare = _SEPARATORS.sub("", name).lower()
    return any(word in bare for word in _WORDS)


def without_secrets(properties: Mapping[str, str]) -> dict[str, str]:
    """The properties, the values of secrets hidden."""
    return {
        key: HIDDEN if is_secret(key) else hide_assigned(value) for key, value in properties.items()
    }


def hide_assigned(text: str) -> str:
    """The text without what follows `password=`, `secret: ` and the like."""
    return _IN_URL.sub(rf"\1{HIDDEN}", _ASSIGNED.sub(rf"\1{HIDDEN}", text))


class Mask:
    """Hides the secrets among some properties, wherever a text repeats them."""

    def __init__(self, *properties: Mapping[str, str]) -> None:
        """Knows the values of all `properties` whose names look like secrets."""
        found = {value for each in properties for value in _secrets(each)}
        longest_first = sorted(found, key=len, reverse=True)
        self._values: Final = (
            re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        )

    def hide(self, text: str) -> str:
        """The text with its secrets replaced by `***`."""
        if self._values is not None:
            text = self._values.sub(HIDDEN, text)
        return hide_assigned(text)

    def hide_each(self, texts: Iterable[str]) -> list[str]:
        """The same for several texts."""
        return [self.hide(text) for text in texts]


def _secrets(properties: Mapping[str, str]) -> Iterable[str]:
    return (
        value
        for key, value in properties.items()
        if is_secret(key) and len(value) >= _SHORTEST and value.lower() not in _COMMON
    )
