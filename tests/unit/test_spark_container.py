import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_amoro.containers import processes
from dagster_amoro.containers.amoro.spark import DRIVER_HOST, SparkContainer
from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.errors import (
    ConfigError,
    ContainerError,
    ReleaseFailedError,
    StartFailedError,
)
from dagster_amoro.core.model import Resource
from tests.helpers.commands import write_program

# Its tests start programs under one id, and look for programs with it on this machine.
pytestmark = pytest.mark.xdist_group("spark-submit")
RID = "5ghs0a2v1j9k3m7n4p8q6r0t2u"
YARN_APPLICATION = "application_1700000000000_0007"
MAIN = "org.apache.amoro.optimizer.spark.SparkOptimizer"
BASE = {
    "spark-home": "/opt/spark/",
    "ams-home": "/usr/local/amoro",
    "ams-optimizing-uri": "thrift://10.0.0.5:1261",
}
ON_KUBERNETES = {
    **BASE,
    "master": "k8s://https://1.2.3.4:6443",
    "deploy-mode": "cluster",
    "job-uri": "local:///opt/spark/usrlib/optimizer-job.jar",
    "spark-conf.spark.kubernetes.namespace": "amoro",
    "spark-conf.spark.kubernetes.container.image": "apache/amoro-spark-optimizer:0.9",
}
ANY_TEXT = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40
).filter(lambda text: text[:1] not in "'\"" or not text)


def container(ams_version: AmsVersion = AmsVersion.V0_9, /, **properties: str) -> SparkContainer:
    """A container with these properties beside the required ones."""
    return SparkContainer("sparkContainer", {**BASE, **named(properties)}, lambda: ams_version)


def resource(**properties: str) -> Resource:
    """A resource of the group `sparkGroup` with these properties."""
    return Resource(
        resource_id=RID,
        group_name="sparkGroup",
        container_name="sparkContainer",
        thread_count=4,
        memory_mb=0,
        properties=named(properties),
    )


def named(properties: dict[str, str]) -> dict[str, str]:
    """Names as they are written in Python; those with a dot are written as they are."""
    return {
        key if "." in key else key.replace("_", "-"): value for key, value in properties.items()
    }


