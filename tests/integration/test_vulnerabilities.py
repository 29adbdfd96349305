"""The report on known vulnerabilities: they are found, there are none, or nobody can be asked."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import pytest

pytestmark = pytest.mark.long
CHECKOUT: Final = Path(__file__).parents[2]
ID: Final = "GHSA-0000-0000-0001"


class Source(ThreadingHTTPServer):
    """A look-alike of the source that uv asks; it knows a vulnerability of one package."""

    def __init__(self, vulnerable: str) -> None:
        self.vulnerable = vulnerable
        self.asked = 0
        super().__init__(("127.0.0.1", 0), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: Source

    def do_POST(self) -> None:
        """Says of each package that is asked for what is known."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        queries = json.loads(content)["queries"]
        self.server.asked += len(queries)
        known = {"vulns": [{"id": ID, "modified": "2026-01-01T00:00:00Z"}]}
        names = [query["package"]["name"] for query in queries]
        self.answer({"results": [known if n == self.server.vulnerable else {} for n in names]})

    def do_GET(self) -> None:
        """Says all there is about it."""
        day = "2026-01-01T00:00:00Z"
        self.answer({"id": ID, "modified": day, "published": day, "summary": "it is bad"})

    def answer(self, content: object) -> None:
        """Sends JSON."""
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def source(vulnerable: str) -> Iterator[Source]:
    """A source that runs."""
    with Source(vulnerable) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def report(port: int) -> str:
    """What the script says; it never fails."""
    script, uv = CHECKOUT / "scripts/vulnerabilities.sh", Path(sys.executable).parent / "uv"
    argv = [str(script), str(uv), "--service-url", f"http://127.0.0.1:{port}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_what_is_known_is_told() -> None:
    """Which package, which version, what it is; of all that the lock file names."""
    with source("sqlalchemy") as server:
        told = report(server.server_address[1])
    assert told.startswith("Of the versions in uv.lock, vulnerabilities are known:")
    assert "sqlalchemy" in told
    assert ID in told
    assert server.asked > 100


def test_nothing_known_is_told_apart() -> None:
    """From nobody having been asked."""
    with source("no-such-package") as server:
        assert report(server.server_address[1]).startswith("No vulnerability is known")


def test_that_nobody_could_be_asked_is_told() -> None:
    """A machine without a network fails no run."""
    told = report(1)
    assert told.startswith("Nobody could be asked")
    assert "127.0.0.1" not in told
