"""Who comes too late to start or stop a resource on this host?

A run may be suspended for any time between its last look at the ledger and the call that it makes
then. So the call itself looks once more, at a file of the resource that says which attempt called
last, and holds the file for as long as it runs.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

from dagster_amoro.containers.output import file_stem, home_folder, opened
from dagster_amoro.core.errors import ContainerError, describe

_LONGEST: Final = 1000  # bytes of such a file


class Fence(NamedTuple):
    """Which attempt a call belongs to. Those of one ledger grow with each attempt."""

    ledger: str  # the identity of the ledger that counts them
    incident_id: int
    attempt: int

    def is_older_than(self, other: "Fence | None") -> bool:
        """Whether the other one came later. Nothing is known about those of another ledger."""
        return other is not None and self.ledger == other.ledger and self[1:] < other[1:]

    def dumped(self) -> str:
        """The fence as a text, for `parse_fence`."""
        return json.dumps(self)


@contextmanager
def fenced(container: str, resource_id: str, fence: Fence | None) -> Iterator[None]:
    """Lets a call through, alone, unless a later attempt has called for the resource before.

    Raises:
        ContainerError: A later attempt did, another call is under way, or nobody can know.
    """
    path = home_folder("fences") / f"{file_stem(container, resource_id)}.json"
    try:
        with opened(path, os.O_RDWR) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                _pass(file, fence)
                yield
            finally:  # explicitly: closing does not unlock what a fork still holds
                fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        raise ContainerError(f"another call for {resource_id!r} is under way") from None
    except OSError as error:
        raise ContainerError(f"{path} cannot be used: {describe(error)}") from None


def _pass(file: int, fence: Fence | None) -> None:
    if fence is None:
        return
    last = parse_fence(os.pread(file, _LONGEST, 0))
    refuse_older(fence, last)
    if fence != last:
        content = fence.dumped().encode()
        os.ftruncate(file, 0)
        os.pwrite(file, content, 0)


def refuse_older(fence: Fence | None, last: Fence | None) -> None:
    """A ContainerError says that a call comes after those of a later attempt."""
    if fence is not None and fence.is_older_than(last):
        raise ContainerError("refused, since a later attempt has called for it")


def parse_fence(content: str | bytes) -> Fence | None:
    """The fence in a text; None where there is none, or a process died while it was written."""
    try:
        ledger, incident_id, attempt = json.loads(content)
        return Fence(str(ledger), int(incident_id), int(attempt))
    except (ValueError, TypeError):
        return None
