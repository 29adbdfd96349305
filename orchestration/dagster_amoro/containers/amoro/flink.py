"""How are Amoro's optimizers started as Flink jobs, and ended?

The counterpart of `org.apache.amoro.server.manager.FlinkOptimizerContainer` in Amoro 0.7 to master.
"""

import hashlib
import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from dagster_amoro.containers import programs
from dagster_amoro.containers.amoro import yarn
from dagster_amoro.containers.amoro.base import OptimizerContainer, as_text, optimizer_name, usable
from dagster_amoro.containers.amoro.flink_conf import PREFIX, read_conf, with_sizes
from dagster_amoro.containers.amoro.flink_rest import FlinkRest, Job, base_url
from dagster_amoro.containers.base import Status
from dagster_amoro.containers.programs import Program, ProgramError
from dagster_amoro.containers.rest import RestError
from dagster_amoro.containers.waiting import within
from dagster_amoro.core.ams_version import AmsVersion, AskAmsVersion
from dagster_amoro.core.errors import ContainerError, ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import NEVER_STARTED, UNKNOWN, PostMortem, by_state

MAIN_CLASS: Final = "org.apache.amoro.optimizer.flink.FlinkOptimizer"
KUBERNETES_ID: Final = "kubernetes-cluster-id"
SESSION_ID: Final = "session-cluster-job-id"

_IMAGE: Final = "kubernetes.container.image"
_DEFAULT_JOB: Final = "/plugin/optimizer/flink/optimizer-job.jar"
_CLIENT_TIMEOUT: Final = "flink-client-timeout-second"
_JOB_NAME: Final = "amoro-flink-optimizer-"  # what the optimizer calls its job, its id follows
_MARK: Final = 16  # of the 32 digits of a job's id
_JOB_ID: Final = re.compile(r"[0-9a-f]{32}", re.IGNORECASE | re.ASCII)
_SPLIT_BY_FLINK: Final = re.compile(r"[\s\"']|\A\Z")  # what does not survive as a word of a text
_LIVE: Final = re.compile(r"[$`\"\\]")  # to a shell, within the double quotes of AMS
_SCRIPT_TIMEOUT: Final = 120.0  # seconds
_UNMAKEABLE: Final = {"jobmanager.memory.process.size": "1 kb"}
_REFUSED_TO_MAKE: Final = "IllegalConfigurationException"


class Target(StrEnum):
    """Where Flink runs the job."""

    YARN_PER_JOB = "yarn-per-job"
    YARN_APPLICATION = "yarn-application"
    KUBERNETES_APPLICATION = "kubernetes-application"
    SESSION = "session"

    @property
    def is_application(self) -> bool:
        """Whether a cluster is made for the job, which loads the job's jar itself."""
        return self in (Target.YARN_APPLICATION, Target.KUBERNETES_APPLICATION)

    @property
    def is_on_yarn(self) -> bool:
        """Whether YARN runs it."""
        return self in (Target.YARN_PER_JOB, Target.YARN_APPLICATION)


