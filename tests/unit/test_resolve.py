"""Containers by name: what can be built, what cannot, and what is in the way of restarts."""

import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from dagster import DagsterExecutionInterruptedError

import dagster_amoro.defs  # noqa: F401 - makes Dagster's interruption known
from dagster_amoro import CommandContainer
from dagster_amoro.config import ContainerSettings
from dagster_amoro.containers.amoro.base import OptimizerContainer
from dagster_amoro.containers.resolve import Containers, build_container
from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.errors import ContainerError, ReleaseFailedError, StartFailedError
from dagster_amoro.core.model import Resource
from dagster_amoro.core.texts import harmless
from dagster_amoro.testing import RecordingContainer

RECORDING = "dagster_amoro.testing.RecordingContainer"
JAVA = "org.apache.amoro.server.manager.FlinkOptimizerContainer"
HERE = "containers_of_this_test"


class PanicError(BaseException):
    """What an extension in Rust raises is no Exception either."""


class Raising:
    """Raises what its properties hold."""

    error: BaseException = RuntimeError("no luck")

    def __init__(self, *_: object) -> None:
        raise self.error


class Incomplete:
    """Cannot release anything."""

    supports_auto_restart = True
    release_resource = None

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        pass

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Does nothing."""
        return dict(resource.properties)


class Silent(RecordingContainer):
    """Fails when it is asked whether it restarts."""

    error: BaseException = RuntimeError("who knows")

    @property
    def supports_auto_restart(self) -> bool:
        """Never answers."""
        raise self.error

    @supports_auto_restart.setter
    def supports_auto_restart(self, value: bool) -> None:
        """Takes no notice."""


class Counted(RecordingContainer):
    """Counts how often it is built."""

    built = 0

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        super().__init__(name, properties)
        type(self).built += 1


@pytest.fixture(autouse=True)
def importable() -> Iterator[None]:
    """Makes the classes of this module importable by a name, which pytest's import does not."""
    sys.modules[HERE] = sys.modules[__name__]
    Counted.built = 0
    yield
    del sys.modules[HERE]


def settings(implementation: str, name: str = "c", **properties: str) -> ContainerSettings:
    """An entry of the configuration."""
    return ContainerSettings(name=name, implementation=implementation, properties=properties)


def containers(**implementations: str) -> Containers:
    """The containers of a configuration."""
    return Containers({name: settings(each, name) for name, each in implementations.items()})


def resource(resource_id: str = "r1", **properties: str) -> Resource:
    """A resource with these properties."""
    return Resource(
        resource_id=resource_id,
        group_name="g",
        container_name="c",
        thread_count=1,
        memory_mb=0,
        properties=properties,
    )


def test_builds_a_class_with_name_and_properties() -> None:
    """The properties are a copy: no container can change the configuration."""
    entry = settings(RECORDING, "local", memory="1024")
    container = build_container(entry)
    assert isinstance(container, RecordingContainer)
    assert (container.name, container.properties) == ("local", {"memory": "1024"})
    assert container.properties is not entry.properties


def test_builds_the_command_container_by_its_public_name() -> None:
    """The name that a config.yaml has."""
    entry = settings("dagster_amoro.CommandContainer", command='["w"]')
    assert isinstance(build_container(entry), CommandContainer)


@pytest.mark.parametrize(
    ("implementation", "why"),
    [
        ("", "package.module.Class"),
        ("Container", "package.module.Class"),
        ("os.", "package.module.Class"),
        (".os.path", "TypeError"),
        ("no.such.module.Container", "ModuleNotFoundError: No module named 'no'"),
        ("os.path.Container", "AttributeError: module 'posixpath' has no attribute 'Container'"),
        ("os.path", "TypeError: 'module' object is not callable"),
        ("o\0s.X", "Error"),
        (f"{HERE}.Raising", "RuntimeError: no luck"),
        (f"{HERE}.Incomplete", "it has no release_resource"),
        ("collections.abc.Sized", "TypeError"),
        ("dagster_amoro.CommandContainer", "property 'command' is missing"),
        (JAVA, "container 'c': property 'ams-optimizing-uri' is required"),
        ("org.apache.amoro.Other", f"no such class of Amoro is known; known are {JAVA[:31]}"),
    ],
)
def test_what_cannot_be_built_is_one_kind_of_error(implementation: str, why: str) -> None:
    """It names container, class and cause."""
    with pytest.raises(ContainerError) as caught:
        build_container(settings(implementation))
    shown = harmless(implementation)
    assert str(caught.value).startswith(f"container 'c' cannot be used: {shown}: ")
    assert why in str(caught.value)


