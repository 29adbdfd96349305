"""A session cluster over REST: what the container asks, and every way in which it can go wrong."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dagster_amoro.containers.amoro.flink import FlinkContainer
from dagster_amoro.containers.amoro.flink_rest import base_url
from dagster_amoro.containers.rest import RestError
from dagster_amoro.core.errors import ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource

JOB = "e2a18fec415f14f3e73478412a872f29"
NAME = "amoro-flink-optimizer-r1"
LIST = "GET /v1/jobs/overview"
TRACE = (
    "<Exception on server side:\norg.apache.flink.RestHandlerException: Could not execute.\n"
    "\tat org.apache.flink.X.y(X.java:1)\nCaused by: java.lang.ClassNotFoundException: Nope\n"
    "\t... 9 more\nEnd of exception on server side>"
)


class Request(NamedTuple):
    """What was asked for."""

    line: str  # method and path, with the jobs' ids left out
    path: str
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """What is answered."""

    body: Any = None  # JSON, or text as it is
    status: int = 200
    kind: str = "application/json"


HANGS = Answer(status=0)  # until the test is over
CUT = Answer(status=0)  # the connection is closed


class Flink:
    """A session cluster that answers each kind of request with what is told, last answers stay."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.over = threading.Event()
        self.answers: dict[str, list[Answer]] = {
            "GET /v1/overview": [Answer({"slots-total": 8})],
            "GET /v1/jars": [Answer({"address": "http://x", "files": []})],
            "POST /v1/jars/upload": [Answer({"filename": "/u/1_o.jar", "status": "success"})],
            "POST /v1/jars/1_o.jar/run": [Answer({"jobid": JOB})],
            LIST: [Answer({"jobs": []})],
            "GET /v1/jobs/:id": [Answer({"name": NAME, "state": "RUNNING"})],
            "PATCH /v1/jobs/:id?mode=cancel": [Answer({}, 202)],
        }

    def answers_with(self, line: str, *answers: Answer) -> None:
        """Sets the answers to one kind of request."""
        self.answers[line] = list(answers)

    def answer(self, request: Request) -> Answer:
        """The next one; 404 as Flink has it for what nobody told."""
        self.requests.append(request)
        left = self.answers.get(request.line, [Answer({"errors": ["Not found."]}, 404)])
        return left.pop(0) if len(left) > 1 else left[0]

    @property
    def lines(self) -> list[str]:
        """The requests so far."""
        return [request.line for request in self.requests]

    def asked(self, line: str) -> Request:
        """The only request of this kind."""
        (found,) = (request for request in self.requests if request.line == line)
        return found


class Handler(BaseHTTPRequestHandler):
    """Reads a request and does with it what the cluster was told."""

    flink: Flink

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        line = f"{self.command} {re.sub('[0-9a-f]{32}', ':id', self.path)}"
        answer = self.flink.answer(Request(line, self.path, dict(self.headers), body))
        if answer is HANGS:
            self.flink.over.wait()
        if not answer.status:
            return
        text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_PATCH = _serve  # noqa: N815 - their names are given

    def log_message(self, *_: object) -> None:
        """Nothing is written to the tests' output."""


@pytest.fixture
def flink() -> Flink:
    """What the session cluster answers: all is well."""
    return Flink()


@pytest.fixture
def server(flink: Flink) -> Iterator[ThreadingHTTPServer]:
    """The session cluster."""
    handler = type("FlinkHandler", (Handler,), {"flink": flink})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = False
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        flink.over.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def session(server: ThreadingHTTPServer, tmp_path: Path) -> FlinkContainer:
    """A container for it; where it is stands in Flink's configuration."""
    (tmp_path / "o.jar").write_bytes(b"content")
    (tmp_path / "config.yaml").write_text(
        f"rest: {{address: 127.0.0.1, port: {server.server_port}}}"
    )
    found = FlinkContainer(
        "flink",
        {
            "target": "session",
            "flink-home": "/nowhere",
            "export.FLINK_CONF_DIR": str(tmp_path),
            "job-uri": str(tmp_path / "o.jar"),
            "ams-optimizing-uri": "thrift://127.0.0.1:1261",
            "ams-version": "0.9.1",
            "flink-conf.fs.secret-key": "hunter2hunter2",
        },
    )
    found.release_timeout = 0.0
    return found


