"""The Flink container: its command lines, and the programs it runs, which are scripts here."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.containers.amoro.flink import FlinkContainer, Target
from dagster_amoro.containers.amoro.flink_conf import flattened, parse_lines, read_conf
from dagster_amoro.containers.amoro.flink_rest import essence
from dagster_amoro.containers.amoro.yarn import end_application
from dagster_amoro.containers.base import Container
from dagster_amoro.containers.environment import chosen
from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.errors import ConfigError, ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.secrets import Mask
from tests.helpers.commands import write_program

ID = "5ghs0a2v1j9k3m7n4p8q6r0t2u"
NAME = f"Amoro-flink-optimizer-flinkGroup-{ID}"
LABELS = (
    "amoro.optimizing-group:flinkGroup,amoro.optimizer-implement:flink-native-kubernetes,"
    f"amoro.optimizer-id:{ID}"
)
MAIN = "org.apache.amoro.optimizer.flink.FlinkOptimizer"
JAR = "/usr/local/amoro/plugin/optimizer/flink/optimizer-job.jar"
COMMON = {
    "flink-home": "/opt/flink/",
    "ams-home": "/usr/local/amoro",
    "ams-optimizing-uri": "thrift://10.0.0.5:1261",
    "ams-version": "0.9.1",
}
SIZES = ("jobmanager.memory.process.size", "taskmanager.memory.process.size")
ANYTHING = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def container(properties: Mapping[str, str] | None = None, **named: str) -> FlinkContainer:
    """A container; named properties have underscores for dashes."""
    given_ = {key.replace("_", "-"): value for key, value in named.items()}
    return FlinkContainer("flink", {**COMMON, **given_, **(properties or {})})


def resource(properties: Mapping[str, str] | None = None, resource_id: str = ID) -> Resource:
    """A resource of two threads."""
    return Resource(
        resource_id=resource_id,
        group_name="flinkGroup",
        container_name="flink",
        thread_count=2,
        memory_mb=0,
        properties=properties or {},
    )


def options(command: Sequence[str]) -> dict[str, str]:
    """The -D options of a command line."""
    pairs = (each[2:].partition("=") for each in command if each.startswith("-D"))
    return {key: value for key, _, value in pairs}


def rest_of(command: Sequence[str]) -> list[str]:
    """The command line without its -D options."""
    return [each for each in command if not each.startswith("-D")]


def arguments(uri: str = "thrift://10.0.0.5:1261") -> list[str]:
    """The optimizer's own."""
    return ["-a", uri, "-p", "2", "-g", "flinkGroup", "-id", ID]