def parted(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without `--conf`, and what these set; AMS's order of them is a hash's."""
    marks = {index for index, each in enumerate(argv) if each == "--conf"}
    confs = dict(argv[index + 1].split("=", 1) for index in marks)
    assert len(confs) == len(marks)
    rest = [
        each for index, each in enumerate(argv) if index not in marks and index - 1 not in marks
    ]
    return rest, confs


# The command line.


def test_command_on_yarn_is_that_of_ams() -> None:
    """Amoro's own example: the resource's option wins, home loses its slash, a thread each."""
    built = SparkContainer(
        "c",
        {
            **BASE,
            "master": "yarn",
            "deploy-mode": "cluster",
            "export.HADOOP_CONF_DIR": "/etc/hadoop/conf/",
            "export.HADOOP_USER_NAME": "hadoop",
            "spark-conf.spark.executor.memory": "2g",
        },
    )
    rest, confs = parted(built.command(resource(**{"spark-conf.spark.executor.memory": "4g"})))
    assert rest == [
        *("/opt/spark/bin/spark-submit", "--master", "yarn", "--deploy-mode=cluster"),
        *("--proxy-user", "hadoop", "--name", f"Amoro-spark-optimizer-sparkGroup-{RID}"),
        *("--class", MAIN, "/usr/local/amoro/plugin/optimizer/spark/optimizer-job.jar"),
        *("-a", "thrift://10.0.0.5:1261", "-p", "4", "-g", "sparkGroup", "-id", RID),
    ]
    assert confs == {
        "spark.executor.memory": "4g",
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.maxExecutors": "4",
    }
    assert built.exports == {"HADOOP_CONF_DIR": "/etc/hadoop/conf/", "HADOOP_USER_NAME": "hadoop"}


def test_it_tells_what_a_shell_would_make_of_a_command() -> None:
    """AMS quotes nothing; a value that is quoted as a whole is the same for it and here."""
    given = {
        **BASE,
        "ams-optimizing-uri": "thrift://h:1261?connectTimeout=1&socketTimeout=2",
        "export.JVM_ARGS": "-Da=1 -Db=2",
        "export.HADOOP_CONF_DIR": "'/etc/hadoop'",
        "spark-conf.spark.app.name": "two words",
        "spark-conf.spark.yarn.queue": "root.a",
    }
    assert SparkContainer("c", given).differences(resource()) == [
        f"AMS's shell would not pass on as they stand: '{given['ams-optimizing-uri']}'",
        "AMS's shell would not pass on as they stand: 'spark.app.name=two words'",
        "AMS's shell would set otherwise: JVM_ARGS",
    ]
    exported = {**BASE, "export.HADOOP_USER_NAME": "hadoop"}
    assert SparkContainer("c", exported).differences(resource()) == []


def test_command_on_kubernetes_is_that_of_ams() -> None:
    """Amoro's own example with pod name, labels for driver and executors, and no waiting."""
    built = SparkContainer("c", {**ON_KUBERNETES, "ams-optimizing-uri": "thrift://ams.svc:1261"})
    rest, confs = parted(built.command(resource(heart_beat_interval="20000")))
    assert rest == [
        *("/opt/spark/bin/spark-submit", "--master", "k8s://https://1.2.3.4:6443"),
        *("--deploy-mode=cluster", "--proxy-user", "hadoop"),
        *("--name", f"Amoro-spark-optimizer-sparkGroup-{RID}", "--class", MAIN),
        *("local:///opt/spark/usrlib/optimizer-job.jar", "-a", "thrift://ams.svc:1261", "-p", "4"),
        *("-g", "sparkGroup", "-hb", "20000", "-id", RID),
    ]
    labels = {
        f"spark.kubernetes.{role}.label.{label}": value
        for role in ("driver", "executor")
        for label, value in (
            ("optimizer-group", "sparkGroup"),
            ("optimizer-implementation", "spark-native-kubernetes"),
            ("optimizer-id", RID),
        )
    }
    assert confs == labels | {
        "spark.kubernetes.namespace": "amoro",
        "spark.kubernetes.container.image": "apache/amoro-spark-optimizer:0.9",
        "spark.kubernetes.submission.waitAppCompletion": "false",
        "spark.kubernetes.driver.pod.name": f"amoro-optimizer-{RID}",
        "spark.dynamicAllocation.maxExecutors": "4",
        "spark.dynamicAllocation.enabled": "true",
    }


@pytest.mark.parametrize("ams_version", AmsVersion)
def test_starts_differ_as_the_versions_of_ams_do(ams_version: AmsVersion) -> None:
    """No name before 0.9; no labels on executors and no word on waiting up to 0.9.0."""
    built = SparkContainer("c", ON_KUBERNETES, lambda: ams_version)
    argv = built.command(resource(shutdown_timeout_ms="1000"))
    message = " ".join(argv)
    assert ("--name" in argv) is (ams_version >= AmsVersion.V0_9_0)
    assert ("-st" in argv) is (ams_version >= AmsVersion.V0_9_0)
    assert ("executor.label" in message) is (ams_version is AmsVersion.V0_9)
    assert ("waitAppCompletion" in message) is (ams_version is AmsVersion.V0_9)
    assert message.count("driver.label.optimizer-id") == 1


@pytest.mark.parametrize(
    ("on_container", "on_resource", "expected"),
    [
        ({}, {}, ("true", "4")),
        ({"enabled": "false", "maxExecutors": "9"}, {}, ("false", "9")),
        ({"enabled": "false", "maxExecutors": "9"}, {"maxExecutors": "7"}, ("false", "7")),
        ({"enabled": "", "maxExecutors": ""}, {}, ("true", "4")),
    ],
)
def test_dynamic_allocation_is_forced_unless_configured(
    on_container: dict[str, str], on_resource: dict[str, str], expected: tuple[str, str]
) -> None:
    """The resource's value, then the container's, then AMS's; an empty one counts as none."""
    prefix = "spark-conf.spark.dynamicAllocation."
    built = SparkContainer("c", {**BASE, **{prefix + key: v for key, v in on_container.items()}})
    _, confs = parted(built.command(resource(**{prefix + k: v for k, v in on_resource.items()})))
    found = tuple(confs[f"spark.dynamicAllocation.{key}"] for key in ("enabled", "maxExecutors"))
    assert found == expected


@given(value=ANY_TEXT, uri=ANY_TEXT.filter(bool), group=ANY_TEXT.filter(bool))
def test_any_value_stays_one_argument(value: str, uri: str, group: str) -> None:
    """Blanks, quotes, semicolons and what else a shell knows change no other argument."""
    properties = {**BASE, "ams-optimizing-uri": uri, "spark-conf.spark.x": value}
    built = SparkContainer("c", properties, lambda: AmsVersion.V0_9)
    given_resource = Resource(
        resource_id=RID, group_name=group, container_name="c", thread_count=1, memory_mb=0
    )
    argv = built.command(given_resource)
    assert f"spark.x={value}" in argv
    assert argv[-8:] == ["-a", uri, "-p", "1", "-g", group, "-id", RID]
    assert len(argv) == 25


def test_a_value_quoted_for_ams_shell_is_what_the_shell_makes_of_it() -> None:
    """AMS needs quotes around what has blanks; Spark does not get them."""
    built = container(**{"spark-conf.spark.driver.extraJavaOptions": "'-Da=1 -Db=2'"})
    assert "spark.driver.extraJavaOptions=-Da=1 -Db=2" in built.command(resource())


def test_proxy_user_is_the_exported_one_and_may_be_left_out() -> None:
    """`hadoop` where nobody is named; an empty name is nobody at all."""
    named = container(**{"export.HADOOP_USER_NAME": "etl"}).command(resource())
    assert named[named.index("--proxy-user") + 1] == "etl"
    assert "--proxy-user" not in container(**{"export.HADOOP_USER_NAME": ""}).command(resource())


@pytest.mark.parametrize(
    ("properties", "missing"),
    [
        ({"spark-home": ""}, "'spark-home' is required"),
        ({"ams-optimizing-uri": ""}, "'ams-optimizing-uri' is required"),
        ({"ams-home": ""}, "keeper.ams-home"),
        ({"master": "mesos://h:5050"}, "accepted are yarn, k8s://…, spark://… and local…"),
        ({"master": ""}, "accepted are yarn"),
        ({"deploy-mode": "both"}, "'both'; accepted with master 'yarn': client, cluster"),
        ({"master": "local[*]", "deploy-mode": "cluster"}, "'local[*]': client"),
        ({"master": "k8s://h"}, "spark-conf.spark.kubernetes.container.image"),
    ],
)
def test_what_properties_lack_is_said_at_once(properties: dict[str, str], missing: str) -> None:
    """The constructor raises, and names the property and what would be right."""
    with pytest.raises(ConfigError) as error:
        SparkContainer("c", {**BASE, **properties})
    assert missing in str(error.value)


def test_deploy_mode_is_read_in_any_case() -> None:
    """As AMS reads it; a job-uri makes ams-home needless."""
    built = SparkContainer(
        "c", {**BASE, "ams-home": "", "job-uri": "s3://b/job.jar", "deploy-mode": "CLUSTER"}
    )
    assert built.deploy_mode == "cluster"
    assert "--deploy-mode=cluster" in built.command(resource())


# Against a spark-submit that does as it is told.


class Spark:
    """A Spark installation whose programs write down how they were called."""

    SCRIPT = """
import json, os, pathlib, sys, time
home = pathlib.Path(__file__).parent.parent
with (home / "calls").open("a") as calls:
    calls.write(json.dumps([sys.argv, dict(os.environ)]) + "\\n")
acts = json.loads((home / "acts").read_text())
act = next(act for act in acts if act["with"] in sys.argv)
if len(act["prints"]) > 1:
    shown = act["prints"].pop(0)
    (home / "acts").write_text(json.dumps(acts))
else:
    shown = act["prints"][0]
print(shown, flush=True)
time.sleep(act["stays"])
sys.exit(act["code"])
"""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._acts: list[dict[str, Any]] = []
        for name in ("spark-submit", "yarn"):
            write_program(home / "bin" / name, self.SCRIPT)

    def on(self, argument: str, *prints: str, code: int = 0, stays: float = 0) -> "Spark":
        """What programs called with this argument print (in turn), how long they stay, and end."""
        act = {"with": argument, "prints": prints or ("",), "code": code, "stays": stays}
        self._acts.append(act)
        (self.home / "acts").write_text(json.dumps(self._acts))
        return self

    def calls(self) -> list[tuple[list[str], dict[str, str]]]:
        """Arguments and environment of each call so far."""
        calls = self.home / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [(argv, environment) for argv, environment in map(json.loads, lines)]

    def argvs(self) -> list[list[str]]:
        """The arguments of each call, without the program's folder."""
        return [[Path(argv[0]).name, *argv[1:]] for argv, _ in self.calls()]


@pytest.fixture
def spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Spark]:
    """A Spark, whose processes end with the test."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "spark").mkdir()
    yield Spark(tmp_path / "spark")
    processes.end(processes.started_with({"-g": "sparkGroup"}), 0.1)


@pytest.fixture
def build(spark: Spark) -> Callable[..., SparkContainer]:
    """Builds containers of that Spark, quick to lose their patience."""

    def built(ams_version: AmsVersion = AmsVersion.V0_9, /, **properties: str) -> SparkContainer:
        found = container(ams_version, **{"spark_home": str(spark.home), **properties})
        found.start_timeout = found.connect_timeout = 20
        found.start_check = found.patience = 0.5
        found.pod_timeout = found.release_timeout = 2
        return found

    return built


Build = Callable[..., SparkContainer]
KUBERNETES = {key: value for key, value in ON_KUBERNETES.items() if key not in BASE}


def test_on_yarn_the_application_is_read_from_the_output(spark: Spark, build: Build) -> None:
    """The line ends with the id; the environment has the exports, the log has the output."""
    spark.on("--class", f"23/01/01 INFO Client: Submitted application {YARN_APPLICATION}\nmore")
    built = build(deploy_mode="cluster", **{"export.HADOOP_CONF_DIR": "/etc/hadoop"})
    assert built.request_resource(resource()) == {"yarn-application-id": YARN_APPLICATION}
    ((argv, environment),) = spark.calls()
    assert argv == built.command(resource())
    assert environment["HADOOP_CONF_DIR"] == "/etc/hadoop"
    assert YARN_APPLICATION in built.log_of(resource()).read_text()
    assert built.status(resource(yarn_application_id=YARN_APPLICATION)) == "unknown"


def test_on_yarn_in_client_mode_the_driver_stays_here(spark: Spark, build: Build) -> None:
    """spark-submit is the driver: it runs on, is seen, and is ended with the application."""
    spark.on("--class", f"Submitted application {YARN_APPLICATION}", stays=60)
    spark.on("-status", f"\tApplication-Name : amoro-spark-optimizer-{RID}\n\tState : RUNNING")
    spark.on("-kill", "Killed")
    built = build(**{"export.HADOOP_HOME": str(spark.home)})
    started = resource().with_properties(built.request_resource(resource()))
    assert started.properties == {
        "yarn-application-id": YARN_APPLICATION,
        DRIVER_HOST: socket.gethostname(),
    }
    assert built.status(started) == "running"
    built.release_resource(started)
    assert built.status(started) == "ended"
    assert spark.argvs()[1:] == [
        ["yarn", "application", "-status", YARN_APPLICATION],
        ["yarn", "application", "-kill", YARN_APPLICATION],
    ]


@pytest.mark.parametrize(
    ("mode", "ams_version", "name", "killed"),
    [
        ("cluster", AmsVersion.V0_9, f"Amoro-spark-optimizer-sparkGroup-{RID}", True),
        ("cluster", AmsVersion.V0_9, "Amoro-spark-optimizer-sparkGroup-another", False),
        ("cluster", AmsVersion.V0_8, MAIN, True),
        ("cluster", AmsVersion.V0_8, "somebody's query", False),
        ("client", AmsVersion.V0_8, f"amoro-spark-optimizer-{RID}", True),
        ("client", AmsVersion.V0_9, f"amoro-spark-optimizer-{RID}", True),
        ("client", AmsVersion.V0_9, "amoro-spark-optimizer-another", False),
    ],
)
def test_on_yarn_only_an_application_of_the_right_name_is_killed(  # noqa: PLR0913, PLR0917
    spark: Spark,
    build: Build,
    mode: str,
    ams_version: AmsVersion,
    name: str,
    killed: bool,  # noqa: FBT001
) -> None:
    """A row of AMS can hold the id of another optimizer's application."""
    spark.on("-status", f"\tApplication-Name : {name}\n\tState : RUNNING").on("-kill")
    built = build(ams_version, deploy_mode=mode, **{"export.HADOOP_HOME": str(spark.home)})
    built.release_resource(resource(yarn_application_id=YARN_APPLICATION))
    assert any("-kill" in argv for argv in spark.argvs()) is killed


