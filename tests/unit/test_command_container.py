"""The command container's pure parts: properties, templates, file names, records."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro import CommandContainer
from dagster_amoro.containers.base import Container
from dagster_amoro.containers.command.container import parse_command
from dagster_amoro.containers.command.launches import (
    LaunchFiles,
    Record,
    dump_record,
    launch_of,
    launches_of,
    new_launch_id,
    parse_record,
    properties_of,
)
from dagster_amoro.containers.output import file_stem
from dagster_amoro.containers.processes import Launch
from dagster_amoro.core.errors import ConfigError, StartFailedError
from dagster_amoro.core.model import Resource


def container(**properties: str) -> CommandContainer:
    """A container whose properties are given with underscores for dashes."""
    given = {"command": '["worker"]', **{k.replace("_", "-"): v for k, v in properties.items()}}
    return CommandContainer("local", given)


def resource(resource_id: str = "r1", properties: Mapping[str, str] | None = None) -> Resource:
    """A resource of group g with four threads."""
    return Resource(
        resource_id=resource_id,
        group_name="g",
        container_name="local",
        thread_count=4,
        memory_mb=2048,
        properties=properties or {},
    )


def of_r1(name: str) -> str:
    """The id of a launch of resource r1."""
    return f"{new_launch_id('r1').partition('-')[0]}-{name}"


def named_by(properties: Mapping[str, str], resource_id: str = "r1") -> Launch | None:
    """The launch that a resource with these properties names."""
    return launch_of(resource(resource_id, properties))


def launch(launch_id: str | None = of_r1("new"), pid: int | None = 12) -> Launch:
    """A launch of host h."""
    return Launch(launch_id=launch_id, host="h", pid=pid, started_at=1700000000.120001)


def test_is_a_container() -> None:
    """It has what a container must have."""
    assert isinstance(container(), Container)


def test_fills_placeholders_anywhere_in_an_argument() -> None:
    """A placeholder may be a whole argument, a part of one, or stand there twice."""
    text = json.dumps(
        ["run-{group_name}", "{resource_id}", "-t={thread_count}/{memory_mb}{memory_mb}", ""]
    )
    assert container(command=text).command(resource()) == ["run-g", "r1", "-t=4/20482048", ""]


def test_doubled_braces_are_literal_braces() -> None:
    """JSON can be passed to a worker."""
    text = json.dumps(["w", '{{"id": "{resource_id}"}}', "{{resource_id}}"])
    assert container(command=text).command(resource()) == ["w", '{"id": "r1"}', "{resource_id}"]


def test_python_is_an_ordinary_program() -> None:
    """The program is taken as it stands."""
    assert container(command='["python"]').command(resource()) == ["python"]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_a_value_stays_in_its_argument(value: str) -> None:
    """No value can add an argument, or be taken for a placeholder itself."""
    command = container(command='["w", "--id={resource_id}", "{group_name}"]')
    assert command.command(resource(value)) == ["w", f"--id={value}", "g"]


@given(st.text())
def test_a_template_is_literal_where_its_braces_are_doubled(text: str) -> None:
    """Doubling braces is all that it takes to quote a text."""
    argument = text.replace("{", "{{").replace("}", "}}")
    try:
        parsed = parse_command(json.dumps(["w", argument]))
    except ValueError as error:
        assert "\0" in text or "surrogate" in str(error)  # noqa: PT017 - one outcome of two
    else:
        assert parsed[1].format() == text


@pytest.mark.parametrize("value", ["a\0b", "a\ud800"])
def test_a_value_that_no_argument_can_hold_fails_the_start(value: str) -> None:
    """The error names the field."""
    with pytest.raises(StartFailedError, match=r"^resource_id 'a.*' cannot be given to a program"):
        container(command='["w", "{resource_id}"]').command(resource(value))


def test_a_value_that_is_not_used_may_be_anything() -> None:
    """Only what becomes part of an argument is looked at."""
    assert container().command(resource("\0\ud800")) == ["worker"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("worker --id", "Expecting value"),
        ('"worker"', "not an array of texts"),
        ("[]", "names no program"),
        ('[""]', "names no program"),
        ('["w", 1]', "not an array of texts"),
        ('["w", null]', "not an array of texts"),
        ('["w", "{id}"]', "{id} is no placeholder"),
        ('["w", "{}"]', "{} is no placeholder"),
        ('["w", "{0}"]', "{0} is no placeholder"),
        ('["w", "{resource_id!r}"]', "{resource_id!r} is no placeholder"),
        ('["w", "{thread_count:>5}"]', "{thread_count:>5} is no placeholder"),
        ('["w", "{thread_count:{memory_mb}}"]', "is no placeholder"),
        ('["w", "{resource_id.__class__}"]', "is no placeholder"),
        ('["w", "{resource_id[0]}"]', "is no placeholder"),
        ('["w", "{resource_id"]', "expected '}'"),
        ('["w", "}"]', "Single '}'"),
        ('["w", "\\u0000"]', "NUL"),
        ('["w", "\\ud800"]', "surrogate"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_bad_command_is_an_error_of_the_configuration(text: str, why: str) -> None:
    """It names container, property and value, and lists the placeholders."""
    with pytest.raises(ConfigError) as caught:
        container(command=text)
    message = str(caught.value)
    assert message.startswith("container 'local': property 'command' is ")
    assert repr(text)[:100] in message
    assert why in message
    assert "{resource_id}, {group_name}, {thread_count}, {memory_mb}" in message


def test_a_program_that_is_not_there_is_known_before_a_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked for as a start would: in the worker's own PATH, or from its folder."""
    monkeypatch.setenv("PATH", "/nowhere")
    (said,) = container(command='["my-worker"]').problems()
    assert said == (
        "its program 'my-worker' is not there, or cannot be executed (PATH is '/nowhere')"
    )
    program = tmp_path / "my-worker"
    program.touch()
    for path in ('["my-worker"]', f'["{program}"]', '["./my-worker"]'):
        worker = container(command=path, working_directory=str(tmp_path))
        program.chmod(0o600)
        assert len(worker.problems()) == 1
        program.chmod(0o700)
        assert worker.problems() == ([] if "/" in path else [said])
    exported = {"command": '["my-worker"]', "export.PATH": str(tmp_path)}
    assert CommandContainer("local", exported).problems() == []