class TestCommand:
    """What is run for the targets that have a command line."""

    def test_yarn_per_job(self) -> None:
        """AMS's own command line, argument by argument."""
        flink = container({"flink-conf.taskmanager.memory.managed.size": "32mb"})
        sizes = {f"flink-conf.{SIZES[0]}": "1024MB", f"flink-conf.{SIZES[1]}": "2048MB"}
        command = flink.command(resource(sizes))
        assert rest_of(command) == [
            *("/opt/flink/bin/flink", "run", "--target=yarn-per-job", "-c", MAIN, JAR),
            *arguments(),
        ]
        assert options(command) == {
            "yarn.per-job-cluster.include-user-jar": "FIRST",
            "taskmanager.memory.process.size": "2 gb",
            "taskmanager.memory.managed.size": "32mb",
            "yarn.application.name": NAME,
            "jobmanager.memory.process.size": "1 gb",
        }

    def test_kubernetes_application(self) -> None:
        """The same for a cluster on Kubernetes, which loads the jar itself."""
        job = "local:///opt/flink/usrlib/optimizer-job.jar"
        image = {"flink-conf.kubernetes.container.image": "apache/amoro-flink-optimizer:0.9"}
        properties = {**image, "flink-conf.kubernetes.service-account": "flink"}
        flink = container(
            properties,
            target="kubernetes-application",
            job_uri=job,
            ams_optimizing_uri="thrift://ams.svc:1261",
        )
        sizes = {f"flink-conf.{SIZES[0]}": "1 gb", f"flink-conf.{SIZES[1]}": "1600m"}
        command = flink.command(resource(sizes))
        assert rest_of(command) == [
            *("/opt/flink/bin/flink", "run-application", "--target=kubernetes-application"),
            *("-c", MAIN, job, *arguments("thrift://ams.svc:1261")),
        ]
        assert options(command) == {
            "taskmanager.memory.process.size": "1600 mb",
            "kubernetes.container.image": "apache/amoro-flink-optimizer:0.9",
            "kubernetes.taskmanager.labels": LABELS,
            "yarn.application.name": NAME,
            "jobmanager.memory.process.size": "1 gb",
            "kubernetes.jobmanager.labels": LABELS,
            "kubernetes.service-account": "flink",
            "kubernetes.cluster-id": f"amoro-optimizer-{ID}",
        }

    def test_yarn_application(self) -> None:
        """An application is run by another action."""
        command = container(target="YARN-Application", job_uri="hdfs:///o.jar").command(resource())
        assert command[1:3] == ["run-application", "--target=yarn-application"]
        assert command[command.index("-c") + 2] == "hdfs:///o.jar"
        assert options(command)["yarn.per-job-cluster.include-user-jar"] == "FIRST"

    def test_0_7(self) -> None:
        """0.7 states MiB, by names of its own first."""
        properties = {
            "jobmanager.memory": "1024",
            f"flink-conf.{SIZES[0]}": "5g",
            SIZES[1]: "9g",
            f"flink-conf.{SIZES[1]}": "2 G",
        }
        command = container(ams_version="0.7.1").command(resource(properties))
        found = options(command)
        assert [found[size] for size in SIZES] == ["1024m", "2048m"]

    @pytest.mark.parametrize("version", ["0.7.1", "0.8.1", "0.9.0", "0.9.1"])
    def test_the_arguments_are_those_the_version_knows(self, version: str) -> None:
        """An unknown option crashes an optimizer."""
        flink = container(ams_version=version)
        command = flink.command(resource({"shutdown-timeout-ms": "9", "heart-beat-interval": "8"}))
        assert ("-st" in command) is (version >= "0.9")
        assert "-hb" in command

    def test_a_session_has_no_command_line(self) -> None:
        """It is submitted over REST."""
        with pytest.raises(StartFailedError, match="session has no command line"):
            container(target="session").command(resource())

    @given(ANYTHING, ANYTHING)
    def test_any_value_stays_in_one_argument(self, value: str, group: str) -> None:
        """Nothing in the database becomes code or another argument."""
        row = Resource(
            resource_id=value or "r",
            group_name=group,
            container_name="flink",
            thread_count=1,
            memory_mb=0,
            properties={"flink-conf.k": value, "heart-beat-interval": value},
        )
        command = container({"flink-conf.c": value}).command(row)
        assert f"-Dk={value}" in command
        assert f"-Dc={value}" in command
        assert f"-Dyarn.application.name=Amoro-flink-optimizer-{group}-{value or 'r'}" in command
        assert command[-3] == value
        assert len(command) == 20

    @pytest.mark.parametrize("value", ["a\0b", "a\ud800b"])
    def test_what_no_argument_can_hold_is_said(self, value: str) -> None:
        """It would fail later and less clearly."""
        with pytest.raises(StartFailedError, match="cannot be put on a command line"):
            container().command(resource({"flink-conf.k": value}))


class TestSizes:
    """Which of the places that can state a size counts."""

    def sizes(self, properties: Mapping[str, str], flink: FlinkContainer) -> list[str | None]:
        """What Flink is told."""
        found = options(flink.command(resource(properties)))
        return [found.get(size) for size in SIZES]

    def test_precedence(self, tmp_path: Path) -> None:
        """The row's plain key, then its flink-conf. key, the container's, and Flink's file."""
        (tmp_path / "config.yaml").write_text("jobmanager: {memory: {process: {size: 1m}}}")
        places = {"export.FLINK_CONF_DIR": str(tmp_path)}
        key = SIZES[0]
        assert self.sizes({}, container(places)) == ["1 mb", None]
        flink = container({**places, f"flink-conf.{key}": "2m"})
        assert self.sizes({}, flink) == ["2 mb", None]
        assert self.sizes({f"flink-conf.{key}": "3m"}, flink) == ["3 mb", None]
        assert self.sizes({f"flink-conf.{key}": "3m", key: "4m"}, flink) == ["4 mb", None]

    @pytest.mark.parametrize("none", ["1024", "", "1023k", "0g"])
    def test_less_than_a_mebibyte_is_left_out(self, none: str) -> None:
        """AMS states 0 bytes, with which Flink does not start."""
        assert self.sizes({f"flink-conf.{SIZES[0]}": none}, container()) == [None, None]

    @pytest.mark.parametrize(("version", "text"), [("0.9.1", "1 gib"), ("0.7.1", "1gb")])
    def test_an_unreadable_size_names_its_place(self, version: str, text: str) -> None:
        """Whoever has to mend it must find it."""
        flink = container(ams_version=version)
        with pytest.raises(
            StartFailedError, match=rf"property 'flink-conf.{SIZES[0]}': '{text}'.*one is like"
        ):
            flink.command(resource({f"flink-conf.{SIZES[0]}": text}))