def test_without_an_application_the_end_of_the_output_is_told(spark: Spark, build: Build) -> None:
    """Exit code 0 alone is no start, and secrets in the output are hidden."""
    spark.on("--class", "the queue is closed for hunter2")
    built = build(**{"spark-conf.spark.db.password": "hunter2"})
    with pytest.raises(StartFailedError) as error:
        built.request_resource(resource())
    assert str(error.value) == (
        "spark-submit ended with exit code 0 and named no application on YARN; "
        "the end of its output:\n  | the queue is closed for ***"
    )


@pytest.mark.parametrize(
    "properties",
    [{}, {**KUBERNETES}, {"master": "local[1]"}, {**KUBERNETES, "deploy-mode": "client"}],
)
def test_an_exit_code_is_a_failed_start(
    spark: Spark, build: Build, properties: dict[str, str]
) -> None:
    """Wherever the application runs; the reason is in the message, the secret is not."""
    spark.on("--class", "Exception: no route with password=hunter2", code=1)
    with pytest.raises(StartFailedError) as error:
        build(**properties).request_resource(resource())
    assert "spark-submit ended with exit code 1" in str(error.value)
    assert "no route with password=***" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_a_program_that_hangs_is_killed(spark: Spark, build: Build) -> None:
    """After the time that AMS would give it too."""
    spark.on("--class", "connecting", stays=60)
    built = build(**KUBERNETES)
    built.start_timeout = 0.5
    with pytest.raises(StartFailedError, match=r"was not over after 0\.5 s"):
        built.request_resource(resource())
    assert processes.started_with({"-id": RID}) == []


