"""How is one total deadline kept with a server that may hang or send a byte at a time?"""

import socket
import time
from typing import Any


class Deadline:
    """A point in time after which nothing is waited for any more."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until then, never the 0 that means "do not wait"; a TimeoutError after it."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


class TimedSocket(socket.socket):
    """A TCP socket, each operation of which may take what is left until a deadline.

    A socket's own timeout starts anew with each byte: a server that drips could hold it for ever.
    """

    deadline: Deadline

    def recv_into(self, *arguments: Any, **options: Any) -> int:  # noqa: ANN401 - as the base class
        """Receives, which is how files made of a socket read."""
        self.settimeout(self.deadline.left())
        return super().recv_into(*arguments, **options)

    def sendall(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as the base class
        """Sends everything."""
        self.settimeout(self.deadline.left())
        super().sendall(*arguments, **options)


def connect(host: str, port: int, deadline: Deadline) -> TimedSocket:
    """A connection to the first address of a host that takes one.

    The deadline does not hold for the lookup of a name: the system's resolver has its own.

    Raises:
        OSError: There is no such host, nobody listens, or it took too long.
        ValueError, OverflowError: There can be no such host, or no such port.
    """
    failure: OSError = OSError("the name has no address")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for number, (family, kind, protocol, _, address) in enumerate(found):
        connection = TimedSocket(family, kind, protocol)
        connection.deadline = deadline
        try:
            connection.settimeout(deadline.left() / (len(found) - number))  # a share for each
            connection.connect(address)
        except OSError as error:
            connection.close()
            failure = error
        except BaseException:  # a port that cannot be, or the end of this process
            connection.close()
            raise
        else:
            return connection
    raise failure