class TestConf:
    """Flink's own configuration."""

    def write(self, folder: Path) -> None:
        """Both files, each with a value of its own."""
        (folder / "config.yaml").write_text("rest:\n  port: 1\n  on: true\nl: [a, b]\nnone:\n")
        (folder / "flink-conf.yaml").write_text("rest.port: 2 # of two\nodd: *R:*;H:a,b\nempty:\n")

    def test_the_newer_file_comes_first(self, tmp_path: Path) -> None:
        """Nested names are joined, lists are YAML text, and what is empty is not there."""
        self.write(tmp_path)
        expected = {"rest.port": "1", "rest.on": "true", "l": "[a, b]"}
        assert read_conf(tmp_path, AmsVersion.V0_9) == expected
        assert read_conf(tmp_path, AmsVersion.V0_8) == expected

    def test_0_7_knows_the_older_file_only(self, tmp_path: Path) -> None:
        """And reads it as YAML, in which a value cannot begin with an asterisk and a colon."""
        self.write(tmp_path)
        assert read_conf(tmp_path, AmsVersion.V0_7) == {}
        (tmp_path / "flink-conf.yaml").write_text("rest.port: 2\n")
        assert read_conf(tmp_path, AmsVersion.V0_7) == {"rest.port": "2"}

    def test_the_older_file_is_read_as_flink_reads_it(self, tmp_path: Path) -> None:
        """It is not quite YAML."""
        self.write(tmp_path)
        (tmp_path / "config.yaml").unlink()
        assert read_conf(tmp_path, AmsVersion.V0_9) == {"rest.port": "2", "odd": "*R:*;H:a,b"}
        assert read_conf(tmp_path, AmsVersion.V0_8) == {}

    @pytest.mark.parametrize("content", ["- a\n", "a: [", "just text", "\udcff", "{a: {b: c}: d}"])
    def test_what_cannot_be_read_counts_as_empty(self, tmp_path: Path, content: str) -> None:
        """As with AMS."""
        (tmp_path / "config.yaml").write_text(content, errors="surrogateescape")
        assert read_conf(tmp_path, AmsVersion.V0_9) == {}
        assert read_conf(tmp_path / "no", AmsVersion.V0_9) == {}

    @given(st.dictionaries(st.text(), st.text() | st.lists(st.text())))
    def test_a_flat_document_keeps_its_names(self, document: dict[str, Any]) -> None:
        """Dots in names are nothing special."""
        assert flattened(document).keys() <= document.keys()

    @given(st.text())
    def test_any_lines_can_be_read(self, text: str) -> None:
        """Neither names nor values are ever empty."""
        assert all(key and value for key, value in parse_lines(text).items())