def test_without_spark_the_program_is_named(build: Build) -> None:
    """What cannot be started is said with its path."""
    with pytest.raises(StartFailedError, match="'/nowhere/bin/spark-submit' could not be started"):
        build(spark_home="/nowhere").request_resource(resource())


def test_what_cannot_be_a_command_line_is_a_failed_start(build: Build) -> None:
    """A NUL character; and a version of AMS that nobody knows."""

    def nobody() -> AmsVersion:
        raise ContainerError("the version of AMS is not known")

    with pytest.raises(StartFailedError, match="version of AMS is not known"):
        SparkContainer("c", BASE, nobody).request_resource(resource())
    with pytest.raises(StartFailedError, match="NUL character"):
        build(**{"spark-conf.spark.x": "a\0b"}).request_resource(resource())


def test_on_kubernetes_the_id_is_namespace_and_pod(spark: Spark, build: Build) -> None:
    """The namespace of the resource comes first, then the container's, then the default one."""
    spark.on("--class", "Deployed")
    key, namespace = "kubernetes-submission-id", "spark-conf.spark.kubernetes.namespace"
    built = build(**KUBERNETES)
    assert built.request_resource(resource()) == {key: f"amoro:amoro-optimizer-{RID}"}
    found = built.request_resource(resource(**{namespace: "other"}))
    assert found == {key: f"other:amoro-optimizer-{RID}"}
    found = build(**{**KUBERNETES, namespace: ""}).request_resource(resource())
    assert found == {key: f"default:amoro-optimizer-{RID}"}


