"""The section `fleet` of config.yaml: what it is read as, and every mistake that it can have."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from dagster_amoro.config import ApplyFleet, Settings, load_settings
from dagster_amoro.config.json_schema import FLEET
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.core.fleet_plan import DeclaredGroup
from dagster_amoro.core.model import Resource

LOCAL = {"name": "local", "container-impl": "dagster_amoro.testing.RecordingContainer"}
GPU = {**LOCAL, "name": "gpu"}
SQLITE: dict[str, Any] = {"ams": {"database.type": "sqlite"}, "containers": [LOCAL, GPU]}


def load(folder: Path, *groups: object, **document: object) -> Settings:
    """What a file with these groups is read as."""
    text = json.dumps({**SQLITE, "fleet": {"groups": list(groups)}, **document})
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return load_settings(folder, {})


def declared(folder: Path, *groups: object) -> list[DeclaredGroup]:
    """The groups that it declares."""
    return list(load(folder, *groups).fleet or ())


def problems(folder: Path, *groups: object, **document: object) -> list[str]:
    """The lines of the error, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        load(folder, *groups, **document)
    return [line.removeprefix(f"{folder}/config.yaml: ") for line in str(caught.value).splitlines()]


def a_worker(resource_id: str, **changes: Any) -> Resource:  # noqa: ANN401 - of any field
    """A worker of group etl that says nothing itself."""
    fields = {"group_name": "etl", "container_name": "local", "thread_count": 1, "memory_mb": 0}
    return Resource(resource_id=resource_id, **{**fields, **changes})


def test_workers_by_number(tmp_path: Path) -> None:
    """Their ids are the group's name and a number, from 1 on; all else is the group's."""
    group = {"name": "etl", "container": "local", "workers": 2, "threads": 4, "memory": 512}
    (found,) = declared(tmp_path, {**group, "properties": {"queue": "low"}, "min-parallelism": 6})
    own = {"thread_count": 4, "memory_mb": 512, "properties": {"queue": "low"}}
    assert found.workers == (a_worker("etl-1", **own), a_worker("etl-2", **own))
    assert found.properties == {"queue": "low", "min-parallelism": "6"}
    assert (found.name, found.container_name) == ("etl", "local")


def test_workers_by_name(tmp_path: Path) -> None:
    """An id alone, or a map with what is different; its properties come on top of the group's."""
    own = {"id": "b", "threads": 2, "memory": 64, "container": "gpu", "properties": {"q": 2}}
    group = {"name": "etl", "container": "local", "workers": ["a", own, {"id": 7}]}
    (found,) = declared(tmp_path, {**group, "properties": {"q": "1", "x": True}})
    common = {"q": "1", "x": "true"}
    changed = {"thread_count": 2, "memory_mb": 64, "container_name": "gpu"}
    assert found.workers == (
        a_worker("a", properties=common),
        a_worker("b", properties={**common, "q": "2"}, **changed),
        a_worker("7", properties=common),
    )


def test_a_group_may_have_a_size_and_no_workers(tmp_path: Path) -> None:
    """The keeper starts them then."""
    (found,) = declared(tmp_path, {"name": "etl", "container": "local", "min-parallelism": 0})
    assert (found.workers, found.properties) == ((), {"min-parallelism": "0"})


def test_no_section_is_no_declaration_and_an_empty_one_is(tmp_path: Path) -> None:
    """The first is not applied, the second declares that there is to be nobody."""
    text = json.dumps(SQLITE)
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    settings = load_settings(tmp_path, {})
    assert settings.fleet is None
    assert settings.apply_fleet is ApplyFleet.BY_HAND
    assert load(tmp_path).fleet == ()
    assert load(tmp_path, keeper={"apply-fleet": "by-sensor"}).apply_fleet is ApplyFleet.BY_SENSOR


