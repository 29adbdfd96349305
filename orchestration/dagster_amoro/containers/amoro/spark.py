"""How are Amoro's optimizers started as Spark applications, and ended?

The counterpart of `org.apache.amoro.server.manager.SparkOptimizerContainer` in Amoro 0.7 to master.
"""

import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from typing import Final

from dagster_amoro.containers import programs
from dagster_amoro.containers.amoro import yarn
from dagster_amoro.containers.amoro.base import (
    OptimizerContainer,
    changed_by_shell,
    is_true,
    optimizer_name,
    unquoted,
    usable,
)
from dagster_amoro.containers.amoro.local import end_here, end_processes, processes_of
from dagster_amoro.containers.amoro.spark_rest import SUBMISSION_ID, SparkRest
from dagster_amoro.containers.base import Status
from dagster_amoro.containers.output import end_of, size_of
from dagster_amoro.containers.programs import Program
from dagster_amoro.containers.rest import RestError
from dagster_amoro.containers.waiting import within
from dagster_amoro.core.ams_version import AmsVersion, AskAmsVersion
from dagster_amoro.core.errors import ContainerError, ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.post_mortem import UNKNOWN, PostMortem, by_state

MAIN_CLASS: Final = "org.apache.amoro.optimizer.spark.SparkOptimizer"
KUBERNETES_ID: Final = "kubernetes-submission-id"
STANDALONE_ID: Final = "spark-submission-id"  # this and the following are not AMS's
APPLICATION_ID: Final = "spark-application-id"
DRIVER_HOST: Final = "spark-driver-host"

_PREFIX: Final = "spark-conf."
_DEFAULT_JOB: Final = "/plugin/optimizer/spark/optimizer-job.jar"
_ALLOCATION: Final = "spark.dynamicAllocation."
_KUBERNETES: Final = "spark.kubernetes."
_WAITS: Final = f"{_KUBERNETES}submission.waitAppCompletion"
_POLL: Final = 1.0  # between two programs that ask Kubernetes
_SHOWN: Final = 2000  # characters of the end of a program's output
_ACCEPTED: Final = re.compile(
    rf'(?:created as |submitted as |"submissionId" : ")({SUBMISSION_ID.pattern})'
)
_DRIVER_HA: Final = re.compile(
    r".*(Connected to Spark cluster with app ID (?P<id>app-[0-9]{14}-[0-9]{4,})"
    r"|Application has been killed\. Reason: ).*"
)
# Where there is one master, Spark tries it twice more, and then leaves a driver that registers at
# AMS and cannot do any work.
_DRIVER: Final = re.compile(rf"{_DRIVER_HA.pattern}|.*Failed to connect to master .*")
_DEPLOYED: Final = re.compile(r".* and submission ID \S+ (into Kubernetes|to finish).*")
_STATUS: Final = re.compile(r"^\s*pod name: ", re.MULTILINE)  # in spark-submit's answer on a pod


class Cluster(StrEnum):
    """Who runs an application, by how the master begins."""

    YARN = "yarn"
    KUBERNETES = "k8s://"
    STANDALONE = "spark://"
    HERE = "local"