class TestProperties:
    """What a container of this kind must have."""

    def test_is_a_container(self) -> None:
        """It has what a container must have."""
        assert isinstance(container(), Container)

    @pytest.mark.parametrize("key", ["flink-home", "ams-optimizing-uri"])
    def test_required(self, key: str) -> None:
        """The message names what is missing."""
        with pytest.raises(ConfigError, match=f"'{key}' is required"):
            container({key: ""})

    @pytest.mark.parametrize("text", ["", "yarn", "yarn-session", " session"])
    def test_unknown_target(self, text: str) -> None:
        """The message says which there are."""
        with pytest.raises(
            ConfigError, match=rf"'target' is '{text}'; accepted .*{Target.SESSION}"
        ):
            container(target=text)

    def test_default_target(self) -> None:
        """The one of AMS."""
        assert container().target is Target.YARN_PER_JOB

    @pytest.mark.parametrize("target", ["yarn-application", "kubernetes-application"])
    def test_applications_need_a_job_uri(self, target: str) -> None:
        """The cluster could not load Amoro's own from this host."""
        with pytest.raises(ConfigError, match="'job-uri' is required"):
            container(target=target)

    def test_amoros_own_jar_needs_its_home(self) -> None:
        """It is known at once that the jar cannot be found."""
        with pytest.raises(ConfigError, match=r"keeper\.ams-home"):
            container(ams_home="")
        assert container(ams_home="", job_uri="/o.jar").job_uri == "/o.jar"

    def test_kubernetes_needs_an_image(self, tmp_path: Path) -> None:
        """From the container's properties, or from Flink's configuration."""
        application = {
            "target": "kubernetes-application",
            "job-uri": "local:///o.jar",
            "export.FLINK_CONF_DIR": str(tmp_path),
        }
        with pytest.raises(ConfigError, match=r"flink-conf\.kubernetes\.container\.image"):
            container(application)
        (tmp_path / "flink-conf.yaml").write_text("kubernetes.container.image: i\n")
        container(application)

    @pytest.mark.parametrize("text", ["", "0", "-1", "1.5", " 5", "ten"])
    def test_the_timeout_is_whole_seconds(self, text: str) -> None:
        """Nothing waits for ever, or not at all."""
        with pytest.raises(ConfigError, match="flink-client-timeout-second"):
            container(flink_client_timeout_second=text)


class TestSubmission:
    """What a session cluster is sent."""

    def test_as_ams_sends_it(self) -> None:
        """One text with AMS's spaces."""
        uri = "thrift://10.0.0.5:1261?connectTimeout=1000&socketTimeout=2000"
        session = container(target="session", ams_optimizing_uri=uri)
        job_id = "e2a18fec415f14f3e73478412a872f29"
        assert session.submission(resource({"cache-enabled": "TRUE"}, "rid1"), job_id) == {
            "entryClass": MAIN,
            "programArgs": f" -a {uri} -p 2 -g flinkGroup -ce  -id rid1",
            "jobId": job_id,
            "allowNonRestoredState": True,
        }

    @pytest.mark.parametrize("value", ["a b", "a\tb", 'a"b', "it's", "", "a\u2003b"])
    def test_what_flink_would_split_is_sent_as_a_list(self, value: str) -> None:
        """Each argument stays one."""
        body = container(target="session").submission(resource({"heart-beat-interval": value}), "j")
        assert "programArgs" not in body
        assert body["programArgsList"][7] == value

    @given(ANYTHING)
    def test_any_value_stays_one_argument(self, value: str) -> None:
        """Whether in the text or in the list."""
        body = container(target="session").submission(resource({"heart-beat-interval": value}), "j")
        words = body.get("programArgsList") or body["programArgs"].split()
        assert words[7] == value
        assert len(words) == 10


def test_the_essence_of_an_error() -> None:
    """Messages and causes, each once, and no stack traces."""
    trace = (
        "<Exception on server side:\norg.apache.flink.X: Could not run.\n\tat a.b.C.d(C.java:1)\n"
        "\t... 3 more\nCaused by: java.lang.ClassNotFoundException: Nope\nEnd of exception>"
    )
    assert essence(["Internal server error.", trace, trace]) == (
        "org.apache.flink.X: Could not run.\nCaused by: java.lang.ClassNotFoundException: Nope"
    )
    assert essence("Not found.") == "Not found."
    assert essence(None) == ""
    assert len(essence(["x" * 10_000])) < 700


class Call(NamedTuple):
    """One run of a program."""

    argv: list[str]
    environment: dict[str, str]
    stdin: str


