"""Which values are accepted: durations, numbers, switches and texts, as Amoro reads them."""

import math
import re
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Final

JAVA_INT_MAX: Final = 2**31 - 1
_JAVA_LONG_MAX: Final = 2**63 - 1
_DIGITS: Final = re.compile("0*[0-9]{1,10}")
_DURATION: Final = re.compile(r"\s*0*([0-9]{1,19})\s*(\S*)\s*", re.ASCII)
UNITS: Final = {  # nanoseconds, by label; no label means milliseconds
    "": 10**6,
    **dict.fromkeys(("d", "day", "days"), 86_400 * 10**9),
    **dict.fromkeys(("h", "hour", "hours"), 3_600 * 10**9),
    **dict.fromkeys(("min", "minute", "minutes"), 60 * 10**9),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 10**9),
    **dict.fromkeys(("ms", "milli", "millis", "millisecond", "milliseconds"), 10**6),
    **dict.fromkeys(("\u00b5s", "micro", "micros", "microsecond", "microseconds"), 10**3),
    **dict.fromkeys(("ns", "nano", "nanos", "nanosecond", "nanoseconds"), 1),
}
DURATION_ACCEPTS: Final = (
    "a whole number with one of the units d, h, min, s, ms, \u00b5s or ns, "
    "or without a unit for milliseconds"
)
# A moment this much later must still be a date, and waiting a century is a mistake in any case.
LONGEST: Final = timedelta(days=36_500)


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


def whole_from(lowest: int) -> Callable[[object], int]:
    """A parser of whole numbers, as large as Java has them, from `lowest`."""

    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
        number = None if isinstance(number, bool) else number
        if isinstance(number, int) and lowest <= number <= JAVA_INT_MAX:
            return number
        raise ValueError("not a whole number, or out of range")

    return parse


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