def installed(folder: Path, name: str, *lines: str) -> None:
    """A distribution with these entry points, as an installer leaves it."""
    about = folder / f"{name}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    content = "\n".join(["[dagster_amoro.containers]", *lines])
    (about / "entry_points.txt").write_text(content)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which packages are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_name_without_a_dot_is_that_of_an_installed_container(packages: Path) -> None:
    """Whichever package brings it; it may come in by two ways."""
    installed(packages, "ours", f"recording = {HERE}:Counted")
    installed(packages, "ours_again", f"recording = {HERE}:Counted")
    assert isinstance(build_container(settings("recording", memory="1")), Counted)


def test_an_installed_container_that_is_not_there_is_told_with_those_that_are(
    packages: Path,
) -> None:
    """Mostly it is a typing error, or a package that is not installed here."""
    installed(packages, "ours", "units = units:Units", "pods = pods:Pods")
    why = r"in dagster_amoro\.containers, which are: 'pods', 'units'"
    with pytest.raises(ContainerError, match=why):
        build_container(settings("unit"))


def test_an_installed_container_that_is_broken_names_its_package(packages: Path) -> None:
    """That is what has to be mended or removed."""
    (packages / "exits.py").write_text("raise SystemExit(3)")
    installed(packages, "theirs", "units = exits:Units", "pods = no.such:Pods")
    why = "exits:Units of theirs 1.2 cannot be imported: SystemExit: 3"
    with pytest.raises(ContainerError, match=why):
        build_container(settings("units"))
    with pytest.raises(ContainerError, match=r"no\.such:Pods of theirs 1\.2 cannot be imported"):
        build_container(settings("pods"))


def test_two_packages_with_one_name_are_told(packages: Path) -> None:
    """Nobody is to find out by what is started."""
    installed(packages, "ours", f"units = {HERE}:Counted")
    installed(packages, "theirs", f"units = {HERE}:Silent")
    why = r"ambiguous: ours 1\.2 and theirs 1\.2 have a container of this name"
    with pytest.raises(ContainerError, match=why):
        build_container(settings("units"))


@pytest.mark.parametrize(
    ("kind", "properties"),
    [
        ("Local", {}),
        ("Flink", {"flink-home": "/opt/flink"}),
        ("Spark", {"spark-home": "/opt/spark"}),
        ("Kubernetes", {"auto-restart": "true"}),
    ],
)
def test_amoros_class_names_stand_for_ours(kind: str, properties: dict[str, str]) -> None:
    """They start optimizers for the version that the AMS which was asked has."""
    given = {"ams-home": "/opt/amoro", "ams-optimizing-uri": "thrift://ams:1261", **properties}
    entry = settings(f"org.apache.amoro.server.manager.{kind}OptimizerContainer", **given)
    container = build_container(entry, lambda: AmsVersion.V0_8)
    assert type(container).__name__ == f"{kind}Container"
    assert isinstance(container, OptimizerContainer)
    assert container.ams_version is AmsVersion.V0_8


def test_an_unknown_version_of_ams_is_an_obstacle() -> None:
    """An option that it does not know would crash the optimizer."""

    def ask() -> AmsVersion:
        raise ContainerError("the version of AMS is not known")

    given = {"ams-optimizing-uri": "thrift://ams:1261", "flink-home": "/opt/flink"}
    entry = settings(JAVA, **given, **{"ams-home": "/opt/amoro"})
    assert Containers({"c": entry}, ask).obstacle("c") == "the version of AMS is not known"


