"""What does a Flink cluster say over its REST port, and how does it run and end jobs?"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple
from urllib.parse import quote
from uuid import uuid4

from dagster_amoro.containers.amoro.base import is_true
from dagster_amoro.containers.rest import Answer, RestError, ask
from dagster_amoro.containers.waiting import within
from dagster_amoro.core.errors import shorten
from dagster_amoro.core.secrets import Mask

_LARGEST_PORT: Final = 65535
_OVER: Final = frozenset({"FINISHED", "CANCELED", "FAILED"})
_POLL_SECONDS: Final = 0.2
_CHUNK: Final = 1 << 16  # bytes of a jar that are sent at a time
_SHOWN: Final = 600  # characters of an error; Flink answers with whole stack traces
_NOISE: Final = re.compile(
    r"at \S+\(|\.\.\. \d+ more|<?Exception on server side:|End of exception|Internal server error"
)
_GONE: Final = frozenset({404, 409})  # no such job; one that has ended already
_NOT_FOUND: Final = 404
_BAD_REQUEST: Final = 400  # the least status of a refusal


class Job(NamedTuple):
    """A job as Flink knows it."""

    name: str
    state: str  # RUNNING, FAILED, …

    @property
    def is_over(self) -> bool:
        """Whether it will never run again."""
        return self.state in _OVER


def base_url(conf: Mapping[str, str]) -> str:
    """Where the REST port is; a RestError says that Flink's settings do not say it.

    The leader of a Flink with high availability is not looked up.
    """
    host = conf.get("rest.address") or conf.get("jobmanager.rpc.address")
    if not host:
        raise RestError(
            "where Flink's REST port is, is not known: neither flink-conf.rest.address in the "
            "container's properties nor rest.address in Flink's configuration says it"
        )
    port = conf.get("rest.port", "8081")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) <= _LARGEST_PORT:
        raise RestError(f"rest.port is {port!r}; right is a number from 1 to {_LARGEST_PORT}")
    scheme = "https" if is_true(conf.get("security.ssl.rest.enabled")) else "http"
    bare = host.strip("[]")
    return f"{scheme}://{f'[{bare}]' if ':' in bare else bare}:{port}"


@dataclass(frozen=True, slots=True)
class FlinkRest:
    """The REST port of one Flink cluster.

    Each method that asks it raises a RestError where Flink refuses or does not answer.
    """

    base: str  # as `base_url` says it
    timeout: float  # seconds for a request and its answer; for each part of a jar
    mask: Mask  # hides what errors may not show
    upload_timeout: float = 600.0  # seconds for a whole jar

    def overview(self) -> Mapping[str, Any]:
        """What the cluster has; also the test whether it is one."""
        return self._ask("GET", "/overview")

    def provide(self, jar: Path) -> str:
        """The id that a jar has in the cluster, where it is uploaded unless it is there.

        AMS goes by the name alone and so runs an older jar of that name; here the name carries a
        digest of the content. An OSError says that the jar cannot be read.
        """
        with jar.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            name = f"{digest[:16]}-{re.sub(r'[^A-Za-z0-9._-]', '_', jar.name)}"
            return self._jar_id(name) or self._upload(file, name)

    def run(self, jar_id: str, submission: Mapping[str, Any]) -> str:
        """Runs a jar as this request says; returns the id of its job.

        After an error without a status the answer was lost, and the job may run.
        """
        answer = self._ask("POST", f"/jars/{quote(jar_id, safe='')}/run", json=submission)
        return self._text(answer, "jobid")

    def job(self, job_id: str) -> Job | None:
        """A job; None if the cluster has none of this id, any more or yet."""
        try:
            answer = self._ask("GET", f"/jobs/{job_id}")
        except RestError as error:
            if error.status == _NOT_FOUND:
                return None
            raise
        return Job(str(answer.get("name", "")), self._text(answer, "state"))

    def job_ids(self) -> list[str]:
        """The ids of all jobs that the cluster knows, those that are over included."""
        jobs = self._ask("GET", "/jobs/overview").get("jobs")
        known = jobs if isinstance(jobs, list) else []
        return [str(each.get("jid", "")) for each in known if isinstance(each, dict)]

    def failure(self, job_id: str) -> str:
        """Why a job failed; empty if Flink does not say."""
        with suppress(RestError):
            answer = self._ask("GET", f"/jobs/{job_id}/exceptions")
            return self.mask.hide(essence(answer.get("root-exception")))
        return ""

    def cancel(self, job_id: str) -> bool:
        """Asks for the end of a job; returns whether there was one to end."""
        try:
            self._ask("PATCH", f"/jobs/{job_id}", params={"mode": "cancel"})
        except RestError as error:
            if error.status in _GONE:
                return False
            raise
        return True

    def end(self, job_id: str, patience: float) -> None:
        """Cancels a job and waits until it is over; a RestError if `patience` seconds go by."""
        self.cancel(job_id)
        deadline = time.monotonic() + patience
        while (job := self.job(job_id)) and not job.is_over:
            if time.monotonic() >= deadline:
                raise RestError(
                    f"Flink job {job_id} is {job.state} still, {patience:g} s after its cancelling"
                )
            time.sleep(_POLL_SECONDS)

    def withdraw(self, job_id: str, patience: float) -> None:
        """Cancels a job that may run, or may appear within so many seconds, if that can be done."""
        with suppress(RestError):
            within(patience, lambda: self.cancel(job_id), _POLL_SECONDS)

    def _jar_id(self, name: str) -> str | None:
        files = self._ask("GET", "/jars").get("files")
        known = files if isinstance(files, list) else []
        named = (each for each in known if isinstance(each, dict) and each.get("name") == name)
        return next((each.get("id") for each in named), None)

    def _upload(self, file: BinaryIO, name: str) -> str:
        upload = _Upload(file, name, self.upload_timeout)
        headers, total = {"Content-Type": upload.content_type}, self.upload_timeout
        answer = self._ask("POST", "/jars/upload", data=upload, headers=headers, total=total)
        return self._text(answer, "filename").rpartition("/")[2]

    def _text(self, answer: Mapping[str, Any], key: str) -> str:
        value = answer.get(key)
        if not isinstance(value, str) or not value:
            shown = self.mask.hide(shorten(json.dumps(answer), _SHOWN))
            raise RestError(f"{self.base} answered without {key!r}: {shown}")
        return value

    def _ask(self, method: str, path: str, **content: Any) -> Mapping[str, Any]:  # noqa: ANN401 - those of requests
        url = f"{self.base}/v1{path}"
        try:
            return _body(ask(method, url, self.timeout, **content))
        except RestError as error:
            shown = self.mask.hide(f"Flink, {method} {url}: {error}")
            raise RestError(shown, error.status) from None


def _body(answer: Answer) -> Mapping[str, Any]:
    if answer.body is None:
        raise RestError(
            f"answered {answer.status} with {answer.kind}, which is not Flink's REST interface"
        )
    if answer.status < _BAD_REQUEST:
        return answer.body
    why = essence(answer.body.get("errors")) or answer.reason
    raise RestError(f"{answer.status}: {why}", answer.status)


def essence(errors: object) -> str:
    """The lines of Flink's errors that say something: messages and causes, no stack traces."""
    texts = errors if isinstance(errors, list) else [errors]
    lines = [line.strip() for text in texts for line in str(text or "").splitlines()]
    telling = dict.fromkeys(line for line in lines if line and not _NOISE.match(line))
    return shorten("\n".join(telling), _SHOWN)


class _Upload:
    """The body of an upload, read from its file while it is sent; it takes `seconds` at most."""

    def __init__(self, file: BinaryIO, name: str, seconds: float) -> None:
        boundary = uuid4().hex
        self._seconds: Final = seconds
        self.content_type: Final = f"multipart/form-data; boundary={boundary}"
        self._file: Final = file
        self._size: Final = file.seek(0, os.SEEK_END)
        self._head: Final = (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="file_0"; filename="{name}"\r\n'
            "Content-Type: application/java-archive\r\n\r\n"
        ).encode()
        self._tail: Final = f"\r\n--{boundary}--\r\n".encode()

    def __len__(self) -> int:
        """Its bytes, which make the Content-Length."""
        return len(self._head) + self._size + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        """Its parts."""
        deadline = time.monotonic() + self._seconds
        yield self._head
        self._file.seek(0)
        while part := self._file.read(_CHUNK):
            if time.monotonic() >= deadline:
                raise RestError(f"the upload is not over after {self._seconds:g} s")
            yield part
        yield self._tail
