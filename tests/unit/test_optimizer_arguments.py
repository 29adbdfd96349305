import re
import shlex
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.containers.amoro.base import OptimizerContainer, as_text, is_true, usable
from dagster_amoro.containers.amoro.local import LocalContainer, log_folder
from dagster_amoro.core.ams_version import AmsVersion
from dagster_amoro.core.errors import ConfigError, ContainerError, StartFailedError
from dagster_amoro.core.model import Resource

ID = "5ghs0a2v1j9k3m7n4p8q6r0t2u"
URI = "thrift://127.0.0.1:1261"
HOME = "/usr/local/amoro"
VERSIONS = ("0.7.1", "0.8.1", "0.9.0", "0.9-SNAPSHOT")
EVERYTHING = {
    "memory": "512",
    "heart-beat-interval": "15000",
    "shutdown-timeout-ms": "60000",
    "extend-disk-storage": "true",
    "disk-storage-path": "/data/spill",
    "memory-storage-size": "256",
    "cache-enabled": "true",
    "cache-max-total-size": "256mb",
    "cache-max-entry-size": "32mb",
    "cache-timeout": "5min",
    "ams-optimizing-uri": "thrift://10.0.0.9:1261",
}
NEW = ("-st", "-ce", "-cmts", "-cmes", "-ct", "-msm")  # options that 0.7 and 0.8 do not know


def resource(properties: Mapping[str, str], **changes: object) -> Resource:
    """A resource of two threads in the group default."""
    fields = {
        "resource_id": ID,
        "group_name": "default",
        "container_name": "localContainer",
        "thread_count": 2,
        "memory_mb": 0,
        "properties": properties,
    }
    return Resource(**(fields | changes))  # type: ignore[arg-type]


def local(**properties: str) -> LocalContainer:
    """A local container; underscores stand for hyphens."""
    given = {key.replace("_", "-"): value for key, value in properties.items()}
    return LocalContainer("local", {"ams-home": HOME, "ams-optimizing-uri": URI, **given})


@pytest.mark.parametrize("version", VERSIONS)
def test_the_least_command(version: str) -> None:
    """Character by character what every version of AMS runs for a row with memory only."""
    command = local(ams_version=version).command(resource({"memory": "1024"}))
    text = f"{command[0]} start {command[2]} {as_text(command[3:])}"
    assert text == (
        "/usr/local/amoro/bin/optimizer.sh start 2048  -a thrift://127.0.0.1:1261 -p 2 -g default "
        "-id 5ghs0a2v1j9k3m7n4p8q6r0t2u"
    )
    assert log_folder(resource({})) == "optimizer-default-5ghs0a2v1j9k3m7n4p8q6r0t2u"


