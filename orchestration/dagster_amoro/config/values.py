"""How values are read: the grammars of durations, numbers, switches and texts are Amoro's.

A parser takes a value as YAML has it, or the text of an environment variable, and raises
ValueError where it does not accept it. A `Reader` makes it the type of a pydantic field.
"""

import base64
import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from dagster_amoro.core.values import DURATION_ACCEPTS, parse_duration

JAVA_INT_MAX: Final = 2**31 - 1
_DIGITS: Final = re.compile("0*[0-9]{1,10}")
_HOST_NAME: Final = re.compile(r"(?=.*[A-Za-z])\w(?:[\w.\-]{0,251}\w)?\.?", re.ASCII)
_KEYWORD: Final = re.compile(
    r"""\s*(?:'(?P<single>(?:[^']|'')*)'|"(?P<double>(?:[^"]|"")*)"|(?P<bare>[^\s;'"][^;]*)|)"""
    r"\s*(?:;|\Z)"
)
_FRACTION: Final = re.compile(r"[0-9]{0,3}(\.[0-9]{1,9})?(?<=[0-9])")
# A moment this much later must still be a date, and waiting a century is a mistake in any case.
LONGEST: Final = timedelta(days=36_500)


class InvalidValueError(ValueError):
    """A value that is not accepted, and why; the text completes "it is ..." and has no secret."""


@dataclass(frozen=True)
class Reader:
    """Stands in the annotation of a field: how its value is read, and what is accepted."""

    parse: Callable[[object], object]  # raises ValueError for what is not accepted
    accepts: str  # completes "accepted is ..."

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Has pydantic read the field with `parse`, and with nothing else."""
        return core_schema.no_info_plain_validator_function(self._read)

    def _read(self, value: object) -> object:
        try:
            return self.parse(value)
        except InvalidValueError as flaw:
            raise PydanticCustomError("invalid_value", "{why}", {"why": str(flaw)}) from None


def optional(reader: Reader) -> Reader:
    """Reads an empty text as None, and everything else as `reader` does."""
    return Reader(lambda value: None if value == "" else reader.parse(value), reader.accepts)


def one_of(kind: type[StrEnum], accepts: str = "") -> Reader:
    """The values of an enumeration, as they are written there."""
    return Reader(lambda value: kind(str(value)), accepts or " or ".join(kind))


def whole(lowest: int, highest: int = JAVA_INT_MAX) -> Reader:
    """Whole numbers from `lowest` to `highest`."""

    def parse(value: object) -> int:
        number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
        number = None if isinstance(number, bool) else number
        if isinstance(number, int) and lowest <= number <= highest:
            return number
        raise ValueError("not a whole number, or out of range")

    return Reader(parse, f"a whole number from {lowest} to {highest}")


def duration(shortest: timedelta, limits: str) -> Reader:
    """Durations from `shortest` up to a century; `limits` says so in what is accepted."""

    def parse(value: object) -> timedelta:
        found = parse_duration(value)
        if not shortest <= found <= LONGEST:
            raise ValueError("out of range")
        return found

    return Reader(parse, f"{DURATION_ACCEPTS}, {limits}")


def fraction(lowest: float, accepts: str) -> Reader:
    """Numbers from `lowest` to 1."""

    def parse(value: object) -> float:
        number = float(value) if isinstance(value, str) and _FRACTION.fullmatch(value) else value
        number = None if isinstance(number, bool) else number
        if isinstance(number, int | float) and lowest <= number <= 1:
            return float(number)
        raise ValueError("no number, or out of range")

    return Reader(parse, accepts)


def parse_text(value: object) -> str:
    """A scalar as Java would print it, which is what the properties of a container hold."""
    match value:
        case bool():
            return str(value).lower()
        case str() | int():
            return str(value)
        case float():
            return _java_double(value)
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
        raise ValueError("stands for every address, so nothing is reached under it")
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


def decode(value: object, shade: str) -> str:
    """A value that Amoro has encoded, by the name of its shade.

    Raises:
        InvalidValueError: It is of a shade that is not known here, or not encoded.
    """
    if shade != "base64":
        raise InvalidValueError(
            f"and encoded with the shade {shade!r}, which only AMS can decode; set "
            "keeper.database-password, best as KEEPER_DATABASE_PASSWORD, and where they are "
            "encoded as well keeper.database-username and, in a copy of config.yaml, a plain "
            "ams.database.url"
        )
    try:
        text = parse_text(value)
        padding = "" if text.endswith("=") else "=" * (-len(text) % 4)  # Java does not ask for it
        return base64.b64decode(text + padding, validate=True).decode()
    except ValueError:
        flaw = "and is not the base64 of a text, as ams.shade.identifier says"
    raise InvalidValueError(flaw)  # here, so that nothing with the value in it is chained to it