@pytest.mark.parametrize("end", ["into Kubernetes", "to finish..."])
def test_older_versions_leave_spark_submit_watching(spark: Spark, build: Build, end: str) -> None:
    """It says when the driver's pod is there, and stays until the application is over."""
    message = f"Waiting for n with application ID spark-1 and submission ID amoro:pod {end}"
    spark.on("--class", message, stays=60)
    began = time.monotonic()
    build(AmsVersion.V0_8, **KUBERNETES).request_resource(resource())
    assert time.monotonic() - began < 15
    assert len(processes.started_with({"-id": RID})) == 1


def test_on_kubernetes_release_waits_until_the_pod_is_gone(spark: Spark, build: Build) -> None:
    """The kill has the options that were configured, and none that AMS forces at the start."""
    spark.on("--kill").on("--status", "\t pod name: x\n\t phase: Running", "Application not found.")
    build(**KUBERNETES).release_resource(resource())
    submission = f"amoro:amoro-optimizer-{RID}"
    tail = [
        *("--master", "k8s://https://1.2.3.4:6443"),
        *("--conf", "spark.kubernetes.namespace=amoro"),
        *("--conf", "spark.kubernetes.container.image=apache/amoro-spark-optimizer:0.9"),
    ]
    assert spark.argvs() == [
        ["spark-submit", "--kill", submission, *tail],
        ["spark-submit", "--status", submission, *tail],
        ["spark-submit", "--status", submission, *tail],
    ]