class Programs:
    """Programs in a folder that note their calls and answer as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._calls = folder / "calls"

    def add(
        self, name: str, *prints: str, codes: Sequence[int] = (0,), errors: str = "", wait: int = 0
    ) -> None:
        """A program; its calls print one text after the other, and the last of its codes stays."""
        write_program(
            self.folder / name,
            "import json, os, sys, time\n"
            f"with open({str(self._calls)!r}, 'a+') as calls:\n"
            "    calls.write(json.dumps([sys.argv, dict(os.environ), sys.stdin.read()]) + '\\n')\n"
            f"    calls.seek(0); number = sum({name!r} in line for line in calls) - 1\n"
            f"print({prints!r}[number] if number < {len(prints)} else '', flush=True)\n"
            f"print({errors!r}, file=sys.stderr, flush=True)\n"
            f"time.sleep({wait}); sys.exit({list(codes)!r}[min(number, {len(codes) - 1})])\n",
        )

    @property
    def calls(self) -> list[Call]:
        """All calls so far."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        return [Call(*json.loads(line)) for line in lines]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Programs:
    """An empty Flink home; the logs go beside it, and no other `yarn` is to be found."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    for name in ("HADOOP_HOME", "HADOOP_YARN_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    return Programs(tmp_path / "home")


def flink_in(programs: Programs, properties: Mapping[str, str] | None = None) -> FlinkContainer:
    """A container for that home."""
    return container({"flink-home": str(programs.folder), **(properties or {})})


ON_KUBERNETES = {
    "target": "kubernetes-application",
    "job-uri": "local:///o.jar",
    "flink-conf.kubernetes.container.image": "i",
}


class TestStartOnYarn:
    """What the program `flink` says decides."""

    def test_the_application_is_found(self, programs: Programs) -> None:
        """The last thing on a line, whatever stands before it."""
        said = "Job\n2026 INFO Submitted application application_1700000000000_0042\nand so on"
        programs.add("bin/flink", said)
        flink = flink_in(programs, {"export.HADOOP_USER_NAME": "hadoop", "export.A": "'b c'"})
        started = flink.request_resource(resource())
        assert started == {"yarn-application-id": "application_1700000000000_0042"}
        (call,) = programs.calls
        assert call.argv == flink.command(resource())
        assert call.environment["HADOOP_USER_NAME"] == "hadoop"
        assert call.environment["A"] == "b c"
        assert said in flink.log_of(resource()).read_text()

    def test_it_works_without_exports(self, programs: Programs) -> None:
        """AMS's shell text would be an error."""
        programs.add("bin/flink", "application_1_2")
        assert flink_in(programs).request_resource(resource())

    def test_awkward_values_arrive_as_they_are(self, programs: Programs) -> None:
        """Quotes, ampersands, substitutions, line ends: an argument is an argument."""
        programs.add("bin/flink", "application_1_2")
        value = "a b&c;$(touch x)`d`\"e'f\ng*"
        row = resource({"flink-conf.k": value, "ams-optimizing-uri": value})
        flink_in(programs).request_resource(row)
        (call,) = programs.calls
        assert f"-Dk={value}" in call.argv
        assert call.argv[call.argv.index("-a") + 1] == value

    def test_no_application(self, programs: Programs) -> None:
        """An end with 0 is not enough, and what an earlier start said does not count."""
        programs.add("bin/flink", "application_1_1", "application_1_2 is on its way token=hush")
        flink = flink_in(programs)
        flink.request_resource(resource())
        with pytest.raises(
            StartFailedError, match=r"exit code 0 and named no application[\s\S]*its way token=\*"
        ):
            flink.request_resource(resource())

    def test_failure_without_secrets(self, programs: Programs) -> None:
        """The exit code and the end of the output, what is secret hidden."""
        programs.add("bin/flink", codes=[1], errors="no queue; key is hunter2hunter2")
        flink = flink_in(programs, {"flink-conf.s3.secret-key": "hunter2hunter2"})
        with pytest.raises(StartFailedError, match="flink ended with exit code 1") as caught:
            flink.request_resource(resource())
        assert "no queue; key is ***" in str(caught.value)

    def test_a_program_that_hangs_is_killed(self, programs: Programs) -> None:
        """The start fails then."""
        programs.add("bin/flink", f"{os.linesep}waiting", wait=60)
        flink = flink_in(programs)
        flink.start_timeout = 0.3
        with pytest.raises(StartFailedError, match=r"within 0\.3 s what it started[\s\S]*waiting"):
            flink.request_resource(resource())

    def test_there_is_no_flink(self, programs: Programs) -> None:
        """The message has its path."""
        with pytest.raises(StartFailedError, match=r"home/bin/flink.* could not be started"):
            flink_in(programs).request_resource(resource())


