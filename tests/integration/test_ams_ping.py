import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from typing import Final

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dagster_amoro.ams.leader import Server
from dagster_amoro.ams.ping import ping
from dagster_amoro.core.errors import AmsUnavailableError
from dagster_amoro.core.texts import harmless
from tests.helpers.ams import AmsLookAlike, Canned
from tests.helpers.waiting import PATIENCE

SLACK: Final = 5.0  # seconds that a busy machine may take on top of a timeout
REPLY: Final = b"\x80\x01\x00\x02\x00\x00\x00\x04ping\x00\x00\x00\x00\x00"  # as AMS sends it
EXCEPTION: Final = b"\x80\x01\x00\x03" + REPLY[4:-1]


def framed(message: bytes) -> bytes:
    """A message as it travels."""
    return struct.pack("!i", len(message)) + message


def server(port: int, host: str = "127.0.0.1") -> Server:
    """An AMS of which only the Thrift port matters."""
    return Server(host=host, thrift_port=port, http_port=1)


def refused(port: int, host: str = "127.0.0.1", timeout: float = 5.0) -> str:
    """Why a ping fails; every reason begins with the address."""
    with pytest.raises(AmsUnavailableError) as caught:
        ping(server(port, host), timeout)
    text = str(caught.value)
    host = harmless(host)
    assert text.startswith(f"[{host}]:{port} " if ":" in host else f"{host}:{port} ")
    return text


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Fails where the block takes much longer."""
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds + SLACK


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_ams_answers(host: str) -> None:
    """A ping of an AMS that is there returns, by address and by name."""
    with AmsLookAlike() as ams:
        ping(server(ams.thrift_port, host), PATIENCE)
        ping(server(ams.thrift_port, host), PATIENCE)


def test_ams_drips() -> None:
    """A reply that comes byte by byte is a reply, where it comes in time."""
    with AmsLookAlike() as ams:
        ams.behaviour = "drips"
        ping(server(ams.thrift_port), PATIENCE)


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_ipv6() -> None:
    """An IPv6 address works, and errors have it in brackets."""
    try:
        ams = Canned(framed(REPLY), host="::1")
    except OSError:
        pytest.skip("this machine has no IPv6 loopback address")
    with ams:
        ping(server(ams.port, "::1"), PATIENCE)
        ams.reply = b""
        refused(ams.port, "::1")


def test_nobody_listens() -> None:
    """A refused connection is named as the system names it."""
    with AmsLookAlike() as ams:
        ams.behaviour = "refuses"
        assert "does not answer a Thrift ping: ConnectionRefusedError: " in refused(ams.thrift_port)
        ams.behaviour = "answers"
        ping(server(ams.thrift_port), PATIENCE)
        ams.stop()
        assert "ConnectionRefusedError" in refused(ams.thrift_port)
        ams.start()
        ping(server(ams.thrift_port), PATIENCE)


@pytest.mark.parametrize("behaviour", ["hangs", "drips"])
def test_too_slow(behaviour: str) -> None:
    """The timeout is one for everything: neither silence nor single bytes extend it."""
    with AmsLookAlike() as ams:
        ams.behaviour = behaviour  # type: ignore[assignment] # of the parametrization
        with no_longer_than(0.2):
            text = refused(ams.thrift_port, timeout=0.2)
    assert text.endswith("does not answer a Thrift ping: not within 0.2 s")


def test_full_backlog() -> None:
    """A server that does not even accept is given up after the timeout too."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        port = listening.getsockname()[1]
        with no_longer_than(0.2):
            assert "not within 0.2 s" in refused(port, timeout=0.2)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "a\0b", "ä" * 300])
def test_no_such_host(host: str) -> None:
    """A host that there is not, or cannot be."""
    assert "does not answer a Thrift ping: " in refused(1261, host)