def test_on_kubernetes_a_pod_that_stays_is_an_error(spark: Spark, build: Build) -> None:
    """As is a Kubernetes that does not answer."""
    spark.on("--kill").on("--status", "\t pod name: x")
    with pytest.raises(ReleaseFailedError, match="is still there, 2 s after it was deleted"):
        build(**KUBERNETES).release_resource(resource())
    (spark.home / "acts").unlink()
    with pytest.raises(ReleaseFailedError, match="spark-submit ended with exit code 1"):
        build(**KUBERNETES).release_resource(resource())


def test_on_kubernetes_no_pattern_of_names_is_killed(spark: Spark, build: Build) -> None:
    """To spark-submit a `*` in a name stands for anything."""
    build(**KUBERNETES).release_resource(replace(resource(), resource_id="*"))
    assert spark.calls() == []


def test_on_kubernetes_anothers_submission_is_left_alone(spark: Spark, build: Build) -> None:
    """The row's own pod is looked for in the row's namespace and in the one configured."""
    spark.on("--kill").on("--status", "Application not found.")
    built = build(**KUBERNETES)
    built.release_resource(resource(kubernetes_submission_id="amoro:amoro-optimizer-another"))
    built.release_resource(resource(kubernetes_submission_id=f"old:amoro-optimizer-{RID}"))
    killed = [argv[2] for argv in spark.argvs() if argv[1] == "--kill"]
    own = f"amoro:amoro-optimizer-{RID}"
    assert killed == [own, own, f"old:amoro-optimizer-{RID}"]


# Client mode: spark-submit is the driver.


CONNECTED = "INFO StandaloneSchedulerBackend: Connected to Spark cluster with app ID {}"
APPLICATION = "app-20260131120000-0003"
STANDALONE = {"master": "spark://127.0.0.1:7077"}


def test_a_driver_here_is_well_when_it_has_reached_the_master(spark: Spark, build: Build) -> None:
    """The row gets its application and its host; the release ends the process."""
    spark.on("--class", CONNECTED.format(APPLICATION), stays=60)
    built = build(**STANDALONE)
    started = resource().with_properties(built.request_resource(resource()))
    assert started.properties == {
        "spark-application-id": APPLICATION,
        DRIVER_HOST: socket.gethostname(),
    }
    (driver,) = processes.started_with({"-g": "sparkGroup", "-id": RID})
    assert built.status(started) == "running"
    built.release_resource(started)
    assert not psutil.pid_exists(driver.pid) or driver.status() == psutil.STATUS_ZOMBIE
    assert built.status(started) == "ended"


@pytest.mark.parametrize(
    "trouble",
    [
        "WARN StandaloneAppClient$ClientEndpoint: Failed to connect to master 127.0.0.1:7077",
        "ERROR Application has been killed. Reason: All masters are unresponsive! Giving up.",
    ],
)
def test_a_driver_that_cannot_reach_its_master_is_ended(
    spark: Spark, build: Build, trouble: str
) -> None:
    """Spark would leave it running, and it would register and do no work."""
    spark.on("--class", f"starting\n{trouble}", stays=60)
    before = resource(**{DRIVER_HOST: "elsewhere"})  # of an earlier start
    with pytest.raises(StartFailedError) as error:
        build(**STANDALONE).request_resource(before)
    assert str(error.value) == f"spark-submit: {trouble}"
    assert processes.started_with({"-id": RID}) == []


def test_one_master_of_several_may_be_away(spark: Spark, build: Build) -> None:
    """The driver goes on to the next."""
    connected = CONNECTED.format(APPLICATION)
    spark.on("--class", f"WARN Failed to connect to master a:7077\n{connected}", stays=60)
    found = build(master="spark://a:7077,b:7077").request_resource(resource())
    assert found["spark-application-id"] == APPLICATION


