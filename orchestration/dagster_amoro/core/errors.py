"""Which errors are there, and what happens after each?"""

from typing import Final

_LONGEST_MESSAGE: Final = 4000  # characters; longer texts are cut in the middle


class KeeperError(Exception):
    """Base of all errors that dagster-amoro raises on purpose."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").partition("\n")[0])


class ConfigError(KeeperError):
    """The configuration cannot be used; nothing runs until it is put right."""


class StoreUnavailableError(KeeperError):
    """Registry or ledger did not answer, or not in time; the next look may succeed."""


class AmsUnavailableError(KeeperError):
    """AMS does not answer, or not as it should; nothing is decided before it does."""


class LeaseLostError(KeeperError):
    """Another deployment acts now, or may begin to at any moment; this one must not."""


class UnknownTargetError(KeeperError):
    """The group, resource or incident that was named is not there, or in no state for this."""


class PropertiesError(KeeperError):
    """A row's `properties` are not a JSON object of plain values; a person has to mend the row."""


class ContainerError(KeeperError):
    """A container could not do what it was asked to."""


class StartFailedError(ContainerError):
    """A resource could not be started; the attempt counts, and the next one follows."""


class ReleaseFailedError(ContainerError):
    """A resource may still be running, because it could not be stopped."""


class OverdueError(ContainerError):
    """A call of a container was not over in time, and was ended."""


def describe(error: BaseException) -> str:
    """An error as one line-wrapped text for events and the UI, never failing itself.

    Ours speak for themselves; a foreign one is prefixed with its type, since its text alone
    ("'name'") often says nothing.
    """
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a foreign __str__ may raise anything
        text = "(its text cannot be shown)"
    if not isinstance(error, KeeperError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return shorten(text)


def shorten(text: str, limit: int = _LONGEST_MESSAGE) -> str:
    """The text, cut in its middle where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    half = (limit - 40) // 2
    return f"{text[:half]}\n… {len(text) - 2 * half} characters left out …\n{text[-half:]}"