def resource(properties: Mapping[str, str] | None = None) -> Resource:
    """A resource."""
    return Resource(
        resource_id="r1",
        group_name="g",
        container_name="flink",
        thread_count=2,
        memory_mb=0,
        properties=properties or {},
    )


STARTED = resource({"session-cluster-job-id": JOB})
RUN = "POST /v1/jars/1_o.jar/run"
CANCEL = "PATCH /v1/jobs/:id?mode=cancel"


class TestStart:
    """A start that goes well."""

    def test_requests(self, session: FlinkContainer, flink: Flink) -> None:
        """Those of AMS, in its order, and a look at the job."""
        assert session.request_resource(resource()) == {"session-cluster-job-id": JOB}
        assert flink.lines == [
            *("GET /v1/overview", "GET /v1/jars", "POST /v1/jars/upload", RUN),
            "GET /v1/jobs/:id",
        ]
        body = json.loads(flink.asked(RUN).body)
        assert re.fullmatch("[0-9a-f]{32}", body["jobId"])
        assert body == session.submission(resource(), body["jobId"])

    def test_the_upload(self, session: FlinkContainer, flink: Flink) -> None:
        """The jar as it is, under a name that changes with it."""
        session.request_resource(resource())
        upload = flink.asked("POST /v1/jars/upload")
        boundary = upload.headers["Content-Type"].partition("boundary=")[2]
        assert upload.body.decode() == (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="file_0"; filename="ed7002b439e9ac84-o.jar"\r\n'
            f"Content-Type: application/java-archive\r\n\r\ncontent\r\n--{boundary}--\r\n"
        )
        assert "Transfer-Encoding" not in upload.headers

    def test_a_large_jar_is_streamed(
        self, session: FlinkContainer, flink: Flink, tmp_path: Path
    ) -> None:
        """Part by part, and whole."""
        content = bytes(range(256)) * 12_000
        (tmp_path / "o.jar").write_bytes(content)
        session.request_resource(resource())
        assert content in flink.asked("POST /v1/jars/upload").body

    def test_the_same_jar_is_not_uploaded_again(
        self, session: FlinkContainer, flink: Flink
    ) -> None:
        """It is told by its content; another of the same base name does not count."""
        known = [
            {"id": "0_o.jar", "name": "o.jar"},
            {"id": "7_x", "name": "ed7002b439e9ac84-o.jar"},
        ]
        flink.answers_with("GET /v1/jars", Answer({"files": known}))
        flink.answers_with("POST /v1/jars/7_x/run", Answer({"jobid": JOB}))
        session.request_resource(resource())
        assert flink.lines[2] == "POST /v1/jars/7_x/run"

    def test_the_row_says_where_before_the_container(self, session: FlinkContainer) -> None:
        """And the container before Flink's configuration."""
        with pytest.raises(StartFailedError, match=r"http://127\.0\.0\.2:1/v1/overview"):
            session.request_resource(
                resource({"flink-conf.rest.address": "127.0.0.2", "flink-conf.rest.port": "1"})
            )

    def test_it_goes_past_proxies(
        self, session: FlinkContainer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are for other hosts."""
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert session.request_resource(resource())

    def test_a_job_that_cannot_be_looked_at_counts_as_started(
        self, session: FlinkContainer, flink: Flink
    ) -> None:
        """Flink accepted it; whether it registers decides."""
        flink.answers_with("GET /v1/jobs/:id", CUT)
        assert session.request_resource(resource())
        assert CANCEL not in flink.lines


class TestFailedStart:
    """Each way not to start, with what the message must say."""

    @pytest.mark.parametrize(
        ("line", "answer", "says"),
        [
            (
                "GET /v1/overview",
                Answer("<html>", 200, "text/html"),
                "200 with text/html, which is",
            ),
            (
                "GET /v1/overview",
                Answer("<html>", 404, "text/html"),
                "404 with text/html, which is",
            ),
            ("GET /v1/overview", Answer("[]"), "not Flink's REST interface"),
            ("GET /v1/overview", CUT, "RemoteDisconnected"),
            (
                "GET /v1/overview",
                Answer({"errors": ["Service temporarily"]}, 503),
                "503: Service te",
            ),
            ("GET /v1/jars", Answer({"errors": ["Not found."]}, 404), "jars: 404: Not found."),
            (
                "POST /v1/jars/upload",
                Answer({"errors": ["Only Jar files are allowed."]}, 400),
                "upload: 400: Only Jar files are allowed.",
            ),
            ("POST /v1/jars/upload", CUT, "POST http"),
            ("POST /v1/jars/upload", Answer({"status": "success"}), "without 'filename'"),
            (
                RUN,
                Answer({"errors": ["Internal server error.", TRACE]}, 500),
                "RestHandlerException: Could not execute.\n  | Caused by: java.lang.ClassNotFound",
            ),
            (RUN, Answer({"errors": ["hunter2hunter2 is wrong"]}, 400), "400: *** is wrong"),
            (RUN, Answer({}), "without 'jobid'"),
            (RUN, Answer({"jobid": 7}), "without 'jobid'"),
            ("GET /v1/jobs/:id", Answer({"errors": ["Job not found"]}, 404), "does not know it"),
            ("GET /v1/jobs/:id", Answer({"state": "FAILED"}), "is FAILED already: Flink does not"),
        ],
    )
    def test_reasons(
        self, session: FlinkContainer, flink: Flink, line: str, answer: Answer, says: str
    ) -> None:
        """The request, the status and the reason, no stack traces and no secrets."""
        flink.answers_with(line, answer)
        session.withdraw_timeout = 0
        with pytest.raises(StartFailedError, match=re.escape(says)) as caught:
            session.request_resource(resource())
        assert len(str(caught.value)) < 1000
        assert "hunter2" not in str(caught.value)

    def test_why_a_job_failed_at_once(self, session: FlinkContainer, flink: Flink) -> None:
        """Flink keeps it with the job."""
        flink.answers_with("GET /v1/jobs/:id", Answer({"name": NAME, "state": "FAILED"}))
        flink.answers_with("GET /v1/jobs/:id/exceptions", Answer({"root-exception": TRACE}))
        with pytest.raises(StartFailedError, match=r"already: org[\s\S]*ClassNotFound"):
            session.request_resource(resource())

    def test_no_answer_in_time(self, session: FlinkContainer, flink: Flink) -> None:
        """A hanging cluster does not hold up the keeper."""
        flink.answers_with("GET /v1/overview", HANGS)
        session._client_timeout = 0.2  # type: ignore[misc, assignment]
        with pytest.raises(StartFailedError, match=r"no answer within 0\.2 s"):
            session.request_resource(resource())

    @pytest.mark.parametrize("lost", [HANGS, CUT])
    def test_a_job_whose_answer_was_lost_is_cancelled(
        self, session: FlinkContainer, flink: Flink, lost: Answer
    ) -> None:
        """Even if it appears only later: nobody else would know of it."""
        flink.answers_with(RUN, lost)
        flink.answers_with(CANCEL, Answer({"errors": ["Job not found"]}, 404), Answer({}, 202))
        session._client_timeout = 2  # type: ignore[misc]
        with pytest.raises(StartFailedError, match=r"/run: "):
            session.request_resource(resource())
        submitted = json.loads(flink.asked(RUN).body)["jobId"]
        cancelled = [each.path for each in flink.requests if each.line == CANCEL]
        assert cancelled == [f"/v1/jobs/{submitted}?mode=cancel"] * 2

    def test_an_interrupted_submission_is_withdrawn(
        self, session: FlinkContainer, flink: Flink, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The run is told to stop just when Flink has accepted the job."""

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("dagster_amoro.containers.amoro.flink._require_alive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.request_resource(resource())
        assert flink.lines[-1] == CANCEL

    def test_there_is_no_jar(self, session: FlinkContainer, flink: Flink, tmp_path: Path) -> None:
        """A URI that a cluster would understand is none of this host's files."""
        (tmp_path / "o.jar").unlink()
        with pytest.raises(StartFailedError, match=r"no file .*o\.jar.*path of a jar on this host"):
            session.request_resource(resource())
        local = {**session.properties, "job-uri": "local:///opt/flink/usrlib/o.jar"}
        with pytest.raises(StartFailedError, match=r"'local:///opt/.*path of a jar"):
            FlinkContainer("flink", local).request_resource(resource())
        assert set(flink.lines) == {"GET /v1/overview"}

    def test_nobody_is_there(self, session: FlinkContainer, server: ThreadingHTTPServer) -> None:
        """The address and what the system says."""
        with pytest.raises(
            StartFailedError, match=r"GET http://127\.0\.0\.1:1/v1/overview.*Connection refused"
        ):
            session.request_resource(resource({"flink-conf.rest.port": "1"}))
        assert server.server_port != 1


class TestRelease:
    """The end of a job."""

    def test_cancelled(self, session: FlinkContainer, flink: Flink) -> None:
        """And waited for."""
        states = [{"name": NAME, "state": state} for state in ("RUNNING", "CANCELLING", "CANCELED")]
        flink.answers_with("GET /v1/jobs/:id", *map(Answer, states))
        session.release_timeout = 30
        session.release_resource(STARTED)
        assert flink.lines == [LIST, "GET /v1/jobs/:id", CANCEL, *["GET /v1/jobs/:id"] * 2]

    @pytest.mark.parametrize(
        "answer",
        [
            Answer({"errors": ["Job not found"]}, 404),
            *(Answer({"name": NAME, "state": s}) for s in ("FINISHED", "CANCELED", "FAILED")),
            Answer({"name": f"{NAME}x", "state": "RUNNING"}),
        ],
    )
    def test_gone_over_or_anothers(
        self, session: FlinkContainer, flink: Flink, answer: Answer
    ) -> None:
        """There is nothing to end."""
        flink.answers_with("GET /v1/jobs/:id", answer)
        session.release_resource(STARTED)
        assert flink.lines == [LIST, "GET /v1/jobs/:id"]

    @pytest.mark.parametrize("status", [404, 409])
    def test_over_meanwhile(self, session: FlinkContainer, flink: Flink, status: int) -> None:
        """Between the look and the cancelling."""
        running = Answer({"name": "of another kind", "state": "RUNNING"})
        flink.answers_with("GET /v1/jobs/:id", running, Answer({"errors": ["gone"]}, 404))
        flink.answers_with(CANCEL, Answer({"errors": ["gone"]}, status))
        session.release_resource(STARTED)
        assert CANCEL in flink.lines

    def test_nothing_started(self, session: FlinkContainer, flink: Flink) -> None:
        """And nothing of it runs that was not saved."""
        session.release_resource(resource())
        assert flink.lines == [LIST]

    @pytest.mark.parametrize("row", [resource(), STARTED])
    def test_what_followed_and_was_not_saved(
        self, session: FlinkContainer, flink: Flink, row: Resource
    ) -> None:
        """It is found by its id, which says what the row named when it was started."""
        for each in (resource({"session-cluster-job-id": JOB[::-1]}), row):
            session.request_resource(each)
        bodies = [json.loads(each.body) for each in flink.requests if each.line == RUN]
        older, lost = (body["jobId"] for body in bodies)
        flink.answers_with(LIST, Answer({"jobs": [{"jid": older}, {"jid": lost}, {}, 7]}))
        flink.answers_with("GET /v1/jobs/:id", Answer({"name": NAME, "state": "CANCELED"}))
        flink.requests.clear()
        session.release_resource(row)
        named = [JOB] if row is STARTED else []
        assert [each.path for each in flink.requests[1:]] == [
            f"/v1/jobs/{each}" for each in (*named, lost)
        ]

    def test_it_does_not_end(self, session: FlinkContainer) -> None:
        """The message says in which state it is."""
        with pytest.raises(ReleaseFailedError, match=f"{JOB} is RUNNING still"):
            session.release_resource(STARTED)

    @pytest.mark.parametrize("answer", [CUT, Answer({"errors": ["busy"]}, 503), Answer("x", 404)])
    @pytest.mark.parametrize("line", [LIST, "GET /v1/jobs/:id", CANCEL])
    def test_flink_does_not_say(
        self, session: FlinkContainer, flink: Flink, line: str, answer: Answer
    ) -> None:
        """A 404 that is not Flink's proves nothing."""
        flink.answers_with(line, answer)
        with pytest.raises(ReleaseFailedError, match="Flink, "):
            session.release_resource(STARTED)

    @pytest.mark.parametrize("text", ["../jars", "x", JOB[1:], f"{JOB}/y"])
    def test_no_job_id(self, session: FlinkContainer, flink: Flink, text: str) -> None:
        """What is not an id becomes no path."""
        with pytest.raises(ReleaseFailedError, match="no id of a Flink job"):
            session.release_resource(resource({"session-cluster-job-id": text}))
        assert flink.lines == []


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (Answer({"name": NAME, "state": "RUNNING"}), "running"),
        (Answer({"name": NAME, "state": "RESTARTING"}), "running"),
        (Answer({"name": NAME, "state": "FAILED"}), "ended"),
        (Answer({"errors": ["Job not found"]}, 404), "ended"),
        (Answer({"name": f"{NAME}x", "state": "RUNNING"}), "unknown"),
        (CUT, "unknown"),
        (Answer("x", 404), "unknown"),
    ],
)
def test_status(session: FlinkContainer, flink: Flink, answer: Answer, status: str) -> None:
    """Only what Flink says counts."""
    flink.answers_with("GET /v1/jobs/:id", answer)
    assert session.status(STARTED) == status