@pytest.mark.parametrize(
    ("version", "shutdown", "cache"),
    [
        ("0.7.1", "", ""),
        ("0.8.1", "", ""),
        ("0.9.0", "-st 60000 ", "-ce  -cmts 256mb -cmes 32mb -ct 5min "),
        ("0.9-SNAPSHOT", "-st 60000 ", "-ce  -cmts 256mb -cmes 32mb -ct 5min "),
    ],
)
def test_the_longest_command(version: str, shutdown: str, cache: str) -> None:
    """With every property; older optimizers are not given the options they do not know."""
    row = resource(EVERYTHING, group_name="g2", thread_count=3)
    command = local(ams_version=version).command(row)
    assert f"{command[0]} start {command[2]} {as_text(command[3:])}" == (
        "/usr/local/amoro/bin/optimizer.sh start 1536  -a thrift://10.0.0.9:1261 -p 3 -g g2 "
        f"-hb 15000 {shutdown}-eds -dsp /data/spill -msz 256 {cache}"
        "-id 5ghs0a2v1j9k3m7n4p8q6r0t2u"
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_master_slave_mode_is_the_container_s(version: str) -> None:
    """And comes last; a row's property of that name means nothing."""
    row = resource({"memory": "1", "master-slave-mode-enabled": "true"})
    with_mode = local(ams_version=version, master_slave_mode_enabled="TRUE").command(row)
    assert (with_mode[-1] == "-msm") is version.startswith("0.9")
    assert "-msm" not in local(ams_version=version, master_slave_mode_enabled="yes").command(row)
    assert "-msm" not in local(ams_version=version).command(row)


@pytest.mark.parametrize(
    ("properties", "options"),
    [
        ({}, []),
        ({"extend-disk-storage": "false", "disk-storage-path": "/d"}, []),
        ({"extend-disk-storage": " true", "disk-storage-path": "/d"}, []),
        ({"disk-storage-path": "/d", "memory-storage-size": "1"}, []),
        ({"extend-disk-storage": "True", "disk-storage-path": "/d"}, ["-eds", "-dsp", "/d"]),
        ({"cache-max-total-size": "1", "cache-timeout": "2"}, []),
        ({"cache-enabled": "true"}, ["-ce"]),
        ({"cache-enabled": "TRUE", "cache-timeout": "2"}, ["-ce", "-ct", "2"]),
        ({"heart-beat-interval": ""}, ["-hb", ""]),
        ({"ams-optimizing-uri": ""}, []),
    ],
)
def test_options_need_their_switches(properties: dict[str, str], options: list[str]) -> None:
    """As in AMS: exactly `true` in any case, and the others only with it."""
    arguments = local().arguments(resource(properties))
    assert arguments == ["-a", URI, "-p", "2", "-g", "default", *options, "-id", ID]


def test_disk_storage_needs_a_path() -> None:
    """AMS refuses that, too."""
    with pytest.raises(StartFailedError, match="'disk-storage-path' is missing in the resource's"):
        local().arguments(resource({"extend-disk-storage": "true"}))


def test_the_resource_comes_before_the_container() -> None:
    """And what is read from the row only is not looked for in the container."""
    container = local(heart_beat_interval="1", cache_enabled="true", memory="7")
    assert container.arguments(resource({}))[:2] == ["-a", URI]
    assert container.arguments(resource({"ams-optimizing-uri": "x"}))[:2] == ["-a", "x"]
    assert not {"-hb", "-ce"} & set(container.arguments(resource({})))
    with pytest.raises(StartFailedError, match="'memory' is missing"):
        container.command(resource({}))


@pytest.mark.parametrize(
    "memory", ["", " 1", "1 ", "1g", "+1", "-1", "1.5", "1_0", "٣", "9" * 5000]
)
def test_memory_is_digits(memory: str) -> None:
    """The error names the property and shows its value."""
    with pytest.raises(StartFailedError, match=re.escape(f"'memory' is {memory[:9]!r}"[:-1])):
        local().command(resource({"memory": memory}))


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(EVERYTHING, TEXTS)), TEXTS, TEXTS)
def test_a_value_is_never_more_than_one_argument(
    properties: dict[str, str], group: str, resource_id: str
) -> None:
    """Whatever it holds; and what AMS's text would say is recovered from it by its quoting."""
    properties = {"disk-storage-path": "x", **properties}
    found = resource(properties, group_name=group, resource_id=resource_id)
    arguments = local().arguments(found)
    assert arguments[arguments.index("-g") + 1] == group
    values = {*properties.values(), group, resource_id, URI, "2"}
    assert not [each for each in arguments if each not in values and not each.startswith("-")]
    assert shlex.split(as_text(arguments)) == arguments


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(EVERYTHING, TEXTS)))
def test_no_older_optimizer_gets_an_option_it_does_not_know(properties: dict[str, str]) -> None:
    """It would crash."""
    found = resource({key: f"v{value}" for key, value in properties.items()})
    switched = resource(
        {**found.properties, "cache-enabled": "true", "extend-disk-storage": "false"}
    )
    for version in ("0.7.0", "0.8.0"):
        container = local(ams_version=version, master_slave_mode_enabled="true")
        assert not set(container.arguments(switched)) & set(NEW)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udfff"])
