"""Where does a program's output go, how did the program end, and what did it say last?"""

import hashlib
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

UNKNOWN_END: Final = 256
"""The return code of a program whose own is not known; a real exit code is 255 at most."""

_SLUG: Final = 60  # characters of a resource id that a file name shows
_LARGEST_END: Final = 64 * 1024  # bytes that `end_of` reads
_UNPRINTABLE: Final = re.compile(r"[^\n\t\r\x20-\x7e\xa0-\U0010ffff]")  # databases refuse NUL


def file_stem(container: str, resource_id: str) -> str:
    """A file name for any resource id at all: its readable characters, and a hash."""
    digest = hashlib.sha256(json.dumps([container, resource_id]).encode()).hexdigest()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", resource_id)[:_SLUG].strip("-._")
    return f"{slug or 'resource'}-{digest[:16]}"


def home_folder(name: str) -> Path:
    """A folder in Dagster's home, or below the current directory where there is none."""
    return Path(os.environ.get("DAGSTER_HOME") or ".dagster-amoro", name)


def ending(code: int) -> str:
    """How a program ended, by its return code: `with exit code 3`, `by SIGKILL`."""
    if code == UNKNOWN_END:
        return "in an unknown way: its exit code went to somebody else, or SIGCHLD is ignored here"
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal
        return f"by signal {-code}"


@contextmanager
def opened(path: Path, flags: int, create: int = os.O_CREAT) -> Iterator[int]:
    """A descriptor of a file that only we may read, made unless it is there."""
    descriptor = os.open(path, flags | create, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def size_of(log: Path) -> int:
    """How many bytes are in a file; none, if it is not there."""
    try:
        return log.stat().st_size
    except OSError:  # not there yet; what else is wrong shows when it is opened
        return 0


def end_of(log: Path, begin: int = 0, last: int = _LARGEST_END) -> str:
    """The end of what a file got since it was `begin` bytes long, as a text that can be stored.

    That is at most the `last` bytes. A file that is shorter than `begin` was truncated, and all of
    it counts. An OSError says that it cannot be read.
    """
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(begin if begin <= size else 0, size - last))
        return _UNPRINTABLE.sub("\ufffd", file.read(last).decode(errors="replace"))
