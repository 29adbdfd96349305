"""Which values are accepted: durations, numbers, switches and texts, as Amoro reads them."""

import ipaddress
import math
import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final, TypeVar

from dagster_amoro.core.groups import UNITS

_T = TypeVar("_T")
_Choice = TypeVar("_Choice", bound=StrEnum)

JAVA_INT_MAX: Final = 2**31 - 1
_JAVA_LONG_MAX: Final = 2**63 - 1
_DIGITS: Final = re.compile("0*[0-9]{1,10}")
_HOST_NAME: Final = re.compile(r"(?=.*[A-Za-z])\w(?:[\w.\-]{0,251}\w)?\.?", re.ASCII)
_KEYWORD: Final = re.compile(
    r"""\s*(?:'(?P<single>(?:[^']|'')*)'|"(?P<double>(?:[^"]|"")*)"|(?P<bare>[^\s;'"][^;]*)|)"""
    r"\s*(?:;|\Z)"
)
_SHARE: Final = re.compile(r"[0-9]{0,3}(\.[0-9]{1,9})?(?<=[0-9])")
_DURATION: Final = re.compile(r"\s*0*([0-9]{1,19})\s*(\S*)\s*", re.ASCII)
DURATION_ACCEPTS: Final = (
    "a whole number with one of the units d, h, min, s, ms, \u00b5s or ns, "
    "or without a unit for milliseconds"
)
# A moment this much later must still be a date, and waiting a century is a mistake in any case.
LONGEST: Final = timedelta(days=36_500)


class InvalidValueError(ValueError):
    """A value that is not accepted, and why; the text completes "it is ..." and has no secret."""


def parse_duration(value: object) -> timedelta:
    """A duration as Amoro writes it: `5min`, `30 s`, or a bare number of milliseconds.

    What is finer than a microsecond is cut off.

    Raises:
        ValueError: It is something else, or too long; the message says what is accepted.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    nanoseconds = UNITS.get(match[2].lower()) if match else None
    if match is None or nanoseconds is None or int(match[1]) > _JAVA_LONG_MAX:
        raise ValueError(f"accepted is {DURATION_ACCEPTS}")
    try:
        return timedelta(microseconds=int(match[1]) * nanoseconds // 1000)
    except OverflowError:
        raise ValueError(f"that is too long; accepted is {DURATION_ACCEPTS}") from None


def duration_from(shortest: timedelta) -> Callable[[object], timedelta]:
    """A parser of durations that are not shorter than `shortest`."""

    def parse(value: object) -> timedelta:
        duration = parse_duration(value)
        if not shortest <= duration <= LONGEST:
            raise ValueError("out of range")
        return duration

    return parse


def parse_interval(value: object) -> timedelta:
    """A duration of whole seconds, at least one; a fraction is cut off."""
    duration = duration_from(timedelta(seconds=1))(value)
    return timedelta(seconds=duration // timedelta(seconds=1))


def parse_switch(value: object) -> bool:
    """True or false, in any case."""
    texts = {"true": True, "false": False}
    if isinstance(value, str) and value.lower() in texts:
        return texts[value.lower()]
    if isinstance(value, bool):
        return value
    raise ValueError("neither true nor false")


def whole_from(lowest: int, highest: int = JAVA_INT_MAX) -> Callable[[object], int]:
    """A parser of whole numbers from `lowest` to `highest`; left out: as large as Java has them."""

    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
        number = None if isinstance(number, bool) else number
        if isinstance(number, int) and lowest <= number <= highest:
            return number
        raise ValueError("not a whole number, or out of range")

    return parse


def parse_share(value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, str) and _SHARE.fullmatch(value):
        value = float(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1:
        return float(value)
    raise ValueError("not a number from 0 to 1")


def parse_part(value: object) -> float:
    """A number that is more than 0, up to 1."""
    share = parse_share(value)
    if share == 0:
        raise ValueError("nothing is no part")
    return share


def one_of(kind: type[_Choice]) -> Callable[[object], _Choice]:
    """A parser of the values of an enumeration, as they are written there."""
    return lambda value: kind(str(value))


def or_none(parse: Callable[[object], _T]) -> Callable[[object], _T | None]:
    """A parser that takes an empty text for a key left out: None."""
    return lambda value: None if value == "" else parse(value)


def parse_text(value: object) -> str:
    """A scalar as Java would print it, which is what the properties of a container hold."""
    match value:
        case str():
            return value
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return _java_double(value)
        case _:
            raise ValueError("not a scalar")


def _java_double(value: float) -> str:
    if not math.isfinite(value):
        return {"inf": "Infinity", "-inf": "-Infinity"}.get(str(value), "NaN")
    if value == 0 or 1e-3 <= abs(value) < 1e7:  # noqa: PLR2004 - where Java's plain form ends
        return str(value)
    sign, digits, _ = (number := Decimal(str(value)).normalize()).as_tuple()
    head, *rest = map(str, digits)
    return f"{'-' * sign}{head}.{''.join(rest) or '0'}E{number.adjusted()}"


def parse_host(value: object) -> str:
    """A full address, without the brackets of an IPv6 one, or a host name; empty: none.

    The beginning of an address, which AMS completes to one of its own, is not accepted.
    """
    text = parse_text(value)
    if not text or _HOST_NAME.fullmatch(text):
        return text
    address = text[1:-1] if re.fullmatch(r"\[.*\]", text) else text
    if ipaddress.ip_address(address).is_unspecified:
        raise ValueError("every address, so none")
    return address


def parse_keywords(value: object) -> frozenset[str]:
    """A list of texts, or one text split at semicolons outside of quotes, as Amoro does it.

    Quotes of either kind protect a whole item; doubled, they stand for themselves.
    """
    if isinstance(value, list):
        return frozenset(map(parse_text, value))
    text, place, found = parse_text(value), 0, set()
    while place < len(text):
        if (match := _KEYWORD.match(text, place)) is None:
            raise ValueError("quotes where there can be none, or not closed")
        found.add(_unquoted(match))
        place = match.end()
    return frozenset(found - {""})


def _unquoted(match: re.Match[str]) -> str:
    if match["single"] is not None:
        return match["single"].replace("''", "'")
    if match["double"] is not None:
        return match["double"].replace('""', '"')
    return (match["bare"] or "").strip()
