"""The component: YAML in, the definitions of a keeper out; and what is said where it is wrong."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import yaml
from dagster.components.core.component_tree import ComponentTreeException
from dagster.components.testing import DefsFolderSandbox, create_defs_folder_sandbox

from dagster_amoro import KeeperComponent, component
from dagster_amoro.config import SETTINGS, Settings
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.demo import fleet as demo

# Dagster reads the YAML of components with a function that pydantic would like to see gone.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.parse_obj_as:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*is currently in beta"),
]

DEMO: Final = yaml.safe_load((demo.CONF / "config.yaml").read_text(encoding="utf-8"))
TYPE: Final = "dagster_amoro.KeeperComponent"
ENABLED: Final = {"optimizer.auto-restart-enabled": True}


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[DefsFolderSandbox]:
    """The folder of a project's definitions; no variable of ours is set."""
    monkeypatch.delenv("AMORO_CONF_DIR", raising=False)
    with create_defs_folder_sandbox() as sandbox:
        yield sandbox


@contextmanager
def loaded(
    project: DefsFolderSandbox, attributes: Mapping[str, Any], name: str = "fleet"
) -> Iterator[dg.Definitions]:
    """The definitions of a component with these attributes."""
    document = {"type": TYPE, "attributes": dict(attributes)}
    path = project.scaffold_component(KeeperComponent, name, defs_yaml_contents=document)
    with project.load_component_and_build_defs(path) as (component, defs):
        assert isinstance(component, KeeperComponent)
        yield defs


def refused(project: DefsFolderSandbox, attributes: Mapping[str, Any]) -> str:
    """What is said of attributes that cannot be used."""
    with pytest.raises(ComponentTreeException) as caught, loaded(project, attributes):
        pass
    assert isinstance(caught.value.__cause__, ConfigError)
    return str(caught.value.__cause__)


def test_the_settings_of_the_demo_inline(
    project: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The sections are those of the file, and a secret or a place comes from the environment."""
    monkeypatch.setenv("FLEET_REGISTRY", f"sqlite:///{tmp_path / 'fleet.db'}")
    database = {"type": "sqlite", "url": "{{ env.FLEET_REGISTRY }}"}
    inline = {**DEMO, "ams": {**DEMO["ams"], "database": database}, "name": "fleet"}
    with loaded(project, inline) as defs:
        dg.Definitions.validate_loadable(defs)
        sensor = defs.resolve_sensor_def("fleet_orphan_sensor")
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
        assert sensor.minimum_interval_seconds == 5


def test_what_stands_there_wins_over_the_file_and_the_environment(
    project: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file may serve several keepers, each with what differs."""
    conf = project.defs_folder_path / "conf"
    conf.mkdir()
    (conf / "config.yaml").write_text(
        "ams: {database: {type: sqlite}, optimizer: {auto-restart-max-retries: 7}}\n"
        "keeper: {check-interval: 40s}\n"
    )
    monkeypatch.setenv("KEEPER_CHECK_INTERVAL", "50s")
    with loaded(project, {"conf_dir": "../conf", "ams": ENABLED}) as defs:
        sensor = defs.resolve_sensor_def("orphan_sensor")
        assert sensor.minimum_interval_seconds == 50
        assert sensor.metadata["auto-restart-max-retries"].value == 7
    inline = {"conf_dir": "../conf", "keeper": {"check-interval": "60s"}}
    with loaded(project, inline, "other") as defs:
        assert defs.resolve_sensor_def("orphan_sensor").minimum_interval_seconds == 60


def test_the_example_of_the_page(
    project: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What people copy works as it stands."""
    page = (Path(__file__).parents[2] / "docs" / "dagster.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    document = yaml.safe_load(block)
    assert document["type"] == TYPE
    monkeypatch.setenv("FLEET_REGISTRY", f"sqlite:///{tmp_path / 'fleet.db'}")
    with loaded(project, document["attributes"]) as defs:
        dg.Definitions.validate_loadable(defs)
        sensor = defs.resolve_sensor_def("fleet_orphan_sensor")
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
        key = dg.AssetKey(["lake", "fleet", "orphan_history"])
        assert list(defs.resolve_asset_graph().get(key).owners) == ["team:storage"]


def test_a_file_can_name_its_keeper(
    project: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a variable of its code location; the attribute comes before them."""
    inline = {"ams": {"database.type": "sqlite"}}
    monkeypatch.setenv("KEEPER_DAGSTER_NAME", "west")
    with loaded(project, inline, "a") as defs:
        assert defs.resolve_job_def("west_prune").name == "west_prune"
    with loaded(project, {**inline, "name": "east"}, "b") as defs:
        assert defs.resolve_job_def("east_prune").name == "east_prune"
    monkeypatch.setenv("KEEPER_DAGSTER_NAME", "far-west")
    said = refused(project, inline)
    assert "keeper.dagster-name is 'far-west'; accepted is a letter, then" in said


def test_two_components_in_one_project(project: DefsFolderSandbox) -> None:
    """Each has its name, so that nothing of theirs collides."""
    of_sqlite = {"database.type": "sqlite"}
    for name in ("east", "west"):
        document = {"type": TYPE, "attributes": {"name": name, "ams": of_sqlite}}
        project.scaffold_component(KeeperComponent, name, defs_yaml_contents=document)
    with project.build_all_defs() as defs:
        dg.Definitions.validate_loadable(defs)
        jobs = {job.name for job in defs.resolve_all_job_defs()}
    assert {"east_restart_orphans", "west_restart_orphans"} <= jobs


def test_assets_are_marked_as_the_attributes_say(project: DefsFolderSandbox) -> None:
    """Key prefix, group, owners and tags."""
    translation = {
        "key_prefix": ["lake"],
        "group_name": "healing",
        "owners": ["team:storage"],
        "tags": {"tier": "1"},
        "run_tags": {"cost": "ops"},
        "pool": "healing",
    }
    attributes = {"ams": {"database.type": "sqlite"}, "translation": translation}
    with loaded(project, attributes) as defs:
        node = defs.resolve_asset_graph().get(dg.AssetKey(["lake", "orphan_history"]))
        assert (node.group_name, list(node.owners)) == ("healing", ["team:storage"])
        assert node.tags["tier"] == "1"
        assert defs.resolve_job_def("restart_orphans").tags["cost"] == "ops"


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"ams": {"database.type": "sqlit"}}, "ams.database.type is 'sqlit'; accepted is postgres"),
        (
            {"ams": {"database": {"type": "sqlite"}, "optimizer.auto-restart": True}},
            "ams.optimizer.auto-restart is True, but there is no such key; did you mean",
        ),
        ({"ams": {"database.type": "sqlite", "colour": 1}}, "ams.colour is 1, but there is no"),
        (
            {"ams": {"database.type": "sqlite"}, "keeper": {"mode": "dry"}},
            "keeper.mode is 'dry'; accepted is enforce or dry-run",
        ),
        (
            {"ams": {"database.type": "sqlite"}, "containers": [{"name": "a"}]},
            "containers[0].container-impl is left out; accepted is a text",
        ),
        (
            {"name": "a-b", "ams": {"database.type": "sqlite"}},
            "name is 'a-b'; accepted is a letter, then letters, digits and underscores",
        ),
    ],
)
def test_a_mistake_is_told(
    project: DefsFolderSandbox, attributes: Mapping[str, Any], said: str
) -> None:
    """With its attribute, its value, and what would be right."""
    assert said in refused(project, attributes)