def test_a_program_of_each_worker_is_known_at_its_start(tmp_path: Path) -> None:
    """Where its name has a placeholder; and a folder that is not there is known before."""
    assert container(command='["{group_name}-worker"]').problems() == []
    assert len(container(command='["{{x}}"]').problems()) == 1
    gone = str(tmp_path / "gone")
    said = container(command='["sh"]', working_directory=gone).problems()
    assert said == [f"its working directory {gone!r} is not there"]


def test_a_command_is_required() -> None:
    """The error says what one looks like."""
    with pytest.raises(ConfigError, match="'local': property 'command' is missing; it is a JSON"):
        CommandContainer("local", {})


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("start-check", "1m", "500ms, 10s or 1min"),
        ("start-check", "", "500ms, 10s or 1min"),
        ("termination-grace-period", "-1s", "500ms, 10s or 1min"),
        ("termination-grace-period", "1min", "less than that"),
        ("start-check", "2min", "less than that"),
        ("auto-restart", "yes", "true or false"),
        ("log-dir", "", "a path"),
        ("log-dir", "a\0b", "a path"),
        ("log-dir", "~nobody-of-this-name/x", "a path"),
        ("working-directory", "\ud800", "a path"),
    ],
)
def test_a_bad_property_is_an_error_of_the_configuration(
    key: str, value: str, accepted: str
) -> None:
    """It names container, property, value and what is accepted."""
    with pytest.raises(ConfigError) as caught:
        CommandContainer("local", {"command": '["w"]', key: value})
    message = str(caught.value)
    assert message.startswith(f"container 'local': property {key!r} is {value!r}: ")
    assert accepted in message


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("comand", "did you mean 'command'?"),
        ("logdir", "did you mean 'log-dir'?"),
        ("exports.A", "did you mean 'export.'?"),
        ("ams-home", "; accepted are command, log-dir, "),
    ],
)
def test_an_unknown_property_is_an_error_with_a_suggestion(key: str, hint: str) -> None:
    """Its value is not shown: it may be a secret."""
    with pytest.raises(ConfigError) as caught:
        CommandContainer("local", {"command": '["w"]', key: "hunter2"})
    assert f"container 'local': unknown property {key!r}" in str(caught.value)
    assert hint in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("export.", "x", "no name"),
        ("export.A=B", "x", "no name"),
        ("export.A\0", "x", "no name"),
        ("export.A", "hunter2\0", "its value holds a NUL"),
        ("export.A", "hunter2\ud800", "its value holds half a character"),
        ("export.AMORO_LAUNCH_ID", "x", "is set to the launch id"),
    ],
)
def test_a_bad_variable_is_an_error_of_the_configuration(key: str, value: str, why: str) -> None:
    """Its value is not shown: it may be a secret."""
    with pytest.raises(ConfigError) as caught:
        CommandContainer("local", {"command": '["w"]', key: value})
    assert f"container 'local': property {key!r}: " in str(caught.value)
    assert why in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "supported"), [("true", True), ("True", True), ("false", False), ("FALSE", False)]
)
def test_auto_restart_is_a_property(value: str, supported: bool) -> None:  # noqa: FBT001 - a case
    """A container may opt out."""
    assert container(auto_restart=value).supports_auto_restart is supported


