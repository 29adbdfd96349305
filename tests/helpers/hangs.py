"""What calls that hang hang on, and which processes they leave."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final
from uuid import uuid4

import psutil
import pytest

from dagster_amoro.core.container_settings import ContainerSettings

WAYS: Final = ("in_python", "in_a_lock", "in_a_child", "on_a_drip", "on_an_endless_answer")


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        """Drips, or pours, without an end."""
        with suppress(OSError):
            self.send_response(200)
            self.end_headers()
            while True:
                self.wfile.write(b"x" if self.path == "/drip" else b"x" * 65536)
                time.sleep(0.05 if self.path == "/drip" else 0)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def marked(home: Path) -> Iterator[str]:
    """What is on the command line or in the environment of each process that a container starts."""
    mark = uuid4().hex
    with (
        pytest.MonkeyPatch.context() as patch,
        ThreadingHTTPServer(("127.0.0.1", 0), _Answers) as server,
    ):
        patch.setenv("DAGSTER_HOME", str(home))
        patch.setenv("HANGING_MARK", mark)
        patch.setenv("HANGING_SERVER", f"http://127.0.0.1:{server.server_address[1]}")
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield mark
        server.shutdown()


def settings(
    implementation: type, properties: Mapping[str, str], name: str = "c"
) -> ContainerSettings:
    """The entry of the configuration for a class."""
    where = f"{implementation.__module__}.{implementation.__qualname__}"
    return ContainerSettings(name=name, implementation=where, properties=properties)


def processes_of(mark: str) -> list[psutil.Process]:
    """The living processes with this mark on their command line or in their environment."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_marked = mark in process.cmdline() or process.environ().get("HANGING_MARK") == mark
            is_other = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if is_marked and is_other:
                found.append(process)
    return found
