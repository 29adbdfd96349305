"""What does ZooKeeper hold? Needs `kazoo`, which the extra `zookeeper` installs."""

import logging
import socket
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, Final

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler

from dagster_amoro.ams.sockets import Deadline

FAILURES: Final = (KazooException, KazooTimeoutError, OSError, ValueError)
"""What `read_newest` raises: no connection, no answer in time, an address that cannot be."""

_SECONDS: Final = 5.0  # to connect and read; what is left of 10 is for going away
_SESSION_SECONDS: Final = 3.0  # one try to connect, and how long it can hold up going away
_LARGEST: Final = 1 << 20  # bytes that one connection takes; ZooKeeper's own limit of a node
_PART: Final = 1 << 16  # bytes that are read at a time
_QUIET: Final = logging.getLogger(f"{__name__}.kazoo")  # what matters is raised
_QUIET.disabled = True


def read_newest(addresses: str, nodes: Sequence[str]) -> bytes | None:
    """The content of that one of the nodes which was written last; None where there is none."""
    deadline, found = Deadline(_SECONDS), []
    handler = _Handler(deadline)
    client = KazooClient(addresses, timeout=_SESSION_SECONDS, handler=handler, logger=_QUIET)
    with closing(client), ExitStack() as stack:
        stack.callback(client.stop)
        if not client.start_async().wait(deadline.left()):
            raise TimeoutError(f"no server answers within {deadline.seconds:g} s")
        for node in nodes:
            with suppress(NoNodeError):
                found.append(client.get_async(node).get(timeout=deadline.left()))
    newest = max(found, key=lambda each: each[1].mzxid, default=(None,))
    return newest[0]


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo's own, but for what a connection takes from a server.

    kazoo reads an answer as long as each byte comes in time, and to go away it waits for that.
    """

    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline: Final = deadline

    def create_connection(self, *arguments: Any, **options: Any) -> socket.socket:  # noqa: ANN401 - as the base class
        connected = super().create_connection(*arguments, **options)
        return _Limited(connected.detach(), self._deadline)


class _Limited(socket.socket):
    """A connection that breaks off at a deadline, and where too much comes."""

    def __init__(self, descriptor: int, deadline: Deadline) -> None:
        super().__init__(fileno=descriptor)
        self._deadline: Final = deadline
        self._room = _LARGEST

    def recv(self, size: int, *flags: int) -> bytes:
        """Receives."""
        self._deadline.left()
        received = super().recv(min(size, _PART), *flags)
        self._room -= len(received)
        if self._room < 0:
            raise OSError(f"more than {_LARGEST} bytes")
        return received