def test_an_inline_section_takes_the_place_of_the_files(tmp_path: Path) -> None:
    """As a whole: of two halves nobody could say what is declared."""
    load(tmp_path, {"name": "etl", "container": "local", "workers": 1})
    inline = {"fleet": {"groups": [{"name": "other", "container": "gpu"}]}}
    settings = load_settings(tmp_path, {}, sections=inline)
    assert [group.name for group in settings.fleet or ()] == ["other"]


GROUP: dict[str, Any] = {"name": "etl", "container": "local"}
IDS = "a text of 1 to 100 characters that can be seen, blanks within it"


@pytest.mark.parametrize(
    ("group", "problem"),
    [
        ({"container": "local"}, f"fleet.groups[0].name is left out; accepted is {IDS}"),
        (
            {"name": "etl"},
            "fleet.groups[0].container is left out; accepted is the name of a container: local, g",
        ),
        (
            {**GROUP, "container": "locla"},
            "fleet.groups[0].container is 'locla'; accepted is the name of a container: local, gpu",
        ),
        ({**GROUP, "container": ["a"]}, "fleet.groups[0].container is ['a']; accepted is the name"),
        (
            {**GROUP, "threads": 0},
            "fleet.groups[0].threads is 0; accepted is a whole number from 1",
        ),
        (
            {**GROUP, "memory": "x"},
            "fleet.groups[0].memory is 'x'; accepted is a whole number from",
        ),
        (
            {**GROUP, "workers": -1},
            "fleet.groups[0].workers is -1; accepted is a whole number from 0",
        ),
        (
            {**GROUP, "workers": "many"},
            "fleet.groups[0].workers is 'many'; accepted is a whole num",
        ),
        (
            {**GROUP, "min-parallelism": 1.5},
            "fleet.groups[0].min-parallelism is 1.5; accepted is a whole number from 0",
        ),
        (
            {**GROUP, "thread": 2},
            "fleet.groups[0].thread is 2, but there is no such key; did you mean threads? accepted",
        ),
        ({**GROUP, "properties": 1}, "fleet.groups[0].properties is a number; accepted is a map"),
        (
            {**GROUP, "properties": {"a": {"b": 1}}},
            "fleet.groups[0].properties.a is a map; accepted is a text, a number, true or false",
        ),
        (
            {**GROUP, "properties": {"min-parallelism": 1}},
            "fleet.groups[0].properties.min-parallelism is no property of workers; accepted is mi",
        ),
        (
            {**GROUP, "properties": {"declared": 1}},
            "fleet.groups[0].properties.declared is no property of workers; accepted is another na",
        ),
        ({**GROUP, "name": "a\u0000b"}, "fleet.groups[0].name is 'a\\x00b'; accepted is a text of"),
        ({**GROUP, "name": " a"}, f"fleet.groups[0].name is ' a'; accepted is {IDS}"),
        ({**GROUP, "name": "x" * 101}, f"fleet.groups[0].name is '{'x' * 79}...; accepted is a te"),
        (
            {**GROUP, "name": "x" * 99, "workers": 2},
            f"fleet.groups[0].workers is 2, which makes ids such as '{'x' * 99}-2'; accepted is id",
        ),
        (
            {**GROUP, "workers": [{"threads": 1}]},
            "fleet.groups[0].workers[0].id is left out; accep",
        ),
        (
            {**GROUP, "workers": [["a"]]},
            "fleet.groups[0].workers[0].id is ['a']; accepted is a tex",
        ),
        (
            {**GROUP, "workers": ["a", "b", {"id": "a"}]},
            "fleet.groups[0].workers[2].id is 'a', as in fleet.groups[0].workers[0].id; accepted",
        ),
        (
            {**GROUP, "workers": [{"id": "a", "memroy": 1}]},
            "fleet.groups[0].workers[0].memroy is 1, but there is no such key; did you mean memory",
        ),
        ("etl", "fleet.groups[0] is a text; accepted is a map with name, workers, container"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, group: object, problem: str) -> None:
    """With its place, its value and what would be right."""
    assert any(line.startswith(problem) for line in problems(tmp_path, group)), problems(
        tmp_path, group
    )


def test_every_mistake_is_told_at_once(tmp_path: Path) -> None:
    """One that all workers of a group have is told once."""
    bad = {"name": "etl", "container": "x", "threads": "many", "workers": 3}
    assert len(problems(tmp_path, bad, {"name": "etl", "container": "y"})) == 4


def test_ids_are_apart_across_groups(tmp_path: Path) -> None:
    """By name and by number."""
    other = {"name": "other", "container": "local", "workers": ["etl-2"]}
    (line,) = problems(tmp_path, {**GROUP, "workers": 2}, other)
    assert line == (
        "fleet.groups[1].workers[0].id is 'etl-2', as in fleet.groups[0].workers; accepted is one "
        "that no other id is like"
    )


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ([], "fleet is a list; accepted is a map with groups"),
        ({"groups": {"etl": {}}}, "fleet.groups is a map; accepted is a list"),
        (
            {"group": []},
            "fleet.group is [], but there is no such key; did you mean groups? accepted",
        ),
    ],
)
def test_a_section_of_another_shape_is_refused(
    tmp_path: Path, section: object, problem: str
) -> None:
    """With what it is."""
    (line,) = problems(tmp_path, fleet=section)
    assert line.startswith(problem)