class FlinkContainer(OptimizerContainer):
    """Starts optimizers as Flink jobs: on YARN, on Kubernetes, or in a session cluster.

    | property | meaning |
    |---|---|
    | `flink-home` | where Flink is installed on this host; required |
    | `target` | `yarn-per-job` (default), `yarn-application`, `kubernetes-application`, `session` |
    | `job-uri` | the optimizer's jar; required for the two applications, otherwise Amoro's own |
    | `export.*` | environment of Flink's programs; `export.FLINK_CONF_DIR`: Flink's configuration |
    | `flink-conf.*` | options of Flink; those in a resource's row come first |
    | `flink-client-timeout-second` | for each request to a session cluster; 30 by default |

    It does what AMS does, apart from this: it works without any `export.*`; a failed program is a
    failed start; a size that AMS would give as `0 bytes`, since none is configured, is left out
    (Flink would refuse it); a session cluster gets a jar that has changed.

    A start saves `yarn-application-id`, `kubernetes-cluster-id` or `session-cluster-job-id`. What
    is ended is the job or the cluster that the row names, unless it is another optimizer's: the
    name of a Flink job or of an application on YARN decides, and a cluster on Kubernetes is always
    the one that has the resource's id in its name. A job in a session cluster that has not Amoro's
    kind of name is ended too: its id stands in no row but that of its own start.
    """

    # In seconds:
    start_timeout: float = 600.0  # for Flink's program to submit a job; AMS's limit
    release_timeout: float = 30.0  # for a job or a cluster to end after it was told to
    withdraw_timeout: float = 5.0  # to look for a job whose submission was broken off

    def __init__(
        self, name: str, properties: Mapping[str, str], ask_ams_version: AskAmsVersion | None = None
    ) -> None:
        super().__init__(name, properties, ask_ams_version)
        self.home: Final = self.required("flink-home").removesuffix("/")
        self.conf_folder: Final = Path(self.exports.get("FLINK_CONF_DIR") or f"{self.home}/conf")
        self.target: Final = self._target()
        if self.target.is_application:
            self.required("job-uri")
        self.job_uri: Final = self.properties.get("job-uri") or self.ams_home + _DEFAULT_JOB
        self._client_timeout: Final = self._seconds()
        on_kubernetes = self.target is Target.KUBERNETES_APPLICATION
        # AMS insists on an image; which one, and its other names, are left to Flink.
        if on_kubernetes and _IMAGE not in read_conf(self.conf_folder, AmsVersion.V0_9):
            self.required(PREFIX + _IMAGE)

    def command(self, resource: Resource) -> list[str]:
        """The program and arguments that submit the job; not for target `session`.

        Raises:
            StartFailedError: A size cannot be read, a property is missing, a value cannot be an
                argument, or the target is `session`.
        """
        if self.target is Target.SESSION:
            raise StartFailedError("target session has no command line: it is submitted over REST")
        action = "run-application" if self.target.is_application else "run"
        return usable(
            [
                *(f"{self.home}/bin/flink", action, f"--target={self.target}"),
                *_as_arguments(self._options(resource)),
                *("-c", MAIN_CLASS, self.job_uri, *self.arguments(resource)),
            ]
        )

    def submission(self, resource: Resource, job_id: str) -> dict[str, Any]:
        """What a session cluster is sent to run the job under this id.

        The arguments are AMS's one text, unless Flink would split or join some of them. A
        StartFailedError says that a property is missing, or that a value cannot be an argument.
        """
        found = self.arguments(resource)
        split = any(map(_SPLIT_BY_FLINK.search, found))
        return {
            "entryClass": MAIN_CLASS,
            **({"programArgsList": found} if split else {"programArgs": as_text(found, quote=str)}),
            "jobId": job_id,
            "allowNonRestoredState": True,
        }

    def differences(self, resource: Resource) -> list[str]:
        """In what a start differs from the one that AMS would make, its options included."""
        if self.target is Target.SESSION:  # AMS uses no shell there
            return []
        live = [key for key, text in self._options(resource).items() if _LIVE.search(text)]
        found = [f"AMS's shell would expand the options {', '.join(live)}"] if live else []
        return [*super().differences(resource), *found, *self.exports_of_ams()]

    def status(self, resource: Resource) -> Status:
        """Whether its job runs, which only a session cluster says."""
        job_id = resource.properties.get(SESSION_ID, "")
        if self.target is not Target.SESSION or not _JOB_ID.fullmatch(job_id):
            return "unknown"
        try:
            job = self._rest(resource).job(job_id)
        except ContainerError:
            return "unknown"
        if job is not None and _is_anothers(job, resource):
            return "unknown"
        return "ended" if job is None or job.is_over else "running"

    def post_mortem(self, resource: Resource) -> PostMortem | None:
        """What Flink's session, or YARN, says of its last job; None on Kubernetes."""
        if self.target is Target.KUBERNETES_APPLICATION:
            return None
        if self.target is not Target.SESSION:
            own = self.environment.variables
            return yarn.post_mortem(resource, yarn.application_name("flink", resource), own)
        job_id = resource.properties.get(SESSION_ID, "")
        if not _JOB_ID.fullmatch(job_id):
            return PostMortem(NEVER_STARTED, "its row names no Flink job")
        rest = self._rest(resource)
        job = rest.job(job_id)
        if job is None or _is_anothers(job, resource):
            return PostMortem(UNKNOWN, f"Flink does not know its last job {job_id} any more")
        return by_state(f"its last Flink job {job_id}", job.state, rest.failure(job_id))

    def _target(self) -> Target:
        try:
            return Target(self.properties.get("target", Target.YARN_PER_JOB).lower())
        except ValueError:
            raise self.not_accepted("target", f"; accepted are {', '.join(Target)}") from None

    def _seconds(self) -> int:
        text = self.properties.get(_CLIENT_TIMEOUT, "30")
        if not re.fullmatch(r"\+?[0-9]{1,9}", text) or not int(text):
            accepted = "; accepted is a whole number of seconds, 1 or more"
            raise self.not_accepted(_CLIENT_TIMEOUT, accepted)
        return int(text)

    def _options(self, resource: Resource) -> dict[str, str]:
        ams_version = self.ams_version
        conf = read_conf(self.conf_folder, ams_version)
        options = with_sizes(self.options(PREFIX, resource), resource.properties, conf, ams_version)
        options["yarn.application.name"] = yarn.application_name("flink", resource)
        if self.target.is_on_yarn:
            options["yarn.per-job-cluster.include-user-jar"] = "FIRST"
        else:
            options["kubernetes.cluster-id"] = optimizer_name(resource)
            for role in ("taskmanager", "jobmanager"):
                options[f"kubernetes.{role}.labels"] = _labels(resource)
        return options

    def _program(self, resource: Resource, argv: list[str], stdin: bytes = b"") -> Program:
        own, mask = self.environment.variables, self.mask(resource)
        return Program(argv=argv, environment=own, mask=mask, stdin=stdin)

    def _start(self, resource: Resource) -> dict[str, str]:
        if self.target is Target.SESSION:
            return {SESSION_ID: self._start_in_session(resource)}
        program = self._program(resource, self.command(resource))
        if self.target.is_on_yarn:
            log = self.log_of(resource)
            return {yarn.ID: yarn.start_application(program, log, self.start_timeout)}
        programs.run(program, self.start_timeout)
        return {KUBERNETES_ID: optimizer_name(resource)}

    def _end(self, resource: Resource) -> None:
        if self.target is Target.SESSION:
            self._end_in_session(resource)
        elif self.target is Target.KUBERNETES_APPLICATION:
            self._end_on_kubernetes(resource)
        elif application := resource.properties.get(yarn.ID):
            name = yarn.application_name("flink", resource)
            own = self.environment.variables
            yarn.end_application(application, name, own, self.mask(resource))

    def _end_on_kubernetes(self, resource: Resource) -> None:
        """Stops the cluster as AMS does, and waits until it is gone: its name is needed again.

        Also where the row names none: its start may have been killed before that was saved.
        Flink's script makes a new cluster where there is none; a size with which none can be made
        keeps it from that, and tells us.
        """
        cluster = optimizer_name(resource)
        options = {
            **self.options(PREFIX, resource),
            "kubernetes.cluster-id": cluster,
            **_UNMAKEABLE,
        }
        script = f"{self.home}/bin/kubernetes-session.sh"
        argv = usable([script, *_as_arguments(options), "-Dexecution.attached=true"])
        program = self._program(resource, argv, stdin=b"stop\n")
        if not within(self.release_timeout, lambda: _is_gone_after(program), pause=0):
            raise ReleaseFailedError(
                f"cluster {cluster} is there still, {self.release_timeout:g} s after its stop"
            )

    def _rest(self, resource: Resource) -> FlinkRest:
        conf = read_conf(self.conf_folder, self.ams_version) | self.options(PREFIX, resource)
        return FlinkRest(base_url(conf), self._client_timeout, self.mask(resource))

    def _start_in_session(self, resource: Resource) -> str:
        job_id = _mark(resource) + uuid4().hex[_MARK:]
        submission, rest = self.submission(resource, job_id), self._rest(resource)
        rest.overview()
        jar = Path(self.job_uri)
        if not jar.is_file():
            raise StartFailedError(
                f"there is no file {self.job_uri!r}; for target session, job-uri is the path of a "
                "jar on this host, from which it is uploaded"
            )
        return self._submit(rest, rest.provide(jar), submission)

    def _submit(self, rest: FlinkRest, jar_id: str, submission: Mapping[str, Any]) -> str:
        job_id = submission["jobId"]
        try:
            job_id = rest.run(jar_id, submission)
            _require_alive(rest, job_id)
        except BaseException as error:  # an interruption too: nobody else knows of the job
            answered = not isinstance(error, RestError) or error.status is not None
            rest.withdraw(job_id, 0 if answered else self.withdraw_timeout)
            raise
        return str(job_id)

    def _end_in_session(self, resource: Resource) -> None:
        """Ends the job that the row names, and those that followed it and were never saved."""
        named = resource.properties.get(SESSION_ID)
        if named and not _JOB_ID.fullmatch(named):
            raise ReleaseFailedError(f"{named!r} is no id of a Flink job; one has 32 hex digits")
        rest = self._rest(resource)
        unsaved = (each for each in rest.job_ids() if each.startswith(_mark(resource)))
        for job_id in filter(None, (named, *unsaved)):
            job = rest.job(job_id)
            if job and not job.is_over and not _is_anothers(job, resource):
                rest.end(job_id, self.release_timeout)


