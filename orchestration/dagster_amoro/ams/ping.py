"""Is AMS there, as its optimizers see it?

The messages are encoded by thriftpy2. Its client is not used: that skips through whatever a reply
holds, which a list of 2 billion elements of no size makes last for an hour, tries IPv4 only, and
hides why a connection failed.
"""

import struct
from io import BytesIO
from typing import BinaryIO, Final

from thriftpy2.protocol.binary import read_message_begin, write_field_stop, write_message_begin
from thriftpy2.thrift import TException, TMessageType

from dagster_amoro.ams.leader import Server
from dagster_amoro.ams.sockets import Deadline, TimedSocket, connect
from dagster_amoro.core.errors import AmsUnavailableError, describe, shorten

_METHOD: Final = "ping"  # of AMS's optimizing service: it takes nothing and returns nothing
_SERVICE: Final = "OptimizeManager"  # the name under which AMS multiplexes that service
_NO_FIELDS: Final = b"\0"  # a struct without fields: the result of a method without one
_LARGEST_REPLY: Final = 1 << 20  # bytes; a ping's reply takes 21
_LONGEST_COMPLAINT: Final = 300  # characters
_OTHERS: Final = {b"HTTP": "HTTP", b"\x15\x03": "TLS", b"\x16\x03": "TLS"}
_TEXT_FIELD: Final = b"\x0b\x00\x01"  # how the message of a TApplicationException begins


def ping(server: Server, timeout: float) -> None:
    """Calls `ping` on the Thrift port of AMS and returns when AMS has answered.

    `timeout` is in seconds, for everything; only the lookup of a host name comes on top.

    Raises:
        AmsUnavailableError: It cannot be reached, does not answer in time, or is not AMS.
    """
    where = server.at(server.thrift_port)
    silent = f"{where} does not answer a Thrift ping"
    try:
        with connect(server.host, server.thrift_port, Deadline(timeout)) as connection:
            _check_reply(_exchange(connection))
    except TimeoutError as error:
        raise AmsUnavailableError(f"{silent}: not within {timeout:g} s") from error
    except (_NotAmsError, TException) as error:
        reason = shorten(getattr(error, "message", None) or str(error), _LONGEST_COMPLAINT)
        raise AmsUnavailableError(f"{where} answers, but not as AMS does: {reason}") from error
    except (OSError, ValueError, OverflowError) as error:  # a host or port that cannot be
        raise AmsUnavailableError(f"{silent}: {describe(error)}") from error


class _NotAmsError(Exception):
    """What came is not what AMS sends."""


def _exchange(connection: TimedSocket) -> bytes:
    """Sends a ping in a frame and returns the content of the frame that comes back."""
    content = BytesIO()
    write_message_begin(content, f"{_SERVICE}:{_METHOD}", TMessageType.CALL, 0)  # type: ignore[no-untyped-call]
    write_field_stop(content)  # type: ignore[no-untyped-call]
    request = content.getvalue()
    connection.sendall(struct.pack("!i", len(request)) + request)
    with connection.makefile("rb") as incoming:
        header = _take(incoming, 4)
        for start, protocol in _OTHERS.items():
            if header.startswith(start):
                raise _NotAmsError(f"it speaks {protocol}")
        (length,) = struct.unpack("!i", header)
        if not 0 <= length <= _LARGEST_REPLY:
            raise _NotAmsError(f"it announces a reply of {length} bytes")
        return _take(incoming, length)


def _take(incoming: BinaryIO, length: int) -> bytes:
    found = incoming.read(length)
    if len(found) < length:
        raise _NotAmsError("it closed the connection instead of answering")
    return found


def _check_reply(reply: bytes) -> None:
    """Raises unless it is the reply to a ping, and nothing else."""
    content = BytesIO(reply)
    try:
        name, kind, _ = read_message_begin(content)  # type: ignore[no-untyped-call]
    except struct.error as error:
        raise _NotAmsError("its reply ends in the middle") from error
    except UnicodeDecodeError as error:
        raise _NotAmsError("it names a method that is no text") from error
    rest = content.read()
    if name != _METHOD or kind not in {TMessageType.REPLY, TMessageType.EXCEPTION}:
        raise _NotAmsError(f"it sends message {name!r} of type {kind}, not the reply to ping")
    if kind == TMessageType.EXCEPTION:
        raise _NotAmsError(f"it refuses the call: {_complaint(rest)}")
    if rest != _NO_FIELDS:
        raise _NotAmsError("its reply holds more or less than the reply to ping")


def _complaint(body: bytes) -> str:
    """The message of an encoded TApplicationException, where it comes first as it should."""
    start = len(_TEXT_FIELD) + 4
    if not body.startswith(_TEXT_FIELD) or len(body) < start:
        return "(no reason given)"
    (length,) = struct.unpack("!i", body[start - 4 : start])
    return body[start : start + max(length, 0)].decode(errors="replace") or "(no reason given)"
