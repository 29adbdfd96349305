"""Which version of AMS runs, and is it there at all?"""

import json
import threading
import time
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from typing import Final

from dagster_amoro.ams.leader import FindLeader, Server
from dagster_amoro.ams.sockets import Deadline, connect
from dagster_amoro.core.ams_version import AmsVersion, parse_version
from dagster_amoro.core.errors import AmsUnavailableError, ContainerError, describe, shorten

_KNOWN_FOR: Final = 60.0  # seconds until the version is asked for again
_PATHS: Final = ("/api/ams/v1/versionInfo", "/ams/v1/versionInfo")  # the second one before 0.8
_LARGEST_BODY: Final = 1 << 20  # bytes
_LONGEST_QUOTE: Final = 200  # characters


class Ams:
    """The AMS that leads. Threads may share it."""

    def __init__(
        self, find_leader: FindLeader, *, ams_version: AmsVersion | None = None, timeout: float = 5
    ) -> None:
        """Connects to nothing yet; `ams_version` is the configured one, None: AMS is asked for it.

        `timeout` is in seconds, for each question, whatever AMS sends.
        """
        self._find_leader = find_leader
        self._configured = ams_version
        self._timeout = timeout
        self._asking = threading.Lock()
        self._learned: AmsVersion | None = None
        self._ask_again_at = 0.0

    def ping(self) -> Server:
        """Which AMS leads and answers its optimizers; an AmsUnavailableError where none does."""
        from dagster_amoro.ams.ping import ping  # noqa: PLC0415 - loads thriftpy2

        server = self._find_leader()
        ping(server, self._timeout)
        return server

    def ams_version(self) -> AmsVersion:
        """The configured version, else the one that AMS says it has.

        An answer holds for a minute. If AMS does not answer after that, the last answer stays.

        Raises:
            ContainerError: AMS never answered.
        """
        if self._configured is not None:
            return self._configured
        with self._asking:
            if self._learned is None or time.monotonic() >= self._ask_again_at:
                try:
                    self._learned = self._ask()
                except AmsUnavailableError as error:
                    if self._learned is None:
                        raise ContainerError(
                            f"the version of AMS is not known: {error}; "
                            "set keeper.ams-version, for example to 0.9"
                        ) from error
                self._ask_again_at = time.monotonic() + _KNOWN_FOR
            return self._learned

    def version(self) -> str:
        """The version as AMS writes it, such as `0.9.0-incubating(abc1234)`.

        The first one that one of the paths gives; where none does, why the first did not.

        Raises:
            AmsUnavailableError: It does not say.
        """
        server, deadline = self._find_leader(), Deadline(self._timeout)
        problems = []
        for path in _PATHS:
            url = f"http://{server.at(server.http_port)}{path}"
            try:
                return _version_in(_get(server, path, deadline))
            except AmsUnavailableError as error:
                problems.append(f"{url} gives no version: {error}")
            except TimeoutError:
                problems.append(f"{url} does not answer within {deadline.seconds:g} s")
                break
            except (OSError, HTTPException, ValueError, OverflowError) as error:
                problems.append(f"{url} cannot be read: {shorten(describe(error), _LONGEST_QUOTE)}")
        raise AmsUnavailableError(problems[0])

    def _ask(self) -> AmsVersion:
        version = self.version()
        try:
            return parse_version(version)
        except ValueError as error:
            quoted = shorten(repr(version), _LONGEST_QUOTE)
            raise AmsUnavailableError(f"AMS says that it is {quoted}: {error}") from error


def _get(server: Server, path: str, deadline: Deadline) -> bytes:
    """The body behind a path, asked for directly: no proxy, no redirect, no login."""
    with closing(HTTPConnection(server.host, server.http_port)) as connection:
        connection.sock = connect(server.host, server.http_port, deadline)
        connection.request("GET", path, headers={"Connection": "close"})
        with connection.getresponse() as response:
            body = response.read(_LARGEST_BODY + 1)
            if response.status != 200:  # noqa: PLR2004 - AMS answers with 200 whatever it means
                raise AmsUnavailableError(f"status {response.status}")
    if len(body) > _LARGEST_BODY:
        raise AmsUnavailableError(f"more than {_LARGEST_BODY} bytes")
    return body


def _version_in(body: bytes) -> str:
    """What `VersionController` of AMS puts into an answer; an error comes with status 200 too."""
    quoted = shorten(repr(body.decode(errors="replace")), _LONGEST_QUOTE)
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        raise AmsUnavailableError(f"{quoted} is not JSON") from None
    match answer:
        case {"code": 200, "result": {"version": str(version)}} if version:
            return version
        case {"code": 200}:
            raise AmsUnavailableError(f"there is none in {quoted}")
        case _:
            raise AmsUnavailableError(f"it says {quoted}")