class SparkContainer(OptimizerContainer):
    """Starts optimizers as Spark applications: on YARN, on Kubernetes, or on a Spark cluster.

    | property | meaning |
    |---|---|
    | `spark-home` | where Spark is installed on this host; required |
    | `master` | `yarn` (default), `k8s://…`, `spark://…` or `local…` |
    | `deploy-mode` | `client` (default): the driver is a process of this host; or `cluster` |
    | `job-uri` | the optimizer's jar; Amoro's own by default |
    | `export.*` | environment of Spark's programs; `export.HADOOP_USER_NAME`: `--proxy-user` |
    | `spark-conf.*` | options of Spark; those in a resource's row come first |
    | `spark-rest-url` | masters' REST ports, `http://host:6066`, with commas between; see below |

    It does what AMS does, apart from this: it works without any `export.*`; a failed program is a
    failed start; an empty `export.HADOOP_USER_NAME` leaves `--proxy-user` out; option values are
    freed of quotes around them, as AMS's shell does it, and never split.

    AMS starts applications on standalone clusters and cannot end them. Here, a driver in cluster
    mode is ended through the REST port, so a master has to run with `spark.master.rest.enabled`.
    By default the port is the one in `master` where `spark-conf.spark.master.rest.enabled` is
    true, as for spark-submit, and otherwise `spark.master.rest.port` or 6066. A driver in client
    mode is ended by its process, which only the host that it runs on can see.

    In cluster mode on YARN, spark-submit stays and reports into a log until the application ends,
    unless `spark-conf.spark.yarn.submit.waitAppCompletion` is false.

    A start saves, as AMS does, `yarn-application-id` or `kubernetes-submission-id`, and on a
    standalone cluster `spark-submission-id`. In client mode it also saves `spark-driver-host`, and
    `spark-application-id` if the driver said it.

    Raises:
        ConfigError: A property is missing or cannot be used.
    """

    # In seconds:
    start_timeout: float = 600.0  # for spark-submit to hand an application over; AMS's limit
    # For a driver in client mode to reach a standalone master; Spark gives up after 60. One that
    # says neither of the two, because of its log level, is well.
    connect_timeout: float = 75.0
    start_check: float = 5.0  # a driver that needs nobody's answer is watched for an early end
    release_timeout: float = 30.0  # for a driver on a standalone cluster to end after its kill
    pod_timeout: float = 60.0  # for a driver pod to go away; Kubernetes gives it 30 to end
    patience: float = 10.0  # between SIGTERM and SIGKILL for processes of this host

    def __init__(
        self, name: str, properties: Mapping[str, str], ask_ams_version: AskAmsVersion | None = None
    ) -> None:
        super().__init__(name, properties, ask_ams_version)
        home = self.required("spark-home").removesuffix("/")
        self._spark_submit: Final = f"{home}/bin/spark-submit"
        self.master: Final = self.properties.get("master", "yarn")
        self.cluster: Final = self._cluster()
        self.deploy_mode: Final = self._deploy_mode()
        self._in_cluster: Final = self.deploy_mode == "cluster"
        self.job_uri: Final = self.properties.get("job-uri") or self.ams_home + _DEFAULT_JOB
        if self.cluster is Cluster.KUBERNETES:
            self.required(f"{_PREFIX}{_KUBERNETES}container.image")

    def command(self, resource: Resource) -> list[str]:
        """The program and arguments that start the application.

        Raises:
            StartFailedError: A property is missing, or a value cannot be an argument.
        """
        user = self.exports.get("HADOOP_USER_NAME", "hadoop")
        has_name = self.ams_version >= AmsVersion.V0_9_0
        return usable(
            [
                *(self._spark_submit, "--master", self.master, f"--deploy-mode={self.deploy_mode}"),
                *_as_arguments(self._options(resource)),
                *(["--proxy-user", user] if user else []),
                *(["--name", yarn.application_name("spark", resource)] if has_name else []),
                *("--class", MAIN_CLASS, self.job_uri, *self.arguments(resource)),
            ]
        )

    def differences(self, resource: Resource) -> list[str]:
        """In what a start differs from the one that AMS would make, its options included."""
        options = changed_by_shell(f"{key}={text}" for key, text in self._options(resource).items())
        found = [f"AMS's shell would not pass on as they stand: {options}"] if options else []
        return [*super().differences(resource), *found, *self.exports_of_ams()]

    def status(self, resource: Resource) -> Status:
        """Whether the driver runs; unknown on YARN and Kubernetes, and on another host."""
        if self._in_cluster:
            return self._status_there(resource)
        if processes_of(resource):
            return "running"
        is_here = resource.properties.get(DRIVER_HOST) == socket.gethostname()
        return "ended" if is_here else "unknown"

    def _status_there(self, resource: Resource) -> Status:
        submission = resource.properties.get(STANDALONE_ID, "")
        if self.cluster is not Cluster.STANDALONE or not SUBMISSION_ID.fullmatch(submission):
            return "unknown"
        try:
            driver = self._rest(resource).driver(submission)
        except RestError:
            return "unknown"
        if driver is None or driver.state == "UNKNOWN":
            return "unknown"
        return "ended" if driver.is_over else "running"

    def post_mortem(self, resource: Resource) -> PostMortem | None:
        """What the cluster says of its last driver, or that driver's log; None on Kubernetes."""
        if self.cluster is Cluster.YARN:
            own = self.environment.variables
            return yarn.post_mortem(resource, self._name_on_yarn(resource), own)
        if not self._in_cluster:
            log = self.log_of(resource)
            text = end_of(log) if size_of(log) else ""
            return PostMortem(UNKNOWN, end_here(resource, "driver"), text)
        submission = resource.properties.get(STANDALONE_ID, "")
        if self.cluster is not Cluster.STANDALONE or not SUBMISSION_ID.fullmatch(submission):
            return None
        driver = self._rest(resource).driver(submission)
        if driver is None:
            return PostMortem(UNKNOWN, f"Spark does not know its last driver {submission} any more")
        where = f", on {driver.worker}" if driver.worker else ""
        return by_state(f"its last driver {submission}{where},", driver.state, driver.message)

    def _cluster(self) -> Cluster:
        found = next((each for each in Cluster if self.master.startswith(each)), None)
        if found is None:
            accepted = "; accepted are yarn, k8s://…, spark://… and local…"
            raise self.not_accepted("master", accepted)
        return found

    def _deploy_mode(self) -> str:
        mode = self.properties.get("deploy-mode", "client").lower()
        accepted = ["client"] if self.cluster is Cluster.HERE else ["client", "cluster"]
        if mode not in accepted:
            shown = f"; accepted with master {self.master!r}: {', '.join(accepted)}"
            raise self.not_accepted("deploy-mode", shown)
        return mode

    def _given(self, resource: Resource) -> dict[str, str]:
        """The options of Spark, as AMS's shell would pass them."""
        options = self.options(_PREFIX, resource)
        return {key: unquoted(value) for key, value in options.items()}

    def _options(self, resource: Resource) -> dict[str, str]:
        options = self._given(resource)
        forced = {f"{_ALLOCATION}enabled": "true"}
        forced[f"{_ALLOCATION}maxExecutors"] = str(resource.thread_count)
        if self.cluster is Cluster.KUBERNETES and self.ams_version >= AmsVersion.V0_9:
            forced[_WAITS] = "false"
        options |= {key: options.get(key) or value for key, value in forced.items()}
        if self.cluster is Cluster.KUBERNETES:
            options |= self._pod_options(resource)
        return options

    def _pod_options(self, resource: Resource) -> dict[str, str]:
        """The pod's name and labels; up to 0.9.0, AMS forgets those of executors."""
        labelled = ("driver", "executor") if self.ams_version >= AmsVersion.V0_9 else ("driver",)
        labels = {
            "optimizer-group": resource.group_name,
            "optimizer-implementation": "spark-native-kubernetes",
            "optimizer-id": resource.resource_id,
        }
        return {f"{_KUBERNETES}driver.pod.name": optimizer_name(resource)} | {
            f"{_KUBERNETES}{role}.label.{label}": value
            for role in labelled
            for label, value in labels.items()
        }

    def _program(self, resource: Resource, argv: list[str]) -> Program:
        own = self.environment.variables
        return Program(argv=usable(argv), environment=own, mask=self.mask(resource))

    def _start(self, resource: Resource) -> dict[str, str]:
        program = self._program(resource, self.command(resource))
        if self.cluster is Cluster.YARN:
            log = self.log_of(resource)
            started = {yarn.ID: yarn.start_application(program, log, self.start_timeout)}
        elif self.cluster is Cluster.KUBERNETES:
            started = {KUBERNETES_ID: self._start_on_kubernetes(resource, program)}
        elif self._in_cluster:
            started = {STANDALONE_ID: self._start_on_worker(resource, program)}
        else:
            started = self._start_here(resource, program)
        return started if self._in_cluster else {**started, DRIVER_HOST: socket.gethostname()}

    def _start_on_kubernetes(self, resource: Resource, program: Program) -> str:
        if not self._in_cluster:
            self._start_here(resource, program)
        elif self._options(resource).get(_WAITS, "true").lower() == "false":
            programs.run(program, self.start_timeout)
        else:  # spark-submit stays, to report
            log, timeout = self.log_of(resource), self.connect_timeout
            programs.launch(program, log=log, line=_DEPLOYED, timeout=timeout, stays=True)
        return self._pod_submission(resource)

    def _start_on_worker(self, resource: Resource, program: Program) -> str:
        rest = self._rest(resource)
        rest.ping()  # before: what cannot be ended is not started
        output = programs.run(program, self.start_timeout)
        found = _ACCEPTED.search(output)
        if found is None:
            raise programs.nameless(program, "driver", output)
        try:
            _require_alive(rest, found[1], self.start_check)
        except BaseException:  # an interruption too: nobody else knows of the driver
            with suppress(RestError):
                rest.kill(found[1])
            raise
        return found[1]

    def _start_here(self, resource: Resource, program: Program) -> dict[str, str]:
        log = self.log_of(resource)
        begin = size_of(log)
        line = _DRIVER_HA if "," in self.master else _DRIVER
        standalone = self.cluster is Cluster.STANDALONE
        timeout = self.connect_timeout if standalone else self.start_check
        found = programs.launch(program, log=log, line=line, timeout=timeout, stays=True)
        if found is not None and not found["id"]:
            end_processes(resource, self.patience)  # it would register, and could do no work
            raise StartFailedError(f"{program.name}: {program.mask.hide(found[0])[:_SHOWN]}")
        if found is None and not processes_of(resource):
            raise programs.nameless(program, "application", end_of(log, begin))
        return {APPLICATION_ID: found["id"]} if found else {}

    def _end(self, resource: Resource) -> None:
        """Ends the application, and the processes of this host that submitted or drive it."""
        problems = []
        for end in (self._end_here, self._end_there):
            try:
                end(resource)
            except ContainerError as error:
                problems.append(str(error))
        if problems:
            raise ReleaseFailedError("; ".join(problems))

    def _end_here(self, resource: Resource) -> None:
        end_processes(resource, self.patience)
        host = resource.properties.get(DRIVER_HOST) or socket.gethostname()
        if host != socket.gethostname() and not self._in_cluster:
            raise ReleaseFailedError(
                f"its driver was started on host {host!r} and cannot be seen from here"
            )

    def _end_there(self, resource: Resource) -> None:
        if self.cluster is Cluster.YARN:
            if application := resource.properties.get(yarn.ID):
                name = self._name_on_yarn(resource)
                own = self.environment.variables
                yarn.end_application(application, name, own, self.mask(resource))
        elif self._in_cluster and self.cluster is Cluster.KUBERNETES:
            self._end_pods(resource)
        elif self._in_cluster and (driver := resource.properties.get(STANDALONE_ID)):
            if not SUBMISSION_ID.fullmatch(driver):
                raise ReleaseFailedError(
                    f"{driver!r} is no id of a driver; one is like driver-20260131120000-0001"
                )
            self._rest(resource).end(driver, self.release_timeout)

    def _name_on_yarn(self, resource: Resource) -> str:
        """What the application is called.

        A driver in client mode names itself. In cluster mode AMS names it, since 0.9; before, it
        bears the name of its class, as all do. That tells them apart badly, but those versions of
        AMS wrote no ids of other optimizers into a row.
        """
        if not self._in_cluster:
            return f"amoro-spark-optimizer-{resource.resource_id}"
        if self.ams_version >= AmsVersion.V0_9_0:
            return yarn.application_name("spark", resource)
        return self._given(resource).get("spark.app.name", MAIN_CLASS)

    def _end_pods(self, resource: Resource) -> None:
        """Deletes the driver's pod and waits until it is gone: its name has to be free again."""
        named = (self._pod_submission(resource), resource.properties.get(KUBERNETES_ID, ""))
        for submission in dict.fromkeys(named):
            if _is_own(submission, resource):
                self._end_pod(submission, resource)

    def _end_pod(self, submission: str, resource: Resource) -> None:
        self._submission("--kill", submission, resource)

        def is_gone() -> bool:
            return not _STATUS.search(self._submission("--status", submission, resource))

        if not within(self.pod_timeout, is_gone, _POLL):
            raise ReleaseFailedError(
                f"driver pod {submission} is still there, {self.pod_timeout:g} s after it was "
                "deleted; no driver of this resource can start before it is gone"
            )

    def _submission(self, action: str, submission: str, resource: Resource) -> str:
        """Runs spark-submit on a driver's pod; `--kill` of one that is gone ends with 0."""
        argv = [self._spark_submit, action, submission, "--master", self.master]
        argv += _as_arguments(self._given(resource))
        return programs.run(self._program(resource, argv), self.start_timeout)

    def _pod_submission(self, resource: Resource) -> str:
        """What AMS saves; in 0.7 it misses a namespace that the group's properties set."""
        namespace = self._given(resource).get(f"{_KUBERNETES}namespace") or "default"
        return f"{namespace}:{optimizer_name(resource)}"

    def _rest(self, resource: Resource) -> SparkRest:
        options, mask = self._given(resource), self.mask(resource)
        if urls := self.properties.get("spark-rest-url"):
            return SparkRest([url.strip().rstrip("/") for url in urls.split(",")], mask)
        masters = self.master.removeprefix(Cluster.STANDALONE).split(",")
        if not is_true(options.get("spark.master.rest.enabled")):
            port = options.get("spark.master.rest.port", "6066")
            masters = [f"{re.sub(':[0-9]+$', '', each)}:{port}" for each in masters]
        return SparkRest([f"http://{each}" for each in masters], mask)


def _is_own(submission: str, resource: Resource) -> bool:
    """Whether it names the resource's pod; spark-submit would take a `*` for any other's too."""
    pod = optimizer_name(resource)
    return "*" not in pod and bool(re.fullmatch(rf"[a-z0-9-]+:{re.escape(pod)}", submission))


def _as_arguments(options: Mapping[str, str]) -> list[str]:
    return [each for key, value in options.items() for each in ("--conf", f"{key}={value}")]


def _require_alive(rest: SparkRest, submission: str, seconds: float) -> None:
    """Watches a driver that was accepted; where it cannot be seen, its registration decides."""
    try:
        driver = rest.watch(submission, seconds)
    except RestError:
        return
    if driver is not None and driver.is_over:
        raise StartFailedError(
            f"driver {submission} is {driver.state} already: "
            f"{driver.message or f'its worker {driver.worker} has its output'}"
        )