def test_a_secret_property_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the class makes of it."""
    monkeypatch.setattr(Raising, "error", RuntimeError("cannot log in with hunter22"))
    with pytest.raises(ContainerError, match=r"cannot log in with \*\*\*"):
        build_container(settings(f"{HERE}.Raising", password="hunter22"))  # noqa: S106


def test_an_object_without_any_member_is_no_container() -> None:
    """The error lists what is missing."""
    with pytest.raises(ContainerError, match="it has no request_resource and no release_resource"):
        build_container(settings("builtins.slice"))


@pytest.mark.parametrize("error", [SystemExit(2), PanicError("a panic"), ValueError()])
def test_a_constructor_may_raise_anything(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One broken container does not end the process."""
    monkeypatch.setattr(Raising, "error", error)
    with pytest.raises(ContainerError, match=type(error).__name__):
        build_container(settings(f"{HERE}.Raising"))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, DagsterExecutionInterruptedError])
def test_an_interrupt_is_passed_on(
    kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever presses Ctrl-C or ends a run means the process; the container is not to blame."""
    found = containers(c=f"{HERE}.Raising", s=f"{HERE}.Silent")
    monkeypatch.setattr(Raising, "error", kind())
    monkeypatch.setattr(Silent, "error", kind())
    for name in ("c", "s"):
        with pytest.raises(kind):
            found.obstacle(name)
    monkeypatch.setattr(Silent, "error", RuntimeError("who knows"))
    assert "who knows" in str(found.obstacle("s"))


def test_get_returns_one_container_for_one_name() -> None:
    """It is built once, when it is first asked for."""
    found = containers(a=f"{HERE}.Counted", b="no.such.Thing")
    assert Counted.built == 0
    assert found.get("a") is found.get("a")
    assert Counted.built == 1


def test_many_threads_get_one_container() -> None:
    """Ticks and runs may ask at the same time."""
    found = containers(a=f"{HERE}.Counted")
    threads = [threading.Thread(target=found.get, args=("a",)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counted.built == 1


def test_get_says_what_there_is_where_there_is_no_such_container() -> None:
    """An unknown name is usually a misspelt one."""
    with pytest.raises(ContainerError, match="'x' is not configured; there are: 'a', 'b'"):
        containers(a=RECORDING, b=JAVA).get("x")
    with pytest.raises(ContainerError, match="'x' is not configured; there are: none"):
        containers().get("x")


def test_get_says_each_time_why_a_container_is_broken() -> None:
    """With a new error: one that is raised twice collects tracebacks."""
    found = containers(a="no.such.Thing")
    errors = []
    for _ in range(2):
        with pytest.raises(ContainerError, match="No module named 'no'") as caught:
            found.get("a")
        errors.append(caught.value)
    assert errors[0] is not errors[1]


def test_there_is_no_obstacle_where_orphans_can_be_restarted() -> None:
    """The usual case."""
    assert containers(a=RECORDING).obstacle("a") is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (None, "it names no container"),
        ("x", "container 'x' is not configured; there are: 'broken', 'java', 'silent'"),
        ("broken", "container 'broken' cannot be used: no.such.Thing: ModuleNotFoundError: No"),
        ("java", f"container 'java' cannot be used: {JAVA}: container 'java': property"),
        ("external", "container 'external': what people start by hand is theirs"),
        ("silent", "container 'silent' does not say whether it restarts: RuntimeError: who knows"),
    ],
)
def test_an_obstacle_says_why_orphans_cannot_be_restarted(name: str | None, why: str) -> None:
    """It becomes the reason of a report."""
    found = containers(broken="no.such.Thing", java=JAVA, silent=f"{HERE}.Silent")
    assert str(found.obstacle(name)).startswith(why)


def test_a_container_may_opt_out() -> None:
    """Its orphans are reported; it can still be asked for."""
    found = Containers({"a": settings(RECORDING, "a", **{"auto-restart": "false"})})
    assert found.obstacle("a") == "container 'a' opts out of restarts"
    assert isinstance(found.get("a"), RecordingContainer)


def test_a_container_that_can_be_built_is_built_once() -> None:
    """However often it is asked for."""
    found = containers(a=f"{HERE}.Counted")
    assert [found.obstacle("a") for _ in range(100)] == [None] * 100
    assert Counted.built == 1


def test_a_container_that_could_not_be_built_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it lacked may be there by then."""
    found = containers(a=f"{HERE}.Later")
    assert "AttributeError" in str(found.obstacle("a"))
    monkeypatch.setitem(globals(), "Later", RecordingContainer)
    assert found.obstacle("a") is None


def test_the_fake_records_its_calls_in_their_order() -> None:
    """And keeps account of what would run."""
    fake = RecordingContainer("c", {})
    one = resource()
    one = one.with_properties(fake.request_resource(one))
    assert fake.running == {"r1"}
    assert fake.status(one) == "running"
    fake.request_resource(resource("r2"))
    fake.release_resource(one)
    assert [(call.action, call.resource.resource_id) for call in fake.calls] == [
        ("request", "r1"),
        ("request", "r2"),
        ("release", "r1"),
    ]
    assert (fake.requested, fake.released) == (["r1", "r2"], ["r1"])
    assert fake.running == {"r2"}
    assert fake.status(one) == "ended"


def test_the_fake_releases_only_the_launch_that_is_named() -> None:
    """As the real ones do; a worker that died is not there to be released."""
    fake = RecordingContainer("c", {})
    older = resource().with_properties(fake.request_resource(resource()))
    newer = resource().with_properties(fake.request_resource(older))
    fake.release_resource(older)
    assert fake.status(newer) == "running"
    fake.end("r1")
    assert fake.status(newer) == "ended"
    fake.release_resource(newer)


def test_the_fake_fails_as_often_as_it_is_told() -> None:
    """With its own error or with the test's; calls that fail are recorded too."""
    fake = RecordingContainer("c", {})
    fake.fail_starts("no memory", times=1)
    with pytest.raises(StartFailedError, match="no memory"):
        fake.request_resource(resource())
    fake.request_resource(resource())
    fake.fail_starts(OSError("gone"))
    fake.refuse_releases()
    for _ in range(3):
        with pytest.raises(OSError, match="gone"):
            fake.request_resource(resource())
        with pytest.raises(ReleaseFailedError, match="set to fail"):
            fake.release_resource(resource())
    fake.refuse_releases(times=0)
    fake.release_resource(resource())
    assert len(fake.calls) == 9


def test_the_fake_can_be_told_by_its_properties() -> None:
    """For a configuration that a whole Dagster runs with."""
    message: dict[str, Any] = {"fail-starts": "no", "refuse-releases": "never"}
    fake = RecordingContainer("c", message)
    with pytest.raises(StartFailedError, match="no"):
        fake.request_resource(resource())
    with pytest.raises(ReleaseFailedError, match="never"):
        fake.release_resource(resource())
    assert fake.supports_auto_restart
    fake.opt_out()
    assert not fake.supports_auto_restart


def test_something_can_happen_during_a_start_of_the_fake() -> None:
    """Such as the registration of an optimizer that was believed dead."""
    fake = RecordingContainer("c", {})
    seen: list[str] = []
    fake.during_request = lambda one: seen.append(f"{one.resource_id} {sorted(fake.running)}")
    fake.request_resource(resource())
    assert seen == ["r1 []"]


def test_the_fake_can_be_used_by_several_threads() -> None:
    """No call is lost, and no two starts have the same launch."""
    fake = RecordingContainer("c", {})
    launches: list[str] = []

    def start() -> None:
        launches.extend(fake.request_resource(resource())["recording-launch"] for _ in range(500))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fake.calls) == len(set(launches)) == 2000
