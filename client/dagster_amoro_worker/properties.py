"""What the `properties` of a row say, as the JSON text that Amoro's AMS would store."""

import json
import re
from collections.abc import Mapping
from typing import Final

_ESCAPE: Final = re.compile(r"\\(?:u(....)|.)")


def dump_properties(properties: Mapping[str, str | None]) -> str:
    """The text that AMS would store; never NULL and never blank, both of which break AMS.

    To the byte: AMS's Jackson writes control characters with upper-case digits.
    """
    text = json.dumps(dict(properties), ensure_ascii=False, separators=(",", ":"))
    return _ESCAPE.sub(lambda found: f"\\u{found[1].upper()}" if found[1] else found[0], text)
