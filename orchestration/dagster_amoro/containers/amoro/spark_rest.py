"""What does a Spark standalone master say of a driver over its REST port, and how does it end one?

The port is there if the master runs with `spark.master.rest.enabled`. `spark-submit --kill` and
`--status` use it too, and end with 0 whatever it answers.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from dagster_amoro.containers.rest import Answer, RestError, ask
from dagster_amoro.core.errors import shorten
from dagster_amoro.core.secrets import Mask

SUBMISSION_ID: Final = re.compile(r"driver-[0-9]{14}-[0-9]{4,}")
"""What a standalone master calls a driver."""

_NOBODY: Final = "driver-00000000000000-0000"  # an id that no master gives
_FINAL: Final = frozenset({"FINISHED", "FAILED", "KILLED", "ERROR"})
_STANDBY: Final = "Current state is not alive"  # how a master says that another one leads
_POLL_SECONDS: Final = 0.25
_TIMEOUT: Final = 10.0  # seconds for a request and its answer
_SHOWN: Final = 600  # characters of what Spark says; it answers with whole stack traces


class Driver(NamedTuple):
    """A driver as its master knows it."""

    state: str  # SUBMITTED, RUNNING, FAILED, …
    message: str = ""  # what the cluster says went wrong; often empty
    worker: str = ""  # host and port of the worker that it runs on; empty if on none

    @property
    def is_over(self) -> bool:
        """Whether it will never run again."""
        return self.state in _FINAL


@dataclass(frozen=True, slots=True)
class SparkRest:
    """The REST ports of one cluster's masters.

    Each method raises a RestError where no leading master answers.
    """

    urls: Sequence[str]  # one for each master, such as `http://host:6066`; the leading one is used
    mask: Mask  # hides what errors may not show

    def ping(self) -> None:
        """Sees whether there is a leading master."""
        self.driver(_NOBODY)

    def driver(self, submission_id: str) -> Driver | None:
        """A driver; None if the master has none of this id, any more or yet."""
        answer = self._ask("GET", f"status/{submission_id}")
        if answer.get("success") is not True:
            return None
        message = shorten(self.mask.hide(str(answer.get("message", ""))), _SHOWN)
        state, worker = (str(answer.get(key, "")) for key in ("driverState", "workerHostPort"))
        return Driver(state, message, worker)

    def kill(self, submission_id: str) -> bool:
        """Asks for the end of a driver; returns whether there was one to end."""
        return self._ask("POST", f"kill/{submission_id}").get("success") is True

    def end(self, submission_id: str, patience: float) -> None:
        """Ends a driver, unless it is unknown; a RestError if `patience` seconds go by before."""
        if not self.kill(submission_id):
            return
        if (driver := self.watch(submission_id, patience)) is not None and not driver.is_over:
            raise RestError(
                f"driver {submission_id} is {driver.state} still, {patience:g} s after its kill"
            )

    def watch(self, submission_id: str, seconds: float) -> Driver | None:
        """A driver when it is over, or as it is after so many seconds; None if it is unknown."""
        deadline = time.monotonic() + seconds
        while (driver := self.driver(submission_id)) is not None:
            if driver.is_over or time.monotonic() >= deadline:
                break
            time.sleep(_POLL_SECONDS)
        return driver

    def _ask(self, method: str, path: str) -> Mapping[str, Any]:
        """What the leading master answers."""
        problems = []
        for base in self.urls:
            url = f"{base}/v1/submissions/{path}"
            try:
                return _body(ask(method, url, _TIMEOUT))
            except RestError as error:
                problems.append(f"{method} {url}: {error}")
        raise RestError(self.mask.hide(f"Spark's REST port, {'; '.join(problems)}"))


def _body(answer: Answer) -> Mapping[str, Any]:
    """What a leading master says of drivers."""
    body = answer.body or {}
    message = str(body.get("message") or "")
    if not isinstance(body.get("success"), bool):
        shown = shorten(message, _SHOWN) or f"{answer.kind}, which is not Spark's REST API"
        raise RestError(f"answered {answer.status} with {shown}")
    if _STANDBY in message:
        raise RestError(message)
    return body
