"""How are durations read? As Amoro reads those of its configuration."""

import re
from datetime import timedelta
from typing import Final

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
JAVA_BLANKS: Final = "".join(map(chr, range(0x21)))  # what Java trims
_LONG_MAX: Final = 2**63 - 1
_DURATION: Final = re.compile(r"0*([0-9]{1,19})(.*)", re.DOTALL)


def parse_duration(value: object) -> timedelta:
    """A duration as Amoro writes it: `5min`, `30 s`, or a bare number of milliseconds.

    What is finer than a microsecond is cut off.

    Raises:
        ValueError: It is something else, or too long; the message says what is accepted.
    """
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    try:
        return timedelta(microseconds=nanoseconds(text if isinstance(text, str) else "") // 1000)
    except OverflowError:
        raise ValueError(f"that is too long; accepted is {DURATION_ACCEPTS}") from None
    except ValueError:
        raise ValueError(f"accepted is {DURATION_ACCEPTS}") from None


def nanoseconds(text: str) -> int:
    """A duration as Amoro reads it, or ValueError; AMS fails over more than a long of them."""
    match = _DURATION.fullmatch(text.strip(JAVA_BLANKS))
    unit = UNITS.get(match[2].strip(JAVA_BLANKS).lower()) if match else None
    if not match or not unit or int(match[1]) > min(_LONG_MAX, _LONG_MAX * UNITS["ms"] // unit):
        raise ValueError("no duration of Amoro")
    return int(match[1]) * unit
