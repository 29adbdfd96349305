"""Whoever is told by our code, as servers on this machine: over HTTP, and by e-mail."""

import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What somebody sent."""

    path: str
    headers: dict[str, str]  # by their names in small letters
    body: bytes
    at: float  # when it came, by the monotonic clock

    @property
    def values(self) -> Any:  # noqa: ANN401 - JSON
        """The body, which is JSON."""
        return json.loads(self.body)


@dataclass
class Receiver:
    """A web server that remembers, and answers as it is told to."""

    url: str = ""
    heard: list[Request] = field(default_factory=list)
    status: int = 200
    answer: bytes = b'{"ok": true, "status": "success"}'
    hangs: bool = False


class _Http(BaseHTTPRequestHandler):
    def __init__(self, *arguments: Any, receiver: Receiver) -> None:  # noqa: ANN401 - the base's
        self._receiver = receiver
        super().__init__(*arguments)

    def do_POST(self) -> None:
        """Remembers, and answers; or hangs, a byte at a time."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        found = Request(path=self.path, headers=headers, body=body, at=time.monotonic())
        self._receiver.heard.append(found)
        with suppress(OSError):
            self.send_response(self._receiver.status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            while self._receiver.hangs:
                self.wfile.write(b" ")
                time.sleep(0.02)
            self.wfile.write(self._receiver.answer)

    do_GET = do_POST  # noqa: N815 - as the base class has it

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A web server on a port of its own."""
    receiver = Receiver()
    handler: Callable[..., BaseHTTPRequestHandler] = partial(_Http, receiver=receiver)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield receiver
        receiver.hangs = False
        server.shutdown()


class _Smtp(socketserver.StreamRequestHandler):
    def __init__(self, *arguments: Any, mails: list[EmailMessage]) -> None:  # noqa: ANN401 - as above
        self._mails = mails
        super().__init__(*arguments)

    def handle(self) -> None:
        """Takes mails, from whoever and for whomever."""
        self._say("220 here")
        for line in self.rfile:
            match line.split()[0].upper():
                case b"DATA":
                    self._say("354 go on")
                    self._mails.append(self._mail())
                    self._say("250 taken")
                case b"QUIT":
                    self._say("221 bye")
                    return
                case _:
                    self._say("250 ok")

    def _mail(self) -> EmailMessage:
        lines = list(iter(self.rfile.readline, b".\r\n"))
        found = message_from_bytes(b"".join(lines), policy=policy.default)
        assert isinstance(found, EmailMessage)
        return found

    def _say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


@contextmanager
def receiving_mail() -> Iterator[tuple[int, list[EmailMessage]]]:
    """The port of a mail server, and the mails that it took."""
    mails: list[EmailMessage] = []
    handler: Callable[..., socketserver.BaseRequestHandler] = partial(_Smtp, mails=mails)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], mails
        server.shutdown()
