"""Servers that never come to an end: whoever is asked, the time and the size are limited.

Each of them goes on until the client hangs up. The deadlines are short, and an error that names
one is what is looked for; how long a busy machine takes to raise it is not.
"""

import itertools
import os
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from kubernetes.client import Configuration

from dagster_amoro.ams.client import Ams
from dagster_amoro.ams.leader import Server, always, from_zookeeper
from dagster_amoro.containers.amoro import spark_rest
from dagster_amoro.containers.amoro.flink_rest import FlinkRest
from dagster_amoro.containers.amoro.spark_rest import SparkRest
from dagster_amoro.containers.kubernetes.api import DEPLOYMENT, Objects, client_of
from dagster_amoro.containers.rest import LARGEST_ANSWER, RestError
from dagster_amoro.core.errors import AmsUnavailableError, KeeperError, describe
from dagster_amoro.core.secrets import Mask
from tests.helpers.attacks import ANSWERS, acts
from tests.helpers.certificates import self_signed

CHECKOUT: Final = Path(__file__).parents[2]
DEADLINE: Final = 0.2  # seconds
AMPLE: Final = 120.0  # seconds; not what the test is about
SLACK: Final = 5.0  # seconds that a busy machine may take on top of a deadline
PAUSE: Final = 0.02  # seconds between two bytes

Talk = Callable[[socket.socket], Iterator[bytes]]
Asking = Callable[[str, float], object]


# The servers.


class Talker(socketserver.ThreadingTCPServer):
    """Takes a request and then says what its `talk` does, until nobody listens any more."""

    daemon_threads = False  # so that no thread is left behind

    def __init__(self, talk: Talk, tls: ssl.SSLContext | None = None) -> None:
        self.talk = talk
        self.tls = tls
        self.requests = 0
        self.sent = 0  # bytes
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        """A connection; the handshake comes with its first use."""
        connection, address = super().get_request()
        if self.tls:
            connection = self.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.server_address[1]}"


class _Handler(socketserver.BaseRequestHandler):
    server: Talker

    def handle(self) -> None:
        with suppress(OSError):
            self.request.recv(1 << 16)
            self.server.requests += 1
            for part in self.server.talk(self.request):
                self.request.sendall(part)
                self.server.sent += len(part)


@contextmanager
def talking(talk: Talk, tls: ssl.SSLContext | None = None) -> Iterator[Talker]:
    """Such a server."""
    with Talker(talk, tls) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def silence(connection: socket.socket) -> Iterator[bytes]:
    """Nothing."""
    while connection.recv(1 << 16):
        yield b""


def dripping(start: bytes, *, drop: bytes = b"a") -> Talk:
    """This start, and then single drops."""

    def talk(_: socket.socket) -> Iterator[bytes]:
        yield start
        while True:
            time.sleep(PAUSE)
            yield drop

    return talk


def endless(start: bytes, part: bytes) -> Talk:
    """This start, and then more and more, as fast as can be."""
    return lambda _: itertools.chain([start], itertools.repeat(part))


def answering(head: str, body: bytes = b"") -> Talk:
    """An answer that has an end."""
    return lambda _: iter([f"HTTP/1.1 {head}\r\n\r\n".encode() + body])


OK: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
MIB: Final = b" " * (1 << 20)

SLOW: dict[str, Talk] = {
    "silence": silence,
    "a dripping status": dripping(b"HTTP/1.1 200 "),
    "a dripping header": dripping(OK + b"X: "),
    "dripping headers": dripping(OK, drop=b"X: a\r\n"),
    "endless interim answers": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a dripping body": dripping(OK + b"Content-Length: 1000000\r\n\r\n"),
    "a dripping body without a length": dripping(OK + b"\r\n"),
    "dripping chunks": dripping(CHUNKED, drop=b"1\r\na\r\n"),
    "a dripping size of a chunk": dripping(CHUNKED, drop=b"0"),
    "a dripping trailer": dripping(CHUNKED + b"2\r\n{}\r\n0\r\n", drop=b"X: a\r\n"),
}
LARGE: dict[str, Talk] = {
    "without a length": endless(OK + b"\r\n", MIB),
    "of the length that it says": endless(OK + b"Content-Length: 100000000000\r\n\r\n", MIB),
    "in chunks": endless(CHUNKED, b"100000\r\n" + MIB + b"\r\n"),
    "in one chunk": endless(CHUNKED + b"fffffffffff\r\n", MIB),
}


# Who asks them.


def flink(url: str, seconds: float) -> None:
    """Flink's REST port."""
    FlinkRest(url, seconds, Mask()).overview()


