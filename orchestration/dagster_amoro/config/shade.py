"""Which values Amoro has encoded, and how they are read."""

import base64
from collections.abc import Mapping
from typing import Final

from dagster_amoro.config.models import Configuration
from dagster_amoro.config.values import InvalidValueError, parse_text

_PLAIN: Final = "default"
_ENCODABLE: Final = ("ams.database.url", "ams.database.username", "ams.database.password")


def encoded_keys(config: Configuration) -> frozenset[str]:
    """The keys that are read here and encoded; none where there is no server to log in to."""
    if not config.database.type.is_server or config.shade.identifier == _PLAIN:
        return frozenset()
    sensitive = {f"ams.{key}" for key in config.shade.sensitive_keywords}
    return frozenset(_ENCODABLE) & sensitive


def decode(
    values: Mapping[str, object], keys: frozenset[str], identifier: str
) -> tuple[dict[str, object], dict[str, str]]:
    """The values with those of `keys` decoded, and why some could not be, by key.

    Encoded is what the file and what the environment say, as it is for AMS.
    """
    decoded, flaws = dict(values), {}
    for key in keys & values.keys():
        try:
            decoded[key] = _decoded(decoded.pop(key), identifier)
        except InvalidValueError as flaw:
            flaws[key] = str(flaw)
    return decoded, flaws


def _decoded(value: object, identifier: str) -> str:
    if identifier == "base64":
        return _from_base64(value)
    raise InvalidValueError(
        f"and encoded with the shade {identifier!r}, which only AMS can decode; set "
        "keeper.database-password, best as KEEPER_DATABASE_PASSWORD, and where they are encoded "
        "as well keeper.database-username and, in a copy of config.yaml, a plain ams.database.url"
    )


def _from_base64(value: object) -> str:
    try:
        text = parse_text(value)
        padding = "" if text.endswith("=") else "=" * (-len(text) % 4)  # Java does not ask for it
        return base64.b64decode(text + padding, validate=True).decode()
    except ValueError:
        flaw = "and is not the base64 of a text, as ams.shade.identifier says"
    raise InvalidValueError(flaw)  # here, so that nothing with the value in it is chained to it
