import json
import threading
import time
from collections.abc import Callable
from typing import Final

import pytest

from dagster_amoro.ams import client
from dagster_amoro.ams.client import Ams
from dagster_amoro.ams.leader import Server, always
from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.errors import AmsUnavailableError, ContainerError
from tests.helpers.ams import AmsLookAlike, Canned

SLACK: Final = 5.0  # seconds that a busy machine may take on top of a timeout
PATH: Final = "/api/ams/v1/versionInfo"


def ams_at(port: int, timeout: float = 5.0, host: str = "127.0.0.1") -> Ams:
    """An AMS whose HTTP port is this one."""
    return Ams(always(Server(host=host, thrift_port=1, http_port=port)), timeout=timeout)


def answer(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    """An HTTP response that ends with the connection."""
    return f"HTTP/1.1 {status}\r\n{headers}\r\n".encode() + body


def version_info(version: object, code: int = 200) -> bytes:
    """What AMS answers."""
    result = {"version": version, "commitTime": "UNKNOWN"}
    return answer(json.dumps({"message": "success", "code": code, "result": result}).encode())


def problem(reply: bytes, *, stays: bool = False, timeout: float = 5.0) -> str:
    """Why no version is known from a server that answers so; its address is left out."""
    with Canned(reply, stays=stays) as other, pytest.raises(AmsUnavailableError) as caught:
        ams_at(other.port, timeout).version()
    start = f"http://127.0.0.1:{other.port}{PATH} "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


@pytest.mark.parametrize(
    ("version", "ams_version"),
    [
        ("0.7.1-incubating(0e2aa1b)", AmsVersion.V0_7),
        ("0.8.1-incubating(f00ba42)", AmsVersion.V0_8),
        ("0.9.0-incubating(abc1234)", AmsVersion.V0_9_0),
        ("0.9-SNAPSHOT(96a4d78)", AmsVersion.V0_9),
        ("0.10.0(0000000)", AmsVersion.V0_9),
    ],
)
def test_version(version: str, ams_version: AmsVersion) -> None:
    """AMS says its version, and what it means for starting optimizers."""
    with AmsLookAlike(version=version) as ams:
        asking = Ams(always(Server("localhost", ams.thrift_port, ams.http_port)))
        assert asking.version() == version
        assert asking.ams_version() == ams_version


def test_ping_names_the_leader() -> None:
    """A ping says which server answered, and fails with the reason where none did."""
    with AmsLookAlike() as ams:
        server = Server("127.0.0.1", ams.thrift_port, ams.http_port)
        asking = Ams(always(server), timeout=0.2)
        assert asking.ping() == server
        ams.behaviour = "hangs"
        with pytest.raises(AmsUnavailableError, match=r"not within 0\.2 s"):
            asking.ping()


def test_no_leader() -> None:
    """Where nobody leads, nobody is asked."""

    def nobody() -> Server:
        raise AmsUnavailableError("nobody leads")

    asking = Ams(nobody)
    for question in (asking.ping, asking.version):
        with pytest.raises(AmsUnavailableError, match="nobody leads"):
            question()
    with pytest.raises(ContainerError, match="the version of AMS is not known: nobody leads; set"):
        asking.ams_version()


def test_configured_version() -> None:
    """A configured version is not asked for."""
    asking = Ams(always(Server("127.0.0.1", 1, 1)), ams_version=AmsVersion.V0_8)
    assert asking.ams_version() is AmsVersion.V0_8


def test_path_of_old() -> None:
    """0.7 wants a login at the first path and answers at the second."""
    with Canned(version_info(None, code=403)) as refusing:
        asking = ams_at(refusing.port)
        paths = []

        def respond(path: str) -> bytes:
            paths.append(path)
            return version_info("0.7.1(x)", code=403 if path == PATH else 200)

        refusing.respond = respond
        assert asking.version() == "0.7.1(x)"
    assert paths == [PATH, "/ams/v1/versionInfo"]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"", "cannot be read: RemoteDisconnected: "),
        (b"\x15\x03\x01\x00\x02\x02\x46", "cannot be read: BadStatusLine: "),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200, "cannot be read: HTTPException: "),
        (b"HTTP/1.1 200 OK\r\na: " + b"b" * 70_000, "cannot be read: LineTooLong: "),
        (answer(b"{", headers="Content-Length: 5\r\n"), "gives no version: '{' is not JSON"),
        (
            answer(b"zz\r\n", headers="Transfer-Encoding: chunked\r\n"),
            "cannot be read: IncompleteRead",
        ),
        (answer(b"Not Found", "404 Not Found"), "gives no version: status 404"),
        (
            answer(b"", "302 Found", "Location: http://127.0.0.1:1/\r\n"),
            "gives no version: status 302",
        ),
        (answer(b"<html>"), "gives no version: '<html>' is not JSON"),
        (answer(b"\xff\xfe\xfa"), "gives no version: "),
        (answer(b"[" * 100_000), "gives no version: '[["),
        (answer(b"[]"), "gives no version: it says '[]'"),
        (
            answer(b'{"message":"Please login first","code":403,"requestId":""}'),
            'gives no version: it says \'{"message":"Please login first"',
        ),
        (answer(b'{"code":200}'), "gives no version: there is none in "),
        (answer(b'{"code":200,"result":[]}'), "gives no version: there is none in "),
        (version_info(None), "gives no version: there is none in "),
        (version_info(""), "gives no version: there is none in "),
        (version_info(9), "gives no version: there is none in "),
        (answer(b" " * ((1 << 20) + 1)), "gives no version: more than 1048576 bytes"),
    ],
)
def test_no_version(reply: bytes, reason: str) -> None:
    """Whatever else answers says why it gives no version, in few words."""
    found = problem(reply)
    assert found.startswith(reason)
    assert len(found) < 400