def test_auto_restart_is_on_by_default() -> None:
    """Whoever configures a command wants it run."""
    assert container().supports_auto_restart is True


def test_logs_are_kept_in_dagsters_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And below the current directory where there is none."""
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    assert container()._log_dir == tmp_path / "home" / "workers"
    monkeypatch.delenv("DAGSTER_HOME")
    monkeypatch.chdir(tmp_path)
    later = container()
    monkeypatch.chdir("/")
    assert later._log_dir == tmp_path / ".dagster-amoro" / "workers"


def test_nothing_is_created_by_a_configuration(tmp_path: Path) -> None:
    """Folders come with the first start."""
    container(log_dir=str(tmp_path / "logs"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("resource_id", "slug"),
    [
        ("5ghs0a2v", "5ghs0a2v"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "resource"),
        ("", "resource"),
        ("\0\ud800", "resource"),
        ("\U0001f600" * 100, "resource"),
        ("a b/c", "a-b-c"),
        (".hidden", "hidden"),
        ("x" * 100, "x" * 60),
    ],
)
def test_file_names_show_what_can_be_read_of_an_id(resource_id: str, slug: str) -> None:
    """The rest is a hash."""
    stem, _, digest = file_stem("local", resource_id).rpartition("-")
    assert stem == slug
    assert len(digest) == 16


@given(st.text(max_size=100))
def test_every_id_gives_a_name_within_the_folder(resource_id: str) -> None:
    """Whatever it is, it is one valid part of a path."""
    files = LaunchFiles(Path("/logs"), "local", resource_id)
    for path in (files.log, files.record, files.lock):
        assert Path(os.path.normpath(path)).parent == Path("/logs")
        assert len(os.fsencode(path.name)) < 100


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_different_resources_have_different_files(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    """The container counts too; where one name ends and the other begins is never in doubt."""
    assert (file_stem(*one) == file_stem(*other)) == (one == other)
    assert file_stem("a", "bc") != file_stem("ab", "c")


@pytest.mark.parametrize("pid", [None, 12])
@pytest.mark.parametrize("previous", [None, "old"])
def test_a_record_survives_its_file(pid: int | None, previous: str | None) -> None:
    """Start times included, to the last digit."""
    record = Record(Launch(launch_id="new", host="h", pid=pid, started_at=pid and 0.1 + 0.2), None)
    assert parse_record(dump_record(record)) == record
    record = Record(record.launch, previous)
    assert parse_record(dump_record(record)) == record


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"x"', "{}", '{"launch_id": null}', "[" * 100_000]
    + [dump_record(Record(launch(launch_id), None)) for launch_id in (None, "")],
)
def test_what_is_no_record_is_told_apart(text: str) -> None:
    """Nothing else slips through than the one error."""
    with pytest.raises(ValueError):  # noqa: PT011 - any text will do
        parse_record(text)


def test_start_up_properties_name_the_launch() -> None:
    """They are texts, exact to the last digit, and read back."""
    properties = properties_of(launch())
    assert properties == {
        "command-pid": "12",
        "command-started-at": "1700000000.120001",
        "command-host": "h",
        "command-launch-id": of_r1("new"),
    }
    assert named_by({"memory": "1024", **properties}) == launch()


def test_the_launch_of_another_resource_is_none_of_this_one() -> None:
    """Whoever can write a row could have another resource's worker ended by it."""
    assert named_by(properties_of(launch()), "r2") == launch(launch_id=None)
    assert new_launch_id("r1") != new_launch_id("r1")


