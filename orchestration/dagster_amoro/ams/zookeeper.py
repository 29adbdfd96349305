"""What does ZooKeeper hold? Needs `kazoo`, which the extra `zookeeper` installs."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from typing import Final

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException, NoNodeError
from kazoo.handlers.threading import KazooTimeoutError

from dagster_amoro.ams.sockets import Deadline

FAILURES: Final = (KazooException, KazooTimeoutError, OSError, ValueError)
"""What `read_newest` raises: no connection, no answer in time, an address that cannot be."""

_SECONDS: Final = 5.0  # to connect and read; what is left of 10 is for going away
_SESSION_SECONDS: Final = 3.0  # one try to connect, and how long it can hold up going away
_QUIET: Final = logging.getLogger(f"{__name__}.kazoo")  # what matters is raised
_QUIET.disabled = True


def read_newest(addresses: str, nodes: Sequence[str]) -> bytes | None:
    """The content of that one of the nodes which was written last; None where there is none."""
    client = KazooClient(addresses, timeout=_SESSION_SECONDS, logger=_QUIET)
    deadline, found = Deadline(_SECONDS), []
    with closing(client), ExitStack() as stack:
        stack.callback(client.stop)
        if not client.start_async().wait(deadline.left()):
            raise TimeoutError(f"no server answers within {deadline.seconds:g} s")
        for node in nodes:
            with suppress(NoNodeError):
                found.append(client.get_async(node).get(timeout=deadline.left()))
    newest = max(found, key=lambda each: each[1].mzxid, default=(None,))
    return newest[0]