def test_an_attached_registry_has_no_declared_fleet(tmp_path: Path) -> None:
    """AMS makes groups and adds resources there."""
    ams = {
        "database": {"type": "postgres", "url": "jdbc:postgresql://db/amoro"},
        "server-expose-host": "ams.example.org",
    }
    (line,) = problems(tmp_path, GROUP, ams=ams)
    assert line == (
        "fleet is there, though the registry is an AMS's (keeper.registry: attached); accepted is "
        "to leave it out: AMS makes groups and adds resources"
    )
    found = load(tmp_path, GROUP, ams=ams, keeper={"registry": "standalone"})
    assert [group.name for group in found.fleet or ()] == ["etl"]


def test_secrets_of_a_fleet_are_not_shown(tmp_path: Path) -> None:
    """Neither where settings are printed nor in an error."""
    group = {**GROUP, "workers": 1, "properties": {"api-token": "hunter2"}}
    assert "hunter2" not in repr(load(tmp_path, group))
    bad = {**GROUP, "properties": {"api-token": ["hunter2"]}}
    assert not any("hunter2" in line for line in problems(tmp_path, bad))


def test_the_bundled_file_shows_a_section_that_can_be_used(tmp_path: Path) -> None:
    """Without its comment signs."""
    from importlib.resources import files  # noqa: PLC0415 - for this alone

    text = files("dagster_amoro.config").joinpath("standalone", "config.yaml").read_text("utf-8")
    shown = "\n".join(
        line.removeprefix("# ") for line in text[text.index("# fleet:\n") :].splitlines()
    )
    section = yaml.safe_load(shown.replace("container: workers", "container: local"))["fleet"]
    found = load(tmp_path, fleet=section).fleet or ()
    assert [len(group.workers) for group in found] == [4, 2]


def test_the_schema_for_editors_has_the_same_keys(tmp_path: Path) -> None:
    """What it lets pass is read, and what it does not is refused."""
    schema = FLEET["properties"]["groups"]["items"]
    worker = schema["properties"]["workers"]["items"]
    values = {"name": "etl", "container": "local", "workers": 1, "properties": {}, "id": "a"}
    numbers = {"threads": 1, "memory": 1, "min-parallelism": 1}
    group = {key: {**values, **numbers}[key] for key in schema["properties"]}
    own = {key: {**values, **numbers}[key] for key in worker["properties"]}
    assert len(declared(tmp_path, {**group, "workers": [own]})) == 1
