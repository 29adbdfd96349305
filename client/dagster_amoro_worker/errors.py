"""Which errors are there, and what happens after each?"""

from collections.abc import Callable
from typing import Final

from dagster_amoro_worker.secrets import hide_assigned
from dagster_amoro_worker.texts import Shown, harmless

_LONGEST_MESSAGE: Final = 4000  # characters; longer texts are cut in the middle
_LOOKED_AT: Final = 64 * 1024  # characters at each end that are freed of secrets before that


class KeeperError(Exception):
    """Base of all errors that dagster-amoro raises on purpose."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(harmless(message or (type(self).__doc__ or "").partition("\n")[0]))


class ConfigError(KeeperError):
    """The configuration cannot be used; nothing runs until it is put right."""


class StoreUnavailableError(KeeperError):
    """Registry or ledger did not answer, or not in time; the next look may succeed."""


def describe(error: BaseException, hide: Callable[[str], str] = hide_assigned) -> Shown:
    """An error as a text that can go out, never failing itself.

    Ours speak for themselves; a foreign one is prefixed with its type, since its text alone
    ("'name'") often says nothing. Secrets are hidden by `hide`, before anything is cut off.
    """
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        text = "(its text cannot be shown)"
    if not isinstance(error, KeeperError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    elif isinstance(error.args[0], Shown):  # lines of ours
        return Shown(shorten("\n".join(harmless(hide(line)) for line in text.split("\n"))))
    missing = max(len(text) - 2 * _LOOKED_AT, 0)
    looked_at = f"{text[:_LOOKED_AT]}{text[-_LOOKED_AT:]}" if missing else text
    return Shown(shorten(harmless(hide(looked_at)), missing=missing))


def shorten(text: str, limit: int = _LONGEST_MESSAGE, *, missing: int = 0) -> str:
    """The text, cut in its middle where it is longer than `limit` characters.

    It says how many are left out; so many more are `missing` in its middle already.
    """
    if len(text) <= limit:
        return text
    half = (limit - 40) // 2
    left_out = f"… {len(text) - 2 * half + missing} characters left out …"
    return f"{text[:half]}\n{left_out}\n{text[-half:]}"
