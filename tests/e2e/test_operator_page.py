"""The page for operators of Amoro: what it has them type starts what it says, without a warning."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.web_server

PAGE: Final = (Path(__file__).parents[2] / "docs" / "amoro.md").read_text(encoding="utf-8")
CONFIGURATION: Final = """
ams: {database: {type: sqlite}, optimizer: {auto-restart-enabled: true}}
keeper: {check-interval: 1s}
containers:
  - name: w
    container-impl: dagster_amoro.CommandContainer
    properties: {command: [sleep, "{resource_id}"]}
"""
SAYS: Final = {  # when it is up
    "dagster-webserver": "Serving dagster-webserver",
    "dagster-daemon": "0 resources, 0 orphans",
    "dagster-amoro": "nothing to be put right",
}


def commands() -> list[list[str]]:
    """The page's programs with their arguments, of those that there are here."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    words = [shlex.split(line, comments=True) for line in "".join(blocks).splitlines()]
    return [each for each in words if each and each[0] in SAYS]


def free_port() -> str:
    """Another port than that of a UI which runs here already."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    """One of them, ended after use."""
    program = Path(sys.executable).with_name(command[0])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, *command[1:]], env=environment, cwd=log.parent, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


def _says(log: Path, text: str) -> bool:
    return text in log.read_text()


def test_its_commands_print_no_warning(tmp_path: Path) -> None:
    """The check, the UI and the daemon, each typed when the one before is up.

    Two that make Dagster's SQLite storage at the same moment spoil it: its table of versions gets
    two rows then.
    """
    found = commands()
    assert {each[0] for each in found} == SAYS.keys()
    for name in ("home", "conf"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "dagster.yaml").touch()
    (tmp_path / "conf" / "config.yaml").write_text(CONFIGURATION)
    folders = {"DAGSTER_HOME": str(tmp_path / "home"), "AMORO_CONF_DIR": str(tmp_path / "conf")}
    logs = {each[0]: tmp_path / f"{each[0]}.log" for each in found}
    with ExitStack() as stack:
        for command in found:
            port = ["-p", free_port()] if command[0] == "dagster-webserver" else []
            environment = {**os.environ, **folders}
            log = logs[command[0]]
            stack.enter_context(running([*command, *port], log, environment))
            wait_until(partial(_says, log, SAYS[command[0]]))
    for log in logs.values():
        text = log.read_text()
        assert not re.search("warn|deprecat|supersed", text, re.IGNORECASE), text
