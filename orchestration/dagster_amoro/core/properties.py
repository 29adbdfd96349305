"""What a row's `properties` say: Amoro's JSON text to a mapping and back.

AMS writes a compact JSON object of texts and reads it leniently (a null map for NULL and blanks,
scalars as their literal text, names and texts also without quotes). A nested or doubled value
makes AMS itself fail, so here it is an error too.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from dagster_amoro.core.errors import PropertiesError, shorten
from dagster_amoro_worker.properties import dump_properties

__all__ = ["dump_properties", "merge_properties", "parse_properties"]

LONGEST_STARTUP: Final = 16_384
"""Characters of all start-up properties of a resource, whose row is read with each tick."""
_LITERALS: Final = {True: "true", False: "false", None: None}
# Texts go as far as the end where a quote is missing, so that whatever stands there is read once.
_TOKEN: Final = re.compile(
    r"""
    (?P<text>"(?:[^"\\]|\\.)*+(?:"|\\?\Z))
    |'(?P<single>(?:[^'\\]|\\.)*+)(?:'|\\?\Z)
    |(?P<literal>true|false|null)(?=\s*(?:[,}]|\Z))
    |(?P<bare>[^\s"'/\\;#={}\[\]:,][^\s/\\;#={}\[\]:,]*)
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_IN_SINGLE: Final = re.compile(r"""\\'|\\.|\"""", re.DOTALL)


def parse_properties(text: str | None) -> dict[str, str]:
    """The properties in a column's text; keys whose value is null are left out.

    Raises:
        PropertiesError: The text is not a JSON object of plain values.
    """
    return {key: value for key, value in _parse(text).items() if value is not None}


def merge_properties(text: str | None, startup: Mapping[str, str]) -> str:
    """The column's text after a start: old keys in their order, start-up keys set or appended.

    Raises:
        PropertiesError: As for `parse_properties`; or no row is to hold the start-up properties.
    """
    length = sum(len(key) + len(value) for key, value in startup.items())
    if length > LONGEST_STARTUP:
        raise PropertiesError(
            f"start-up properties have {length:,} characters; accepted are {LONGEST_STARTUP:,}"
        )
    merged = dump_properties({**_parse(text), **startup})
    try:
        merged.encode()
    except UnicodeEncodeError:
        raise PropertiesError(
            "start-up properties hold half a character (a lone surrogate), which no database stores"
        ) from None
    return merged


def _parse(text: str | None) -> dict[str, str | None]:
    if text is None:
        return {}
    if not isinstance(text, str):  # SQLite stores what it is given, whatever the column's type
        raise PropertiesError("properties are no text; they must be a JSON object of texts")
    if not text.strip():
        return {}
    try:
        value = _decode(text)
        if "\\ud" in text.lower():  # half of a character pair, which no database stores
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PropertiesError(
            f"properties cannot be read: {shorten(str(error), 200)}; "
            "they must be a JSON object of texts"
        ) from None  # without the text itself, which may hold secrets
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise PropertiesError(
            f"properties are a {type(value).__name__}; they must be a JSON object of texts"
        )
    return value


def _decode(text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as strict:
        try:
            return _DECODER.decode(_TOKEN.sub(_in_json, text))
        except json.JSONDecodeError:
            raise strict from None


def _in_json(token: re.Match[str]) -> str:
    """A token of AMS's lenient JSON as strict JSON has it."""
    if token["bare"]:
        return json.dumps(token["bare"])
    if token["single"] is not None:
        inner = _IN_SINGLE.sub(lambda f: {"\\'": "'", '"': '\\"'}.get(f[0], f[0]), token["single"])
        return f'"{inner}"'
    return token["text"] or token["literal"].lower()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        if isinstance(value, dict | list):
            raise ValueError(f"the value of {key!r} is nested")  # noqa: TRY004 - caught above
        found[key] = value if isinstance(value, str) else _LITERALS[value]
    return found


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=str, parse_float=str, parse_constant=str
)