def spark(url: str, seconds: float) -> None:
    """The REST port of a Spark master."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark_rest, "_TIMEOUT", seconds)
        SparkRest([url], Mask()).ping()


def kubernetes(url: str, seconds: float) -> None:
    """The API of Kubernetes."""
    configuration = Configuration()
    configuration.host, configuration.retries = url, False
    configuration.ssl_ca_cert = os.environ.get("REQUESTS_CA_BUNDLE")
    with client_of(configuration) as client:
        Objects(
            client=client,
            kind=DEPLOYMENT,
            namespace="amoro",
            request_timeout=seconds,
            deletion_timeout=seconds,
        ).read("x")


def ams(url: str, seconds: float) -> None:
    """The REST API of AMS."""
    port = int(url.rpartition(":")[2])
    Ams(always(Server("127.0.0.1", 1, port)), timeout=seconds).version()


ASKING: dict[str, Asking] = {each.__name__: each for each in (flink, spark, kubernetes, ams)}
everybody = pytest.mark.parametrize("who", ASKING)


def problem(asking: Asking, url: str, seconds: float) -> str:
    """What the error says that asking ends with."""
    with pytest.raises(KeeperError) as caught:
        asking(url, seconds)
    return str(caught.value)


@pytest.fixture(scope="module", autouse=True)
def _libraries_are_loaded() -> None:
    """The first question imports them, which takes longer than a deadline."""
    for asking in ASKING.values():
        problem(asking, "http://127.0.0.1:1", AMPLE)


# What is shown.


@pytest.mark.long
@everybody
@pytest.mark.parametrize("how", SLOW)
def test_the_deadline_is_one_for_everything(who: str, how: str) -> None:
    """Nothing that comes makes it later."""
    with talking(SLOW[how]) as server:
        begin = time.monotonic()
        said = problem(ASKING[who], server.url, DEADLINE)
        assert time.monotonic() - begin < DEADLINE + SLACK
        assert any(words in said for words in ("within 0.2 s", "timed out")), said
    assert server.requests <= 1  # none, where the machine was too busy to take it


@pytest.mark.parametrize("who", ["flink", "kubernetes"])
@pytest.mark.parametrize("how", ["a dripping header", "a dripping body", "silence"])
def test_the_deadline_holds_under_tls(
    who: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, other code reads from the socket."""
    certificate = self_signed(tmp_path, "server")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    with talking(SLOW[how], tls) as server:
        said = problem(ASKING[who], server.url, 3 * DEADLINE)  # with a handshake
    assert any(words in said for words in ("within 0.6 s", "timed out")), said
    assert server.requests <= 1  # none, where the machine was too busy to take it


@everybody
@pytest.mark.parametrize("how", LARGE)
def test_an_endless_answer_is_given_up(who: str, how: str) -> None:
    """After a known number of bytes, beside those that wait in the system's buffers."""
    with talking(LARGE[how]) as server:
        said = problem(ASKING[who], server.url, AMPLE)
    assert "more than 1048576 bytes" in said if who == "ams" else "more than 16 MiB" in said
    assert server.sent < 3 * LARGEST_ANSWER


@everybody
@pytest.mark.parametrize("start", [b"", OK + b"X: ", CHUNKED])
def test_an_endless_line_is_given_up(who: str, start: bytes) -> None:
    """Be it a status, a header or the size of a chunk."""
    with talking(endless(start, b"1" * (1 << 20))) as server:
        problem(ASKING[who], server.url, AMPLE)
    assert server.sent < 3 * LARGEST_ANSWER


@everybody
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(who: str, status: int) -> None:
    """Whoever is asked is who was configured. What may be secret of the place is not shown."""
    with talking(answering("200 OK", b'{"success": true, "kind": "Deployment"}')) as other:
        place = f"{other.url}/x".replace("//", "//keeper:hunter2@")
        head = f"{status} Moved\r\nLocation: {place};s=hunter2?token=hunter2#hunter2"
        with talking(answering(f"{head}\r\nContent-Length: 0")) as server:
            said = problem(ASKING[who], server.url, AMPLE)
        assert f"status {status}" in said if who == "ams" else f"'{other.url}/x'" in said
        assert "hunter2" not in said
    assert (server.requests, other.requests) == (1 if who != "ams" else 2, 0)


@pytest.mark.long
@pytest.mark.parametrize("who", ["flink", "spark", "kubernetes"])
def test_nothing_is_decompressed(who: str) -> None:
    """Some bytes of gzip can become any number of them."""
    with talking(answering("200 OK\r\nContent-Encoding: gzip", b"\x1f\x8b")) as server:
        assert "200 with the unwanted coding 'gzip'" in problem(ASKING[who], server.url, AMPLE)


@everybody
def test_an_answer_that_is_nested_too_deeply(who: str) -> None:
    """It is none that anybody can read."""
    with talking(answering("200 OK", b"[" * 1_000_000)) as server:
        assert len(problem(ASKING[who], server.url, AMPLE)) < 2_000


@pytest.mark.long
@everybody
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_means_ill_is_an_error(who: str, answer: tuple[str, bytes]) -> None:
    """In time, and in a text that is short, that acts on nothing and holds no secret."""
    head, body = answer
    begin = time.monotonic()
    with talking(answering(f"{head}\r\nContent-Length: {len(body)}", body)) as server:
        said = describe(KeeperError(problem(ASKING[who], server.url, AMPLE)))
    assert time.monotonic() - begin < AMPLE / 2
    assert acts(said) == []
    assert "hunter2" not in said
    assert len(said) < 5000


