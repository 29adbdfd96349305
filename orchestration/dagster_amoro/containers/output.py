"""Where does a program's output go, how did the program end, and what did it say last?"""

import errno
import fcntl
import hashlib
import json
import os
import re
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

UNKNOWN_END: Final = 256
"""The return code of a program whose own is not known; a real exit code is 255 at most."""

_SLUG: Final = 60  # characters of a resource id that a file name shows
_LARGEST_END: Final = 64 * 1024  # bytes that `end_of` reads
_CHUNK: Final = 1024 * 1024  # bytes that are copied at a time
_UNPRINTABLE: Final = re.compile(r"[^\n\t\r\x20-\x7e\xa0-\U0010ffff]")  # databases refuse NUL


def file_stem(container: str, resource_id: str) -> str:
    """A file name for any resource id at all: its readable characters, and a hash."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", resource_id)[:_SLUG].strip("-._")
    return f"{slug or 'resource'}-{digest(container, resource_id)}"


def digest(container: str, resource_id: str) -> str:
    """Sixteen characters that no other resource of any container has."""
    names = json.dumps([container, resource_id])
    return hashlib.sha256(names.encode()).hexdigest()[:16]


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
def own_folder(path: Path) -> Iterator[int]:
    """A descriptor of a folder that is ours alone to write in.

    An OSError says that it is another user's, a link, or that others may write in it: whoever can
    replace what is in a folder decides what we read there, and where we write.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        _check_owner(descriptor, path, "it must be writable by its owner alone (chmod go-w)", 0o022)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def opened(path: Path, flags: int, create: int = os.O_CREAT) -> Iterator[int]:
    """A descriptor of a file of ours that only we may read, made unless it is there.

    So is its folder, but not where the file has to be there: whoever looks leaves nothing behind.
    An OSError says that it, or its folder, is not ours alone, or that it is no file: a link is not
    followed, and nobody waits for the other end of a pipe.
    """
    if create:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with own_folder(path.parent) as folder, _regular(path, flags | create, folder) as descriptor:
        _check_owner(descriptor, path, "it must have one name and be ours", 0, names=1)
        os.fchmod(descriptor, 0o600)
        yield descriptor


@contextmanager
def readable(path: Path) -> Iterator[int]:
    """A descriptor to read a file by, be it another user's; an OSError says that it is no file."""
    with _regular(path, os.O_RDONLY) as descriptor:
        yield descriptor


@contextmanager
def _regular(path: Path, flags: int, folder: int | None = None) -> Iterator[int]:
    """Opens a file, by its name in a folder where one is given, and nothing that is none."""
    name = path if folder is None else path.name
    careful = flags | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(name, careful, 0o600, dir_fd=folder)
    except OSError as error:  # ELOOP and ENXIO say little
        why = {errno.ELOOP: "it is a link", errno.ENXIO: "it is no file"}.get(error.errno or 0)
        raise (OSError(error.errno, why, str(path)) if why else error) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        os.set_blocking(descriptor, True)
        yield descriptor
    finally:
        os.close(descriptor)


def _check_owner(
    descriptor: int, path: Path, accepted: str, forbidden: int, names: int | None = None
) -> None:
    found = os.fstat(descriptor)
    is_ours = found.st_uid == os.geteuid() and not found.st_mode & forbidden
    if not is_ours or names not in (None, found.st_nlink):
        raise PermissionError(errno.EPERM, f"it is not ours alone; {accepted}", str(path))


def size_of(log: Path) -> int:
    """How many bytes are in a file; none, if it is not there."""
    try:
        return log.lstat().st_size
    except OSError:  # not there yet; what else is wrong shows when it is opened
        return 0


def end_of(log: Path, begin: int = 0, last: int = _LARGEST_END) -> str:
    """The end of what a file got since it was `begin` bytes long, as a text that can be stored.

    That is at most the `last` bytes. A file that is shorter than `begin` was truncated, and all of
    it counts. An OSError says that it cannot be read.
    """
    with readable(log) as descriptor:
        size = os.fstat(descriptor).st_size
        content = os.pread(descriptor, last, max(begin if begin <= size else 0, size - last))
    return _UNPRINTABLE.sub("\ufffd", content.decode(errors="replace"))


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a log is put aside, and how many of those are kept."""

    largest: int = 64 * 1024 * 1024  # bytes
    files: int = 3  # that are kept beside it, as `name.log.1`, the newest, to `name.log.files`

    def turn(self, log: Path) -> None:
        """Puts a log that is too large aside, also one that a program goes on writing to.

        Of one that grew to more than twice the size, the end counts.

        Its content is copied and then cut, so that whoever holds it open goes on in an empty file.
        What is written between the two is lost; what was written last by a program that is over is
        not. An OSError says that it cannot be done.
        """
        if size_of(log) <= self.largest:
            return
        with opened(log, os.O_RDWR, create=0) as source, suppress(BlockingIOError):
            fcntl.flock(source, fcntl.LOCK_EX | fcntl.LOCK_NB)  # or another process does it
            if (size := os.fstat(source).st_size) > self.largest:
                self._make_room(log)
                with opened(older(log, 1), os.O_WRONLY, os.O_CREAT | os.O_EXCL) as target:
                    _copy(source, target, max(size - 2 * self.largest, 0))
                os.ftruncate(source, 0)

    def _make_room(self, log: Path) -> None:
        older(log, self.files).unlink(missing_ok=True)
        for number in range(self.files, 1, -1):
            with suppress(FileNotFoundError):
                older(log, number - 1).replace(older(log, number))


def _copy(source: int, target: int, position: int) -> None:
    """Copies a file from a position on, with what it gets meanwhile."""
    while content := os.pread(source, _CHUNK, position):
        position += os.write(target, content)


def older(log: Path, number: int) -> Path:
    """Where a log was put aside, so many times ago."""
    return log.with_name(f"{log.name}.{number}")