def test_why_its_job_ended(session: FlinkContainer, flink: Flink) -> None:
    """As Flink says it, without its stack trace and without secrets."""
    assert session.post_mortem(resource()) == ("never started", "its row names no Flink job", "")
    trace = "java.lang.IllegalStateException: no space left, hunter2hunter2\n\tat a.b.C(D.java:1)\n"
    flink.answers_with("GET /v1/jobs/:id", Answer({"name": NAME, "state": "FAILED"}))
    flink.answers_with("GET /v1/jobs/:id/exceptions", Answer({"root-exception": trace}))
    found = session.post_mortem(STARTED)
    assert found is not None
    assert found.cause == "failed"
    why = "java.lang.IllegalStateException: no space left, ***"
    assert found.text == f"its last Flink job {JOB} is FAILED: {why}"
    assert found.log == why
    flink.answers_with("GET /v1/jobs/:id", Answer({"errors": ["Job not found"]}, 404))
    found = session.post_mortem(STARTED)
    text = f"Flink does not know its last job {JOB} any more"
    assert found == ("unknown", text, "")


@pytest.mark.parametrize(
    ("conf", "url"),
    [
        ({"rest.address": "h"}, "http://h:8081"),
        ({"jobmanager.rpc.address": "j"}, "http://j:8081"),
        ({"jobmanager.rpc.address": "j", "rest.address": "h", "rest.port": "80"}, "http://h:80"),
        ({"rest.address": "h", "security.ssl.rest.enabled": "TRUE"}, "https://h:8081"),
        ({"rest.address": "::1"}, "http://[::1]:8081"),
        ({"rest.address": "[::1]"}, "http://[::1]:8081"),
    ],
)
def test_where_it_is(conf: Mapping[str, str], url: str) -> None:
    """Flink's own settings say it."""
    assert base_url(conf) == url


@pytest.mark.parametrize(
    ("conf", "says"),
    [
        ({}, "neither flink-conf.rest.address"),
        *(({"rest.address": "h", "rest.port": p}, "rest.port is") for p in ("0", "65536", "x", "")),
    ],
)
def test_where_it_is_not_said(conf: Mapping[str, str], says: str) -> None:
    """The message says which setting is meant."""
    with pytest.raises(RestError, match=says):
        base_url(conf)