@pytest.mark.parametrize("properties", [STANDALONE, {"master": "local[2]"}])
def test_a_silent_driver_that_runs_is_well(
    spark: Spark, build: Build, properties: dict[str, str]
) -> None:
    """Its log level may hide what it says; its registration decides."""
    spark.on("--class", "quiet", stays=60)
    built = build(**properties)
    built.connect_timeout = 0.5
    assert built.request_resource(resource()) == {DRIVER_HOST: socket.gethostname()}


def test_a_driver_that_ends_at_once_is_no_start(spark: Spark, build: Build) -> None:
    """With exit code 0 as well."""
    spark.on("--class", "nothing to do")
    with pytest.raises(
        StartFailedError, match="named no application; the end of its output:\n  \\| not"
    ):
        build(**STANDALONE).request_resource(resource())


def test_a_driver_on_another_host_cannot_be_ended(build: Build) -> None:
    """Nor seen; while in cluster mode, the host of an earlier start says nothing."""
    there = resource(**{DRIVER_HOST: "elsewhere"})
    built = build(**STANDALONE)
    assert built.status(there) == "unknown"
    with pytest.raises(ReleaseFailedError, match="on host 'elsewhere' and cannot be seen"):
        built.release_resource(there)
    assert built.status(resource()) == "unknown"  # started by AMS, on its host
    build(**STANDALONE, deploy_mode="cluster").release_resource(there)


def test_nothing_to_release_is_no_error(build: Build) -> None:
    """A resource that was never started is left as it is."""
    for properties in ({}, STANDALONE, {**STANDALONE, "deploy-mode": "cluster"}):
        build(**properties).release_resource(resource())


# Cluster mode on a standalone cluster, with a master that says what it is told to.


DRIVER = "driver-20260131120000-0001"
SUBMITTED = f'INFO submitted as {DRIVER}\n{{\n  "submissionId" : "{DRIVER}"\n}}'


class Master:
    """A Spark master's REST port."""

    def __init__(self) -> None:
        master = self
        self.states = ["RUNNING"]  # in turn; the last one stays
        self.answer: dict[str, Any] | bytes | None = None  # instead of all others
        self.asked: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                master.asked.append(f"{self.command} {self.path}")
                body = master.said(self.command)
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815 - the base class's name

            def log_message(self, *_: object) -> None:
                """Nothing is written to the tests' output."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def said(self, method: str) -> bytes:
        """What it answers; a kill makes the driver KILLED in the answer after the next."""
        if isinstance(self.answer, bytes):
            return self.answer
        known = bool(self.states)
        answer: dict[str, Any] = {"action": "x", "success": known}
        if method == "POST" and known:
            self.states += ["KILLED"]
        elif known:
            state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
            answer |= {"driverState": state, "workerHostPort": "w:1"}
        return json.dumps(self.answer or answer).encode()

    def stop(self) -> None:
        """Goes away."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def master() -> Iterator[Master]:
    """A master that leads and knows one driver."""
    found = Master()
    yield found
    found.stop()


def on(port: int, **properties: str) -> dict[str, str]:
    """Properties for cluster mode on masters whose REST port it is."""
    return {
        "master": f"spark://127.0.0.1:{port}",
        "deploy-mode": "cluster",
        "spark-conf.spark.master.rest.enabled": "true",
        **properties,
    }


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_a_driver_on_the_cluster_is_started_seen_and_ended(
    spark: Spark, build: Build, master: Master
) -> None:
    """All through the REST port, which is looked for before anything is submitted."""
    spark.on("--class", SUBMITTED)
    built = build(**on(master.port))
    started = resource().with_properties(built.request_resource(resource()))
    assert started.properties == {"spark-submission-id": DRIVER}
    assert built.status(started) == "running"
    built.release_resource(started)
    assert built.status(started) == "ended"
    assert "driver-00000000000000-0000" in master.asked[0]
    assert f"POST /v1/submissions/kill/{DRIVER}" in master.asked