def test_what_no_argument_can_hold_is_refused(text: str) -> None:
    """Before anything is started, and without showing it."""
    with pytest.raises(StartFailedError, match="the argument after '-g' holds a NUL character"):
        local().arguments(resource({}, group_name=text))
    with pytest.raises(StartFailedError, match="an argument holds"):
        usable([text])


def test_who_says_the_version_of_ams() -> None:
    """The property before the running AMS, and the latest where there is nobody to ask."""
    properties = {"ams-optimizing-uri": URI}

    def ask() -> AmsVersion:
        return AmsVersion.V0_7

    assert OptimizerContainer("c", properties).ams_version is AmsVersion.V0_9
    assert OptimizerContainer("c", properties, ask).ams_version is AmsVersion.V0_7
    named = {**properties, "ams-version": "0.8.0"}
    assert OptimizerContainer("c", named, ask).ams_version is AmsVersion.V0_8


def test_an_unknown_version_is_an_obstacle() -> None:
    """Not an attempt that fails."""

    def ask() -> AmsVersion:
        raise ContainerError("set keeper.ams-version")

    container = OptimizerContainer("c", {"ams-optimizing-uri": URI}, ask)
    with pytest.raises(ContainerError, match=r"set keeper\.ams-version"):
        assert container.supports_auto_restart


@pytest.mark.parametrize(
    ("properties", "problem"),
    [
        ({}, "property 'ams-optimizing-uri' is required"),
        ({"ams-optimizing-uri": ""}, "property 'ams-optimizing-uri' is required"),
        (
            {"ams-optimizing-uri": URI, "ams-version": "new"},
            "'ams-version' is 'new': not a version",
        ),
        ({"ams-optimizing-uri": URI, "ams-version": "0.6"}, "older than 0.7"),
        ({"ams-optimizing-uri": URI}, "set keeper.ams-home to its folder"),
    ],
)
def test_what_a_container_lacks_is_said_at_once(properties: dict[str, str], problem: str) -> None:
    """Not when the first optimizer died."""
    with pytest.raises(ConfigError, match=re.escape(problem)):
        LocalContainer("local", properties)


def test_exports_are_taken_as_a_shell_would() -> None:
    """Quotes around a whole value are AMS's need, not part of it; anything else is kept."""
    given = {
        "export.A": "plain",
        "export.B": "'single $x'",
        "export.C": '"double x"',
        "export.D": '"live $x"',
        "export.E": "'a' 'b'",
        "export.F": "",
        "other": "x",
    }
    assert local(**given).exports == {
        "A": "plain",
        "B": "single $x",
        "C": "double x",
        "D": '"live $x"',
        "E": "'a' 'b'",
        "F": "",
    }


@pytest.mark.parametrize(
    ("group", "folder"),
    [
        ("g-1_B.x", f"optimizer-g-1_B.x-{ID}"),
        ("../x", f"optimizer-..-x-{ID}"),
        ("/", f"optimizer---{ID}"),
        ("..", f"optimizer-..-{ID}"),
        ("a b\n$(x)", f"optimizer-a-b-x--{ID}"),
    ],
)
def test_log_folders(group: str, folder: str) -> None:
    """As AMS names them, where names are ordinary; none leaves the folder of the logs."""
    assert log_folder(resource({}, group_name=group)) == folder


@given(st.text(max_size=50), st.text(max_size=100))
def test_a_log_folder_is_one_name(group: str, resource_id: str) -> None:
    """Whatever the group and the resource are called; a file system can hold it."""
    folder = log_folder(resource({}, group_name=group, resource_id=resource_id))
    assert re.fullmatch(r"optimizer-[\w.\-]*", folder, re.ASCII)
    assert len(folder) <= 255


@pytest.mark.parametrize(
    ("text", "true"), [("true", True), ("TRUE", True), (None, False), ("", False), ("1", False)]
)
def test_switches(text: str | None, *, true: bool) -> None:
    """As `Boolean.parseBoolean` reads them."""
    assert is_true(text) is true