@pytest.mark.parametrize("port", [65_536, -1, 2**40])
def test_no_such_port(port: int) -> None:
    """A port that there cannot be."""
    assert "does not answer a Thrift ping: " in refused(port)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "it closed the connection instead of answering"),
        (framed(REPLY)[:-1], "it closed the connection instead of answering"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "it speaks TLS"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "it speaks TLS"),
        (struct.pack("!i", (1 << 20) + 1), "it announces a reply of 1048577 bytes"),
        (struct.pack("!i", 2**31 - 1), "it announces a reply of 2147483647 bytes"),
        (struct.pack("!i", -1), "it announces a reply of -1 bytes"),
        (framed(b""), "its reply ends in the middle"),
        (framed(REPLY[:-1]), "its reply holds more or less than the reply to ping"),
        (framed(REPLY[4:]), "No protocol version header"),
        (framed(b"\x80\x02" + REPLY[2:]), "Bad version in read_message_begin: "),
        (framed(REPLY.replace(b"ping", b"pong")), "it sends message 'pong' of type 2"),
        (framed(REPLY.replace(b"ping", b"\xff" * 4)), "it names a method that is no text"),
        (framed(b"\x80\x01\x00\x01" + REPLY[4:]), "it sends message 'ping' of type 1"),
        (framed(REPLY[:-1] + b"\x08\x00\x00\x00\x00\x00\x07\x00"), "its reply holds more"),
        (
            framed(EXCEPTION + b"\x0b\x00\x01\x00\x00\x00\x04Nope\x08\x00\x02\x00\x00\x00\x01\x00"),
            "it refuses the call: Nope",
        ),
        (framed(EXCEPTION + b"\0"), "it refuses the call: (no reason given)"),
        (framed(EXCEPTION + b"\x0b\x00\x01\x00"), "it refuses the call: (no reason given)"),
        (framed(EXCEPTION + b"\x0b\x00\x01\xff\xff\xff\xff!"), "it refuses the call: (no reason"),
    ],
)
def test_not_ams(reply: bytes, reason: str) -> None:
    """Whatever else answers is told from AMS, in words."""
    with Canned(reply) as other:
        assert f" answers, but not as AMS does: {reason}" in refused(other.port)


def test_talks_nonsense() -> None:
    """An AMS that sends frames without messages is not taken for one that answers."""
    with AmsLookAlike() as ams:
        ams.behaviour = "talks nonsense"
        assert "answers, but not as AMS does" in refused(ams.thrift_port)


def test_long_complaint() -> None:
    """A refusal with a long text is shown in part."""
    body = EXCEPTION + b"\x0b\x00\x01" + struct.pack("!i", 500_000) + b"x" * 500_000 + b"\0"
    with Canned(framed(body)) as other:
        assert len(refused(other.port)) < 500


def test_list_without_end() -> None:
    """A list of 2 billion elements that take no bytes is not counted through."""
    endless = b"\x0f\x00\x01" + b"\x01" + struct.pack("!i", 2**31 - 1) + b"\0"
    with Canned(framed(REPLY[:-1] + endless)) as other, no_longer_than(0):
        refused(other.port)
    with Canned(framed(EXCEPTION + endless)) as other, no_longer_than(0):
        refused(other.port)


def test_largest_reply_is_read() -> None:
    """A frame of just the accepted length is read before it is judged."""
    with Canned(framed(REPLY + b"\0" * ((1 << 20) - len(REPLY)))) as other:
        assert "its reply holds more" in refused(other.port)


def test_silent_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a ping that is answered nor one that is not writes into the log."""
    with caplog.at_level(0), Canned(b"?") as other:
        refused(other.port)
        other.reply = framed(REPLY)
        ping(server(other.port), 5)
    assert caplog.records == []


@pytest.fixture(scope="module")
def canned() -> Iterator[Canned]:
    """A server whose reply the test sets."""
    with Canned(b"") as serving:
        yield serving


def replies() -> st.SearchStrategy[bytes]:
    """Bytes, frames of bytes, messages of bytes, and replies with some bytes changed."""
    noise = st.binary(max_size=60)
    changed = st.dictionaries(st.integers(0, len(REPLY) + 3), st.integers(0, 255), max_size=3).map(
        lambda changes: bytes(
            changes.get(place, byte) for place, byte in zip(count(), framed(REPLY), strict=False)
        )
    )
    return st.one_of(
        noise,
        noise.map(framed),
        noise.map(lambda rest: framed(REPLY[:-1] + rest)),
        noise.map(lambda rest: framed(EXCEPTION + rest)),
        changed,
    )


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(reply=b"\0", stays=True)
@given(reply=replies(), stays=st.booleans())
def test_any_bytes(canned: Canned, reply: bytes, stays: bool) -> None:  # noqa: FBT001 - hypothesis
    """Whatever a server sends, there is an answer or one kind of error, and within the timeout."""
    canned.reply, canned.stays = reply, stays
    with no_longer_than(0.05), suppress(AmsUnavailableError):
        ping(server(canned.port), 0.05)