@pytest.mark.long
@everybody
def test_no_answer_takes_all_the_memory(who: str) -> None:
    """The largest that is read, of the smallest things that there are."""
    body = b"[" + b"[]," * (LARGEST_ANSWER // 3 - 1000) + b"[]]"
    code = (
        "import resource, sys\n"
        "from tests.integration.test_endless_answers import ASKING, AMPLE, KeeperError\n"
        "try:\n    ASKING[sys.argv[1]](sys.argv[2], AMPLE)\n"
        "except KeeperError:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    with talking(answering(f"200 OK\r\nContent-Length: {len(body)}", body)) as server:
        argv = [sys.executable, "-c", code, who, server.url]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert int(done.stdout) < 1024  # MiB, Python and Dagster's libraries included


def test_a_slow_answer_of_the_largest_size_is_read() -> None:
    """What keeps within the limits is an answer as any other."""
    body = b'{"a":"' + b"x" * (LARGEST_ANSWER - 1024) + b'"}'

    def talk(_: socket.socket) -> Iterator[bytes]:
        yield OK + f"Content-Length: {len(body)}\r\n\r\n".encode()
        yield body[:1000]
        time.sleep(PAUSE)
        yield body[1000:]

    with talking(talk) as server:
        found = FlinkRest(server.url, AMPLE, Mask()).overview()
    assert len(found["a"]) == LARGEST_ANSWER - 1024


# ZooKeeper, whose client has threads.


@pytest.mark.parametrize(
    "talk",
    [
        dripping(struct.pack("!i", 1_000_000)),
        endless(struct.pack("!i", 2**31 - 1), MIB),
    ],
)
def test_a_zookeeper_that_goes_on_is_given_up(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its threads, one of which reads as long as there is something."""
    monkeypatch.setattr("dagster_amoro.ams.zookeeper._SECONDS", DEADLINE)
    before = set(threading.enumerate())
    with talking(talk) as server:
        begin = time.monotonic()
        with pytest.raises(AmsUnavailableError, match=r"no server answers within 0\.2 s"):
            from_zookeeper(server.url.removeprefix("http://"), "default", 1)()
        assert time.monotonic() - begin < DEADLINE + SLACK
    assert set(threading.enumerate()) <= before
    assert server.sent <= 16 * len(MIB) * server.requests


# Uploads, which may take longer.


def receiving(more: Callable[[], object]) -> Talk:
    """A Flink without jars, which calls `more` before it takes each part of what is uploaded."""
    questions = itertools.count()

    def talk(connection: socket.socket) -> Iterator[bytes]:
        body, end = b'{"files":[]}', b""
        if next(questions):
            body = b'{"filename":"/u/1_o.jar"}'
            while not end.endswith(b"--\r\n") and more():
                if not (part := connection.recv(1 << 18)):
                    return
                end = (end + part)[-10:]
        yield OK + f"Content-Length: {len(body)}\r\n\r\n".encode() + body

    return talk


def slowly() -> bool:
    """Some MiB a second."""
    time.sleep(PAUSE)
    return True


def jar(folder: Path, size: int) -> Path:
    """A file of so many bytes."""
    file = folder / "o.jar"
    with file.open("wb") as opened:
        opened.truncate(size)
    return file


def test_an_upload_may_take_longer_than_an_answer(tmp_path: Path) -> None:
    """As long as each part of it is taken in time."""
    seconds = 2.0
    with talking(receiving(slowly)) as server:
        begin = time.monotonic()
        rest = FlinkRest(server.url, seconds, Mask(), upload_timeout=AMPLE)
        assert rest.provide(jar(tmp_path, 32 << 20)) == "1_o.jar"
        assert time.monotonic() - begin > seconds


def test_an_upload_does_not_take_for_ever(tmp_path: Path) -> None:
    """Though each part of it is taken in time."""
    with talking(receiving(slowly)) as server:
        rest = FlinkRest(server.url, AMPLE, Mask(), upload_timeout=DEADLINE)
        begin = time.monotonic()
        with pytest.raises(RestError, match=r"the upload is not over after 0\.2 s"):
            rest.provide(jar(tmp_path, 64 << 20))
        assert time.monotonic() - begin < DEADLINE + SLACK


def test_an_upload_that_is_not_taken_is_given_up(tmp_path: Path) -> None:
    """Like any answer that does not come."""
    over = threading.Event()
    with talking(receiving(lambda: over.wait(AMPLE))) as server:
        rest = FlinkRest(server.url, DEADLINE, Mask())
        with pytest.raises(RestError, match=r"no answer within 0\.2 s"):
            rest.provide(jar(tmp_path, 64 << 20))
        over.set()