def _require_alive(rest: FlinkRest, job_id: str) -> None:
    """Looks once at a job that was accepted; where it cannot be seen, its registration decides."""
    try:
        job = rest.job(job_id)
    except RestError:
        return
    if job is None:
        raise RestError(f"Flink accepted job {job_id} and does not know it", 404)
    if job.is_over:
        why = rest.failure(job_id) or "Flink does not say why"
        raise RestError(f"Flink job {job_id} is {job.state} already: {why}", 200)


def _is_gone_after(program: Program) -> bool:
    """Runs Flink's script for Kubernetes; returns whether it found no cluster to stop."""
    try:
        programs.run(program, _SCRIPT_TIMEOUT)
    except ProgramError as error:
        if _REFUSED_TO_MAKE in str(error):
            return True
        raise
    return False


def _mark(resource: Resource) -> str:
    """How the ids of jobs begin that are started while the resource's row is as it is.

    So a job is found whose start was killed before its id was saved, and none that came later.
    """
    last = f"{resource.resource_id}\n{resource.properties.get(SESSION_ID, '')}"
    return hashlib.sha256(last.encode(errors="surrogatepass")).hexdigest()[:_MARK]


def _is_anothers(job: Job, resource: Resource) -> bool:
    own = _JOB_NAME + resource.resource_id
    return job.name.startswith(_JOB_NAME) and job.name != own


def _labels(resource: Resource) -> str:
    return (
        f"amoro.optimizing-group:{resource.group_name},"
        "amoro.optimizer-implement:flink-native-kubernetes,"
        f"amoro.optimizer-id:{resource.resource_id}"
    )


def _as_arguments(options: Mapping[str, str]) -> list[str]:
    return [f"-D{key}={value}" for key, value in options.items()]