class TestStartOnKubernetes:
    """The program `flink` returns when the cluster is asked for."""

    def test_started(self, programs: Programs) -> None:
        """The cluster's id comes from the resource's."""
        programs.add("bin/flink", "Create flink application cluster")
        started = flink_in(programs, ON_KUBERNETES).request_resource(resource())
        assert started == {"kubernetes-cluster-id": f"amoro-optimizer-{ID}"}
        assert programs.calls[0].argv[1:3] == ["run-application", "--target=kubernetes-application"]

    def test_failed(self, programs: Programs) -> None:
        """AMS would not notice."""
        programs.add("bin/flink", codes=[1], errors="The Flink cluster already exists.")
        with pytest.raises(StartFailedError, match=r"exit code 1[\s\S]*already exists"):
            flink_in(programs, ON_KUBERNETES).request_resource(resource())


class TestReleaseOnKubernetes:
    """Flink's own script stops a cluster."""

    ROW = resource({"kubernetes-cluster-id": f"amoro-optimizer-{ID}"})
    NONE = "org.apache.flink.configuration.IllegalConfigurationException: JobManager memory"

    def test_stopped(self, programs: Programs) -> None:
        """It reads that from its input, as with AMS, until there is no cluster of that name."""
        programs.add("bin/kubernetes-session.sh", "", "", self.NONE, codes=[0, 0, 1])
        namespace = {"flink-conf.kubernetes.namespace": "n s"}
        flink_in(programs, {**ON_KUBERNETES, **namespace}).release_resource(self.ROW)
        assert [call.stdin for call in programs.calls] == ["stop\n"] * 3
        assert programs.calls[0].argv[1:] == [
            "-Dkubernetes.container.image=i",
            "-Dkubernetes.namespace=n s",
            f"-Dkubernetes.cluster-id=amoro-optimizer-{ID}",
            "-Djobmanager.memory.process.size=1 kb",
            "-Dexecution.attached=true",
        ]

    def test_there_is_none(self, programs: Programs) -> None:
        """The script would make one, and is kept from it."""
        programs.add("bin/kubernetes-session.sh", self.NONE, codes=[1])
        flink_in(programs, ON_KUBERNETES).release_resource(self.ROW)
        assert len(programs.calls) == 1

    def test_it_stays(self, programs: Programs) -> None:
        """A cluster that is still going away would be in the way of the next start."""
        programs.add("bin/kubernetes-session.sh")
        flink = flink_in(programs, ON_KUBERNETES)
        flink.release_timeout = 0
        with pytest.raises(ReleaseFailedError, match=f"amoro-optimizer-{ID} is there still"):
            flink.release_resource(self.ROW)

    def test_another_ones_is_left_alone(self, programs: Programs) -> None:
        """AMS can write one resource's cluster into another's row; its own is looked for."""
        programs.add("bin/kubernetes-session.sh", self.NONE, codes=[1])
        row = resource({"kubernetes-cluster-id": "amoro-optimizer-other"})
        flink_in(programs, ON_KUBERNETES).release_resource(row)
        assert f"-Dkubernetes.cluster-id=amoro-optimizer-{ID}" in programs.calls[0].argv

    def test_what_was_never_saved(self, programs: Programs) -> None:
        """A start that was killed may have made it; it would be in the way of the next."""
        programs.add("bin/kubernetes-session.sh", "", self.NONE, codes=[0, 1])
        flink_in(programs, ON_KUBERNETES).release_resource(resource())
        assert len(programs.calls) == 2

    def test_failed(self, programs: Programs) -> None:
        """The cluster may still be there."""
        programs.add("bin/kubernetes-session.sh", codes=[1], errors="Unauthorized")
        with pytest.raises(ReleaseFailedError, match=r"exit code 1[\s\S]*Unauthorized"):
            flink_in(programs, ON_KUBERNETES).release_resource(self.ROW)


def report(name: str = NAME, state: str = "RUNNING", final: str = "UNDEFINED") -> str:
    """What `yarn application -status` prints."""
    return (
        "INFO client.RMProxy: Connecting\nApplication Report : \n"
        f"\tApplication-Id : application_1_2\n\tApplication-Name : {name}\n"
        f"\tState : {state}\n\tFinal-State : {final}\n"
        "\tDiagnostics : AM Container exited with exitCode: -104\n more of it\n"
    )


