"""An AMS to test against: real Thrift and HTTP on loopback ports, and the rows that AMS writes.

It does what AMS does with its `optimizer` rows: a registration inserts one with a new token, a
heartbeat touches it by the database's clock, and whoever was not heard of for too long is deleted
(`DefaultOptimizingService`). It says nothing of tables and never hands out a task.
"""

import json
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from io import BytesIO, StringIO
from typing import Any, Final, Literal, Self
from uuid import uuid4

import sqlalchemy as sa
import thriftpy2
from thriftpy2.protocol import TBinaryProtocolFactory, TMultiplexedProtocolFactory
from thriftpy2.protocol.binary import TBinaryProtocol
from thriftpy2.rpc import make_client
from thriftpy2.thrift import TMultiplexedProcessor, TProcessor
from thriftpy2.transport import TFramedTransportFactory
from thriftpy2.transport.memory import TMemoryBuffer

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import optimizer, resource, resource_group

Behaviour = Literal["answers", "refuses", "hangs", "talks nonsense", "drips"]

SERVICE: Final = "OptimizeManager"
NONSENSE: Final = b"\x00\x00\x00\x0a0123456789"  # a frame, and no message in it
DRIP_SECONDS: Final = 0.05  # between two bytes
_memory: Any = TMemoryBuffer  # the library's constructors have no types
_binary: Any = TBinaryProtocol
_factory: Any = TBinaryProtocolFactory
_UNKNOWN_GROUP: Final = 1001
_UNKNOWN_TOKEN: Final = 2006
_DATABASE_FAILED: Final = 1000
_LARGEST_FRAME: Final = 1 << 20