def test_nobody_listens() -> None:
    """A refused connection is named as the system names it."""
    with AmsLookAlike() as ams:
        ams.stop()
        with pytest.raises(AmsUnavailableError, match="cannot be read: ConnectionRefusedError"):
            ams_at(ams.http_port).version()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a\0b", "ä" * 300])
def test_no_such_host(host: str) -> None:
    """A host that there is not, or cannot be."""
    with pytest.raises(AmsUnavailableError, match="cannot be read: "):
        ams_at(1630, host=host).version()


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\n", answer(b'{"code":')])
def test_too_slow(reply: bytes) -> None:
    """Silence before, in and after the headers ends with the timeout."""
    start = time.monotonic()
    assert problem(reply, stays=True, timeout=0.2) == "does not answer within 0.2 s"
    assert time.monotonic() - start < 0.2 + SLACK


def test_drips() -> None:
    """The timeout is one for everything: single bytes do not extend it."""
    with Canned(version_info("0.9.0(x)")) as dripping:
        dripping.pause = 0.05
        start = time.monotonic()
        with pytest.raises(AmsUnavailableError, match=r"does not answer within 0\.3 s"):
            ams_at(dripping.port, timeout=0.3).version()
        assert time.monotonic() - start < 0.3 + SLACK


def test_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """AMS is asked directly, whatever proxy the environment names."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with AmsLookAlike() as ams:
        assert ams_at(ams.http_port).version() == ams.version


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("null(null)", "AMS says that it is 'null(null)': not a version"),
        ("0.6.1(x)", "AMS says that it is '0.6.1(x)': older than 0.7"),
        ("9" * 9_000 + ".0", "AMS says that it is '999"),
    ],
)
def test_useless_version(version: str, reason: str) -> None:
    """A text that is no version is shown, with what to do about it."""
    with AmsLookAlike(version=version) as ams, pytest.raises(ContainerError) as caught:
        ams_at(ams.http_port).ams_version()
    assert str(caught.value).startswith(f"the version of AMS is not known: {reason}")
    assert str(caught.value).endswith("; set keeper.ams-version, for example to 0.9")
    assert len(str(caught.value)) < 500


class Time:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """What the clock says."""
        return self.now


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Time:
    """The clock by which answers grow old."""
    moment = Time()
    monkeypatch.setattr(client, "time", moment)
    return moment


def test_answer_holds_for_a_minute(moment: Time) -> None:
    """An upgrade of AMS is seen after a minute, not before."""
    with AmsLookAlike(version="0.8.1(x)") as ams:
        asking = ams_at(ams.http_port)
        assert asking.ams_version() is AmsVersion.V0_8
        ams.version = "0.9.1(x)"
        moment.now += 59.9
        assert asking.ams_version() is AmsVersion.V0_8
        moment.now += 0.1
        assert asking.ams_version() is AmsVersion.V0_9


@pytest.mark.usefixtures("moment")
def test_failure_is_not_remembered() -> None:
    """An AMS that was not there at first is asked again at once."""
    with AmsLookAlike() as ams:
        asking = ams_at(ams.http_port)
        ams.stop()
        with pytest.raises(ContainerError, match=r"ConnectionRefused.*; set keeper\.ams-version"):
            asking.ams_version()
        ams.start()
        assert asking.ams_version() is AmsVersion.V0_9_0


def test_last_answer_holds_on(moment: Time) -> None:
    """While AMS is away, what it said last is what counts, and it is asked once a minute."""
    with AmsLookAlike() as ams:
        asking = ams_at(ams.http_port)
        assert asking.ams_version() is AmsVersion.V0_9_0
        ams.stop()
        moment.now += 60
        assert asking.ams_version() is AmsVersion.V0_9_0
        ams.version = "0.9.1(x)"
        ams.start()
        assert asking.ams_version() is AmsVersion.V0_9_0
        moment.now += 60
        assert asking.ams_version() is AmsVersion.V0_9


def test_many_threads_ask_once() -> None:
    """Threads that want the version at the same moment share one answer."""
    asked: list[str] = []

    def respond(path: str) -> bytes:
        asked.append(path)
        return version_info("0.9.0(x)")

    with Canned(b"") as ams:
        ams.respond = respond
        found = _in_threads(ams_at(ams.port).ams_version, 8)
    assert found == [AmsVersion.V0_9_0] * 8
    assert asked == [PATH]


def _in_threads(call: Callable[[], AmsVersion], number: int) -> list[AmsVersion]:
    found: list[AmsVersion] = []
    barrier = threading.Barrier(number)

    def work() -> None:
        barrier.wait(10)
        found.append(call())

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found
