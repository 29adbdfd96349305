"""Which version of AMS is meant, as far as starting an optimizer depends on it?"""

import re
from collections.abc import Callable
from enum import IntEnum
from typing import Final

_NUMBERS: Final = re.compile(r"\s*v?(\d{1,9})\.(\d{1,9})(?:\.(\d+))?(.*)", re.DOTALL)


class AmsVersion(IntEnum):
    """The ways in which AMS starts optimizers, oldest first; an unknown option crashes them."""

    V0_7 = 70
    V0_8 = 80
    V0_9_0 = 90  # the release; later versions of its branch behave as V0_9 does
    V0_9 = 91  # and everything later


AskAmsVersion = Callable[[], AmsVersion]
"""Says for which version of AMS to start optimizers.

Raises:
    ContainerError: Nobody knows; the message says what to set.
"""


def parse_version(text: str) -> AmsVersion:
    """What a version text stands for: AMS's own `0.9.0-incubating(abc1234)`, or a person's `0.9`.

    Raises:
        ValueError: It is no version, or one before 0.7.
    """
    match = _NUMBERS.fullmatch(text)
    if match is None:
        raise ValueError("not a version")
    version = int(match[1]), int(match[2])
    if version < (0, 7):
        raise ValueError("older than 0.7")
    if version < (0, 9):
        return AmsVersion.V0_7 if version == (0, 7) else AmsVersion.V0_8
    released_first = (*version, match[3]) == (0, 9, "0") and "SNAPSHOT" not in match[4]
    return AmsVersion.V0_9_0 if released_first else AmsVersion.V0_9