IDL: Final = thriftpy2.load_fp(
    StringIO("""
        exception AmoroException { 1: i32 errorCode; 2: string errorName; 3: string message; }
        struct OptimizingTaskId { 1: i64 processId; 2: i32 taskId; }
        struct OptimizingTask {
            1: OptimizingTaskId taskId; 2: optional binary taskInput;
            3: optional map<string, string> properties;
        }
        struct OptimizerRegisterInfo {
            1: optional string resourceId; 2: i32 threadCount; 3: i32 memoryMb; 4: i64 startTime;
            5: string groupName; 6: optional map<string, string> properties;
        }
        service OptimizingService {
            void ping()
            void touch(1: string authToken) throws (1: AmoroException e1)
            OptimizingTask pollTask(1: string authToken, 2: i32 threadId)
                throws (1: AmoroException e1)
            string authenticate(1: OptimizerRegisterInfo registerInfo)
                throws (1: AmoroException e1)
        }
    """),
    module_name="ams_look_alike_thrift",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Registration:
    """What an optimizer said of itself when it registered."""

    token: str
    resource_id: str | None
    group: str
    threads: int
    memory_mb: int
    properties: Mapping[str, str]


class AmsLookAlike:
    """AMS, as far as optimizers and whoever asks for its version can see it.

    Use it as a context manager. Its ports stay the same from construction to the end, whether it
    is there or not.
    """

    # Whether it deletes all rows when it starts, as a real one was seen to do. It does not always:
    # its code keeps those that it hears of in time.
    forgets: bool = True

    def __init__(
        self, url: sa.URL | None = None, version: str = "0.9.0-incubating(abc1234)"
    ) -> None:
        """Keeps rows in the database `url`, whose tables must exist; without one, in memory."""
        self.version = version
        self.registrations: list[Registration] = []
        self._database = Database(url, "AMS") if url else None
        self._touched: dict[str, float] = {}
        self._behaviour: Behaviour = "answers"
        self._changed = threading.Condition()
        self._left_at: float | None = None
        self._servers: list[_Server] = []
        self._reserved = [_reserved_port(), _reserved_port()]
        self.thrift_port, self.http_port = (each.getsockname()[1] for each in self._reserved)
        self._processor = TMultiplexedProcessor()
        self._processor.register_processor(SERVICE, TProcessor(IDL.OptimizingService, self))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for each in self._reserved:
            each.close()
        if self._database is not None:
            self._database.close()

    @property
    def behaviour(self) -> Behaviour:
        """How it treats its Thrift clients, pings included; HTTP always answers."""
        return self._behaviour

    @behaviour.setter
    def behaviour(self, value: Behaviour) -> None:
        with self._changed:
            self._behaviour = value
            self._changed.notify_all()
        running = {server.port for server in self._servers}
        if value == "refuses":
            self._close(self.thrift_port)
        elif self.http_port in running and self.thrift_port not in running:
            self._servers.append(_Server(self.thrift_port, self._thrift_handler()))

    def start(self) -> None:
        """Comes up, or back; it has forgotten everybody before the port opens."""
        self._left_at = None
        known = self._tokens()
        now = time.monotonic()
        self._touched = {token: self._touched.get(token, now) for token in known}
        if self.forgets:
            self._delete(known)
        if self.behaviour != "refuses":
            self._servers.append(_Server(self.thrift_port, self._thrift_handler()))
        self._servers.append(_Server(self.http_port, self._http_handler()))

    def stop(self) -> None:
        """Goes away: connections are cut, and refused from now on; rows stay as they are."""
        if self._left_at is None:
            self._left_at = time.monotonic()
        with self._changed:
            self._changed.notify_all()
        self._close(self.thrift_port)
        self._close(self.http_port)

    def expire(self, seconds: float) -> int:
        """Deletes who was not heard of for so many seconds, by its own memory; how many."""
        oldest = time.monotonic() - seconds
        return self._delete([token for token, at in list(self._touched.items()) if at <= oldest])

    # What the Thrift service does; the names are those of its methods.

    def ping(self) -> None:
        """It is there."""

    def authenticate(self, registerInfo: Any) -> str:  # noqa: ANN401, N803 - a Thrift struct
        """Registers an optimizer."""
        registration = Registration(
            token=str(uuid4()),
            resource_id=registerInfo.resourceId,
            group=registerInfo.groupName,
            threads=registerInfo.threadCount,
            memory_mb=registerInfo.memoryMb,
            properties=registerInfo.properties or {},
        )
        with self._writing() as connection:
            if connection is not None:
                _insert(connection, registration, registerInfo.startTime)
        self._touched[registration.token] = time.monotonic()
        self.registrations.append(registration)
        return registration.token

    def touch(self, authToken: str) -> None:  # noqa: N803
        """Hears of an optimizer; a row that somebody else deleted does not come back."""
        if authToken not in self._touched:
            raise _error(
                _UNKNOWN_TOKEN, "PLUGIN_RETRY_AUTH", "Optimizer has not been authenticated"
            )
        self._touched[authToken] = time.monotonic()
        statement = sa.update(optimizer).where(optimizer.c.token == authToken)
        with self._writing() as connection:
            if connection is not None:
                connection.execute(statement.values(touch_time=sa.func.current_timestamp()))

    def pollTask(self, authToken: str, threadId: int) -> None:  # noqa: ARG002, N802, N803
        """There is no task, which it says after a while."""
        with self._changed:
            self._changed.wait(1)

    # How it does it.

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection | None]:
        if self._database is None:
            yield None
            return
        try:
            with self._database.writing() as connection:
                yield connection
        except StoreUnavailableError as error:
            raise _error(_DATABASE_FAILED, "PERSISTENCE_ERROR", str(error)) from error

    def _tokens(self) -> list[str]:
        with self._writing() as connection:
            if connection is None:
                return list(self._touched)
            return list(connection.scalars(sa.select(optimizer.c.token)))

    def _delete(self, tokens: list[str]) -> int:
        with self._writing() as connection:
            if connection is not None and tokens:
                connection.execute(sa.delete(optimizer).where(optimizer.c.token.in_(tokens)))
        for token in tokens:
            self._touched.pop(token, None)
        return len(tokens)

    def _release(self, resource_id: str) -> tuple[int, str]:
        """What its REST does to remove an optimizer: it knows those alone that are registered."""
        found = sa.select(optimizer.c.token).where(optimizer.c.resource_id == resource_id)
        with self._writing() as connection:
            if connection is None or not (tokens := list(connection.scalars(found))):
                return 500, "Index 0 out of bounds for length 0"
            connection.execute(sa.delete(resource).where(resource.c.resource_id == resource_id))
        self._delete(tokens)
        return 200, "success to release optimizer"

    def _close(self, port: int) -> None:
        for server in [each for each in self._servers if each.port == port]:
            self._servers.remove(server)
            server.stop()

    def _thrift_handler(self) -> type[socketserver.BaseRequestHandler]:
        ams = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with suppress(OSError, EOFError):  # the client, or AMS, went away
                    while True:
                        ams._serve(self.rfile, self.wfile)  # type: ignore[arg-type]

        return Handler

    def _serve(self, requests: BytesIO, replies: BytesIO) -> None:
        request = _read_frame(requests)
        with self._changed:
            self._changed.wait_for(lambda: self.behaviour != "hangs" or self._left_at is not None)
        if self._left_at is not None:
            raise EOFError("AMS has gone")
        reply = self._reply(request)
        if self.behaviour == "talks nonsense":
            replies.write(NONSENSE)
        elif self.behaviour == "drips":
            self._drip(reply, replies)
        else:
            replies.write(reply)

    def _reply(self, request: bytes) -> bytes:
        asked, written = _memory(request), _memory(b"")
        self._processor.process(_binary(asked), _binary(written))
        reply: bytes = written.getvalue()
        return struct.pack("!i", len(reply)) + reply

    def _drip(self, reply: bytes, replies: BytesIO) -> None:
        for byte in reply:
            with self._changed:
                self._changed.wait(DRIP_SECONDS)
            replies.write(bytes([byte]))

    def _http_handler(self) -> type[socketserver.BaseRequestHandler]:
        ams = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.path in {"/api/ams/v1/versionInfo", "/ams/v1/versionInfo"}
                result = {"version": ams.version, "commitTime": "UNKNOWN"}
                self._say({"message": "success", "code": 200, "result": result} if known else None)

            def do_DELETE(self) -> None:
                head, _, resource_id = self.path.rpartition("/")
                code, message = ams._release(resource_id)
                known = head == "/api/ams/v1/optimize/optimizers"
                self._say({"message": message, "code": code} if known else None)

            def _say(self, body: Mapping[str, Any] | None) -> None:
                self.send_response(
                    200 if body else 404
                )  # of an error, too: its code is in the body
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode() if body else b"Not Found")

            def log_message(self, *_: object) -> None:
                """Nothing is written to the tests' output."""

        return Handler


