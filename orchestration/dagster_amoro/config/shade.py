"""Which values Amoro has encoded, and how they are read."""

import base64
from collections.abc import Callable
from functools import partial
from typing import Final

from dagster_amoro.config.keys import (
    DATABASE_PASSWORD,
    DATABASE_TYPE,
    DATABASE_URL,
    DATABASE_USERNAME,
    SENSITIVE,
    SHADE,
)
from dagster_amoro.config.raw import RawConfig
from dagster_amoro.config.values import InvalidValueError, parse_text

_ENCODABLE: Final = (
    DATABASE_URL,
    DATABASE_USERNAME,
    DATABASE_PASSWORD,
)  # as far as they are read here


def set_decoders(raw: RawConfig) -> None:
    """Has encoded values decoded when they are read, wherever they were given, as AMS does.

    A value that cannot be decoded is an error only if it is read, since `keeper` may replace it.
    """
    if not raw.get(DATABASE_TYPE).is_server:  # there is nobody to log in as
        return
    shade = raw.get(SHADE)
    if shade == SHADE.default:
        return
    sensitive = raw.get(SENSITIVE)
    raw.decoders.update(
        (setting.key, _decoder(shade))
        for setting in _ENCODABLE
        if setting.key.removeprefix("ams.") in sensitive
    )


def _decoder(shade: str) -> Callable[[object], str]:
    return _from_base64 if shade == "base64" else partial(_undecodable, shade)


def _from_base64(value: object) -> str:
    text = parse_text(value)
    padding = "" if text.endswith("=") else "=" * (-len(text) % 4)  # Java does not ask for it
    try:
        return base64.b64decode(text + padding, validate=True).decode()
    except ValueError:
        flaw = f"and is not the base64 of a text, as {SHADE.key} says"
    raise InvalidValueError(flaw)  # here, so that nothing with the value in it is chained to it


def _undecodable(shade: str, _value: object) -> str:
    raise InvalidValueError(
        f"and encoded with the shade {shade!r}, which only AMS can decode; set "
        "keeper.database-password, best as KEEPER_DATABASE_PASSWORD, and where they are encoded "
        "as well keeper.database-username and, in a copy of config.yaml, a plain ams.database.url"
    )