@pytest.mark.parametrize("pid", ["", "x", "0", "1", "-1", "1.5", str(2**31), "9" * 5000])
def test_a_pid_that_makes_no_sense_is_none(pid: str) -> None:
    """Neither init nor whole groups can be named, which -1 and 0 would do."""
    found = named_by({**properties_of(launch()), "command-pid": pid})
    assert found == launch(pid=None)


@pytest.mark.parametrize("missing", ["command-pid", "command-started-at"])
def test_a_launch_needs_an_id_or_a_whole_identity(missing: str) -> None:
    """A process id alone says nothing."""
    properties = properties_of(launch())
    del properties["command-launch-id"]
    assert named_by(properties) == launch(launch_id=None)
    del properties[missing]
    assert named_by(properties) is None


@pytest.mark.parametrize(
    ("named", "recorded", "previous", "found"),
    [
        (None, None, None, []),
        ("a", None, None, ["a"]),
        ("a", "a", None, ["a"]),
        ("a", "b", "a", ["a", "b"]),  # the start of b was not saved
        (None, "b", None, ["b"]),  # nor was this one, the first
        ("a", "b", "b0", ["a"]),  # a was overtaken
        ("a", "b", None, ["a"]),
        (None, "b", "a", []),
    ],
)
def test_a_record_belongs_to_the_launch_that_it_followed(
    named: str | None, recorded: str | None, previous: str | None, found: list[str]
) -> None:
    """A newer launch is out of reach of one that it overtook."""
    properties = properties_of(launch(of_r1(named))) if named else {}
    before = of_r1(previous) if previous else None
    record = Record(launch(of_r1(recorded)), before) if recorded else None
    found_launches = launches_of(resource(properties=properties), record)
    assert [each.launch_id for each in found_launches] == list(map(of_r1, found))


def test_the_tail_of_a_log_is_of_this_launch_only(tmp_path: Path) -> None:
    """Older text is left out, bytes that are no text and control characters are replaced."""
    files = LaunchFiles(tmp_path, "local", "r1")
    files.log.write_bytes(b"old\n" + b"new \xff \0 \x1b[31m\ttext\n\n")
    assert files.tail(4) == "new \ufffd \ufffd \ufffd[31m\ttext"
    assert files.tail(0).startswith("old\nnew")
    assert files.tail(10_000).startswith("old")  # truncated meanwhile


def test_the_tail_of_a_log_is_short(tmp_path: Path) -> None:
    """Twenty lines and two thousand characters, of however many bytes."""
    files = LaunchFiles(tmp_path, "local", "r1")
    files.log.write_text("".join(f"{number}\n" for number in range(100_000)))
    assert files.tail(0).split() == [str(number) for number in range(99_980, 100_000)]
    files.log.write_text("\U0001f600" * 9_999 + "!")
    assert files.tail(0) == "\U0001f600" * 1_999 + "!"