def register(
    port: int,
    resource_id: str | None,
    group: str,
    threads: int = 1,
    properties: Mapping[str, str] | None = None,
) -> str:
    """Registers an optimizer, as its process does; the token."""
    info = IDL.OptimizerRegisterInfo(
        resourceId=resource_id,
        threadCount=threads,
        memoryMb=512,
        startTime=int(time.time() * 1000),
        groupName=group,
        properties=dict(properties or {"heart-beat-interval": "10000"}),
    )
    with client(port) as connected:
        return str(connected.authenticate(info))


def touch(port: int, token: str) -> None:
    """One heartbeat; `IDL.AmoroException` with errorCode 2006 says to register again."""
    with client(port) as connected:
        connected.touch(token)


@contextmanager
def client(port: int) -> Iterator[Any]:
    """A Thrift client of the service on this port."""
    connected = make_client(
        IDL.OptimizingService,
        "127.0.0.1",
        port,
        proto_factory=TMultiplexedProtocolFactory(_factory(), SERVICE),
        trans_factory=TFramedTransportFactory(),
        timeout=10_000,
    )
    try:
        yield connected
    finally:
        connected.close()


class _Server(socketserver.ThreadingTCPServer):
    """Serves a loopback port from construction until it is stopped, leaving no thread behind."""

    allow_reuse_address = True
    request_queue_size = 64

    def __init__(
        self, port: int, handler: type[socketserver.BaseRequestHandler], host: str = "127.0.0.1"
    ) -> None:
        super().__init__((host, port), handler)
        self.port = int(self.server_address[1])
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        self._connections.discard(request)
        super().shutdown_request(request)

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class Canned(_Server):
    """Sends the same bytes to whoever asks for anything, and then hangs up or stays silent."""

    def __init__(self, reply: bytes, *, stays: bool = False, host: str = "127.0.0.1") -> None:
        self.reply = reply
        self.stays = stays
        self.pause = 0.0  # seconds before each byte; 0: all at once
        self.respond: Callable[[str], bytes] = lambda _path: self.reply  # by the path of a GET
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__(0, _CannedHandler, host)


class _CannedHandler(socketserver.BaseRequestHandler):
    server: Canned

    def handle(self) -> None:
        with suppress(OSError):
            words = self.request.recv(1 << 16).split()
            path = words[1].decode() if words[:1] == [b"GET"] else ""
            self._send(self.server.respond(path))
            while self.server.stays and self.request.recv(1 << 16):
                """The client has not hung up yet."""

    def _send(self, reply: bytes) -> None:
        if not self.server.pause:
            self.request.sendall(reply)
            return
        for byte in reply:
            time.sleep(self.server.pause)
            self.request.sendall(bytes([byte]))


def _reserved_port() -> socket.socket:
    """A port that nobody else is given and that refuses connections until someone listens."""
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    return reserved


def _read_frame(requests: BytesIO) -> bytes:
    (length,) = struct.unpack("!i", _read(requests, 4))
    if not 0 <= length <= _LARGEST_FRAME:
        raise EOFError("this is no Thrift client")
    return _read(requests, length)


def _read(requests: BytesIO, length: int) -> bytes:
    found = requests.read(length)
    if len(found) < length:
        raise EOFError("the client closed the connection")
    return found


def _insert(connection: sa.Connection, registration: Registration, start_ms: int) -> None:
    chosen = resource_group.c.group_name == registration.group
    group = connection.execute(sa.select(resource_group).where(chosen)).one_or_none()
    if group is None:
        raise _error(
            _UNKNOWN_GROUP, "OBJECT_NOT_EXISTS", f"ResourceGroup {registration.group} not found"
        )
    connection.execute(
        sa.insert(optimizer).values(
            token=registration.token,
            resource_id=registration.resource_id,
            group_name=registration.group,
            container_name=group.container_name,
            start_time=datetime.fromtimestamp(start_ms / 1000, UTC).replace(tzinfo=None),
            touch_time=sa.func.current_timestamp(),
            thread_count=registration.threads,
            total_memory=registration.memory_mb,
            properties=json.dumps(dict(registration.properties), separators=(",", ":")),
        )
    )


def _error(code: int, name: str, message: str) -> Exception:
    error: Exception = IDL.AmoroException(errorCode=code, errorName=name, message=message)
    return error