def test_a_mistake_is_told_with_its_file(project: DefsFolderSandbox) -> None:
    """Where it stands."""
    assert "fleet/defs.yaml: keeper.mode" in refused(
        project, {"ams": {"database.type": "sqlite"}, "keeper": {"mode": "dry"}}
    )


@pytest.mark.parametrize("text", ["1e5", "0.10", "0123", "True", "[1, 2", "{'a': 1"])
def test_a_text_from_the_environment_stays_as_it_is(
    project: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """Dagster's templates read a text as Python where it looks so, which would spoil a password."""
    monkeypatch.setenv("NAME", text)
    monkeypatch.setattr(component, "build_definitions", lambda settings, **_: seen.append(settings))
    seen: list[Settings] = []
    keeper = {"deployment": "{{ env.NAME }}"}
    inline = {"ams": {"database.type": "sqlite"}, "keeper": keeper}
    with pytest.raises(ComponentTreeException), loaded(project, inline):
        pass
    assert seen[0].deployment == text


def test_no_mistake_shows_a_secret(
    project: DefsFolderSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came from the environment is a value like any other by then."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://amoro:hunter2@db/amoro?sslmode=perhaps")
    attributes = {"ams": {"database": {"type": "mysql", "url": "{{ env.DATABASE_URL }}"}}}
    assert "hunter2" not in refused(project, attributes)


def properties_of(schema: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """The keys of a map within the schema of the attributes."""
    for name in path:
        schema = schema["properties"][name]
    assert schema["additionalProperties"] is False
    found: Mapping[str, Any] = schema["properties"]
    return found


def test_the_schema_has_every_key_nested_and_dotted() -> None:
    """By which editors complete, and `dg check yaml` tells a typo with its line."""
    schema = KeeperComponent.model().model_json_schema()
    for setting in SETTINGS:
        section, *rest = setting.key.split(".")
        if "<name>" in rest:
            continue
        assert ".".join(rest) in properties_of(schema, section)
        assert rest[-1] in properties_of(schema, section, *rest[:-1])
    groups = schema["properties"]["keeper"]["properties"]["groups"]
    ((pattern, of_group),) = (
        (k, v) for k, v in groups["patternProperties"].items() if "\\." not in k
    )
    assert pattern == "^.+$"
    assert set(of_group["properties"]) == {"dynamic-allocation", "max-orphaned-fraction"}
    assert schema["title"] == "Keeper Component"


def test_a_scaffold_loads_and_restarts_nothing_yet(project: DefsFolderSandbox) -> None:
    """Whoever tries it out has a keeper that only looks."""
    path = project.scaffold_component(KeeperComponent, "my-fleet")
    assert "name: my_fleet" in (path / "defs.yaml").read_text()
    with project.load_component_and_build_defs(path) as (_, defs):
        dg.Definitions.validate_loadable(defs)
        sensor = defs.resolve_sensor_def("my_fleet_orphan_sensor")
        assert sensor.default_status is dg.DefaultSensorStatus.STOPPED


def test_a_scaffold_in_a_folder_of_any_name(project: DefsFolderSandbox) -> None:
    """Where it can be no name, there is none."""
    path = project.scaffold_component(KeeperComponent, "1st")
    with project.load_component_and_build_defs(path) as (_, defs):
        assert defs.resolve_sensor_def("orphan_sensor").name == "orphan_sensor"


def test_a_scaffold_in_python(project: DefsFolderSandbox) -> None:
    """As every component can be."""
    path = project.scaffold_component(KeeperComponent, "fleet", scaffold_format="python")
    assert "KeeperComponent" in (path / "component.py").read_text()