@pytest.mark.parametrize("state", ["FAILED", "ERROR", "KILLED", "FINISHED"])
def test_a_driver_that_is_over_at_once_is_no_start(
    spark: Spark, build: Build, master: Master, state: str
) -> None:
    """Its worker has the reason, where the master does not say it."""
    spark.on("--class", SUBMITTED)
    master.states = ["RUNNING", "RUNNING", state]
    with pytest.raises(StartFailedError) as error:
        build(**on(master.port)).request_resource(resource())
    assert str(error.value) == f"driver {DRIVER} is {state} already: its worker w:1 has its output"


def test_a_refused_submission_is_no_start(spark: Spark, build: Build, master: Master) -> None:
    """spark-submit ends with 0 then, and what the master said is in its output."""
    spark.on("--class", '"message" : "no such user",\n"success" : false')
    with pytest.raises(StartFailedError) as error:
        build(**on(master.port)).request_resource(resource())
    assert "named no driver" in str(error.value)
    assert "no such user" in str(error.value)


def test_without_a_leading_master_nothing_is_submitted(
    spark: Spark, build: Build, master: Master
) -> None:
    """No answer, one of something else, and one of a master that stands by."""
    spark.on("--class", SUBMITTED)
    with pytest.raises(StartFailedError, match="Connection refused"):
        build(**on(free_port())).request_resource(resource())
    master.answer = b"<html>"
    with pytest.raises(StartFailedError, match="answered 200 with nothing, which is not Spark's"):
        build(**on(master.port)).request_resource(resource())
    master.answer = {"success": False, "message": "Exception: Current state is not alive: STANDBY."}
    with pytest.raises(StartFailedError, match="STANDBY"):
        build(**on(master.port)).request_resource(resource())
    assert spark.calls() == []


def test_the_leading_master_is_found_among_several(
    spark: Spark, build: Build, master: Master
) -> None:
    """By the ports in `master`, by the default or configured one, or where the property says."""
    spark.on("--class", SUBMITTED)
    hosts = f"spark://127.0.0.1:{free_port()},127.0.0.1:{master.port}"
    option = "spark-conf.spark.master.rest.port"
    rpc = {"master": "spark://127.0.0.1:7077", "deploy-mode": "cluster"}
    urls = f"http://127.0.0.1:{free_port()}/, http://127.0.0.1:{master.port}/"
    for properties in (
        on(0, master=hosts),
        {**rpc, option: str(master.port)},
        {**rpc, "spark-rest-url": urls},
    ):
        found = build(**properties).request_resource(resource())
        assert found == {"spark-submission-id": DRIVER}


def test_a_driver_that_does_not_end_is_an_error(build: Build, master: Master) -> None:
    """Its state is told; a master that is away is an error as well."""
    started = resource(spark_submission_id=DRIVER)
    master.states = ["RUNNING"] * 100
    with pytest.raises(ReleaseFailedError, match="is RUNNING still, 2 s after its kill"):
        build(**on(master.port)).release_resource(started)
    with pytest.raises(ReleaseFailedError, match="Connection refused"):
        build(**on(free_port())).release_resource(started)


def test_an_unknown_driver_is_no_error_and_has_no_status(build: Build, master: Master) -> None:
    """The master forgets drivers that ended long ago, or all when it starts anew."""
    master.states = []
    started = resource(spark_submission_id=DRIVER)
    build(**on(master.port)).release_resource(started)
    assert build(**on(master.port)).status(started) == "unknown"
    assert build(**on(free_port())).status(started) == "unknown"
    assert build(**on(master.port)).status(resource()) == "unknown"


@pytest.mark.long
@settings(max_examples=30)
@given(text=st.text(min_size=1))
def test_nothing_but_an_id_of_a_driver_gets_into_an_url(text: str) -> None:
    """What else a row holds is told and not asked for."""
    built = container(**on(1))
    with pytest.raises(ReleaseFailedError, match="is no id of a driver"):
        built.release_resource(resource(spark_submission_id=f"{DRIVER}/{text}"))


def test_the_log_of_an_earlier_start_is_not_looked_at(spark: Spark, build: Build) -> None:
    """An old id in it is not taken for the new one."""
    built = build()
    log = built.log_of(resource())
    log.parent.mkdir(parents=True)
    log.write_text(f"Submitted application {YARN_APPLICATION}\n")
    spark.on("--class", "nothing")
    with pytest.raises(StartFailedError) as error:
        built.request_resource(resource())
    assert YARN_APPLICATION not in str(error.value)