class TestPostMortemOnYarn:
    """What YARN says of an application that is over."""

    @pytest.mark.parametrize(
        ("said", "cause", "text"),
        [
            (
                report(state="FINISHED", final="FAILED"),
                "failed",
                "FAILED: AM Container exited with",
            ),
            (report(state="KILLED", final="KILLED"), "killed", "KILLED: AM Container exited with"),
            (report(), "unknown", "RUNNING: AM Container exited with exitCode: -104"),
            (report(name=f"{NAME}x"), "unknown", "YARN does not know its last application "),
        ],
    )
    def test_ended(self, programs: Programs, said: str, cause: str, text: str) -> None:
        """Its final state, and why."""
        programs.add("bin/yarn", said)
        flink = flink_in(programs, {"export.HADOOP_HOME": str(programs.folder)})
        found = flink.post_mortem(resource({"yarn-application-id": "application_1_2"}))
        assert found is not None
        assert found.cause == cause
        assert text in found.text

    def test_nothing_started(self, programs: Programs) -> None:
        """A row without an id names nothing to ask for."""
        found = flink_in(programs).post_mortem(resource())
        assert found == ("never started", "its row names no application on YARN", "")


class TestReleaseOnYarn:
    """The program `yarn` ends applications."""

    ROW = resource({"yarn-application-id": "application_1_2"})

    def release(self, programs: Programs, row: Resource = ROW) -> list[list[str]]:
        """Releases, and returns the arguments that `yarn` got."""
        hadoop = {"export.HADOOP_HOME": str(programs.folder)}
        flink_in(programs, hadoop).release_resource(row)
        return [call.argv[1:] for call in programs.calls]

    def test_killed(self, programs: Programs) -> None:
        """Once it is known to be this resource's."""
        programs.add("bin/yarn", report())
        assert self.release(programs) == [
            ["application", "-status", "application_1_2"],
            ["application", "-kill", "application_1_2"],
        ]

    @pytest.mark.parametrize(
        "said", [report(name=f"{NAME}x"), *(report(state=s) for s in ("FINISHED", "KILLED"))]
    )
    def test_anothers_or_over(self, programs: Programs, said: str) -> None:
        """There is nothing to end, and nothing wrong."""
        programs.add("bin/yarn", said)
        assert len(self.release(programs)) == 1

    def test_unknown_to_yarn(self, programs: Programs) -> None:
        """It has forgotten it."""
        programs.add(
            "bin/yarn", "Application with id 'application_1_2' doesn't exist in RM.", codes=[255]
        )
        assert len(self.release(programs)) == 1

    def test_a_report_that_says_too_little(self, programs: Programs) -> None:
        """It proves nothing."""
        programs.add("bin/yarn", "Application Report : \n\tState : RUNNING")
        with pytest.raises(ReleaseFailedError, match="did not say its name and state"):
            self.release(programs)

    def test_nothing_started(self, programs: Programs) -> None:
        """A row without an id is done with, even where there is no `yarn`."""
        assert self.release(programs, resource()) == []

    def test_yarn_fails(self, programs: Programs) -> None:
        """The application may still be running."""
        programs.add("bin/yarn", codes=[1], errors="Connection refused, password=hunter2")
        with pytest.raises(
            ReleaseFailedError, match=r"application_1_2 may still[\s\S]*refused, password=\*\*\*"
        ):
            self.release(programs)

    def test_there_is_no_yarn(self, programs: Programs) -> None:
        """The message says how to name it."""
        with pytest.raises(ReleaseFailedError, match=r"no program 'yarn'.*export\.HADOOP_HOME"):
            flink_in(programs).release_resource(self.ROW)

    @pytest.mark.parametrize("text", ["-help", "application_1_2;x", "application_1", "app"])
    def test_no_id(self, programs: Programs, text: str) -> None:
        """What is not an id becomes no argument of `yarn`."""
        with pytest.raises(ReleaseFailedError, match="no id of an application"):
            self.release(programs, resource({"yarn-application-id": text}))

    def test_by_path_and_without_a_name(
        self, programs: Programs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Who has no name to compare ends it all the same."""
        programs.add("yarn", report(name="whatever"))
        monkeypatch.setenv("PATH", str(programs.folder))
        end_application("application_1_2", None, chosen(), Mask())
        assert [call.argv[2] for call in programs.calls] == ["-status", "-kill"]


def test_only_a_session_says_whether_a_job_runs() -> None:
    """The other targets would need a program that may not be here."""
    assert container().status(resource()) == "unknown"
    assert container(target="session").status(resource()) == "unknown"
