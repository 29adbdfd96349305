"""Is AMS there, as its optimizers see it?"""

import struct
from functools import cache
from importlib.resources import files
from io import BytesIO, StringIO
from types import ModuleType
from typing import Any, BinaryIO, Final

import thriftpy2
from thriftpy2.protocol import TMultiplexedProtocol
from thriftpy2.protocol.binary import TBinaryProtocol
from thriftpy2.thrift import TApplicationException, TClient, TException, TMessageType, TPayload
from thriftpy2.transport import TTransportBase

from dagster_amoro.ams.leader import Server
from dagster_amoro.ams.sockets import Deadline, TimedSocket, connect
from dagster_amoro.core.errors import AmsUnavailableError, describe, shorten

_SERVICE: Final = "OptimizeManager"  # the name under which AMS multiplexes it
_LARGEST_REPLY: Final = 1 << 20  # bytes; a ping's reply takes 21
_LONGEST_COMPLAINT: Final = 300  # characters
_OTHERS: Final = {
    b"HTTP": "it speaks HTTP",
    b"\x15\x03": "it speaks TLS",
    b"\x16\x03": "it speaks TLS",
}
_TEXT_FIELD: Final = b"\x0b\x00\x01"  # how the message of a TApplicationException begins


def ping(server: Server, timeout: float) -> None:
    """Calls `ping` on the Thrift port of AMS and returns when AMS has answered.

    Args:
        server: Which AMS.
        timeout: Seconds for everything together; only the lookup of a host name comes on top.

    Raises:
        AmsUnavailableError: It cannot be reached, does not answer in time, or is not AMS.
    """
    deadline = Deadline(timeout)
    try:
        with connect(server.host, server.thrift_port, deadline) as connection:
            _call(connection)
    except TimeoutError as error:
        raise _silent(server, f"not within {timeout:g} s") from error
    except (_NotAmsError, TException, EOFError) as error:
        raise AmsUnavailableError(
            f"{server.thrift_address} answers, but not as AMS does: {_reason(error)}"
        ) from error
    except (OSError, ValueError, OverflowError) as error:  # a host or port that cannot be
        raise _silent(server, describe(error)) from error


class _NotAmsError(Exception):
    """What came is not what AMS sends."""


def _silent(server: Server, reason: str) -> AmsUnavailableError:
    return AmsUnavailableError(f"{server.thrift_address} does not answer a Thrift ping: {reason}")


def _reason(error: Exception) -> str:
    text = getattr(error, "message", None) or str(error)
    return shorten(text, _LONGEST_COMPLAINT)


def _call(connection: TimedSocket) -> None:
    with connection.makefile("rb") as incoming:
        protocol = _PingProtocol(_Frames(connection, incoming))
        multiplexed: Any = TMultiplexedProtocol(protocol, _SERVICE)  # type: ignore[no-untyped-call]
        TClient(_idl().OptimizingService, multiplexed).ping()


@cache
def _idl() -> ModuleType:
    text = files("dagster_amoro.ams").joinpath("optimizing.thrift").read_text(encoding="utf-8")
    return thriftpy2.load_fp(StringIO(text), module_name="amoro_optimizing_thrift")


class _Frames(TTransportBase):
    """One frame out, one frame in, of a size that a ping may have."""

    def __init__(self, connection: TimedSocket, incoming: BinaryIO) -> None:
        self._connection = connection
        self._incoming = incoming
        self._request = b""
        self._reply: BytesIO | None = None

    def write(self, buf: bytes) -> None:
        self._request += buf

    def flush(self) -> None:
        self._connection.sendall(struct.pack("!i", len(self._request)) + self._request)

    def read(self, sz: int) -> bytes:
        """Exactly `sz` bytes of the frame, never waiting for another one."""
        if self._reply is None:
            self._reply = BytesIO(self._frame())
        found = self._reply.read(max(sz, 0))
        if len(found) != sz:
            raise _NotAmsError("its reply ends in the middle")
        return found

    def rest(self) -> bytes:
        """What of the frame was not read yet."""
        return self._reply.read() if self._reply is not None else b""

    def _frame(self) -> bytes:
        header = self._take(4)
        for start, meaning in _OTHERS.items():
            if header.startswith(start):
                raise _NotAmsError(meaning)
        (length,) = struct.unpack("!i", header)
        if not 0 <= length <= _LARGEST_REPLY:
            raise _NotAmsError(f"it announces a reply of {length} bytes")
        return self._take(length)

    def _take(self, length: int) -> bytes:
        found = self._incoming.read(length)
        if len(found) < length:
            raise _NotAmsError("it closed the connection instead of answering")
        return found


class _PingProtocol(TBinaryProtocol):
    """Accepts the reply to a ping and nothing else.

    The library would look for fields in whatever comes, and skip what it does not know: a list
    of 2 billion elements of no size keeps it busy for an hour.
    """

    def __init__(self, frames: _Frames) -> None:
        super().__init__(frames)  # type: ignore[no-untyped-call]
        self._frames = frames

    def read_message_begin(self) -> tuple[str, int, int]:
        try:
            name, kind, number = super().read_message_begin()  # type: ignore[no-untyped-call]
        except UnicodeDecodeError as error:
            raise _NotAmsError("it names a method that is no text") from error
        if name != "ping" or kind not in {TMessageType.REPLY, TMessageType.EXCEPTION}:
            raise _NotAmsError(f"it sends message {name!r} of type {kind}, not the reply to ping")
        return name, kind, number

    def read_struct(self, obj: TPayload) -> None:
        rest = self._frames.rest()
        if isinstance(obj, TApplicationException):
            raise _NotAmsError(f"it refuses the call: {_complaint(rest)}")
        if rest != b"\0":  # a struct without fields: the result of a method without one
            raise _NotAmsError("its reply holds more or less than the reply to ping")


def _complaint(body: bytes) -> str:
    """The message of an encoded TApplicationException, where it comes first as it should."""
    start = len(_TEXT_FIELD) + 4
    if not body.startswith(_TEXT_FIELD) or len(body) < start:
        return "(no reason given)"
    (length,) = struct.unpack("!i", body[start - 4 : start])
    return body[start : start + max(length, 0)].decode(errors="replace") or "(no reason given)"
