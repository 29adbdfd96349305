"""The README and the pages behind it, as far as they can be wrong."""

import re
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import yaml

import dagster_amoro
from dagster_amoro.cli import main
from dagster_amoro.config import load_settings
from dagster_amoro.core.groups import min_parallelism
from dagster_amoro.demo import fleet as demo
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import Registry
from tests.helpers.commands import command_runner

CHECKOUT: Final = Path(__file__).parents[2]
README: Final = (CHECKOUT / "README.md").read_text(encoding="utf-8")
PAGES: Final = {
    path.relative_to(CHECKOUT): path.read_text(encoding="utf-8")
    for path in [
        CHECKOUT / "README.md",
        CHECKOUT / "CONTRIBUTING.md",
        CHECKOUT / "CHANGELOG.md",
        CHECKOUT / "SECURITY.md",
        *sorted((CHECKOUT / "docs").glob("*.md")),
        CHECKOUT / "benchmarks" / "README.md",
        CHECKOUT / "examples" / "systemd" / "README.md",
    ]
}
OPERATING: Final = PAGES[Path("docs/operations.md")]
RETENTION: Final = PAGES[Path("docs/retention.md")]
PUBLIC: Final = {"dagster_amoro", "dagster_amoro.testing", "dagster_amoro_worker"}


def blocks(text: str, language: str) -> list[str]:
    """The code of a page in one language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readme_is_short() -> None:
    """It sells and starts; the rest is on pages of its own."""
    assert len(README.splitlines()) <= 150


def test_links_lead_to_files_that_are_there() -> None:
    """On each page, relative to it; pages of others are not asked for."""
    for page, text in PAGES.items():
        for link in re.findall(r"\]\((?!https?:)([^)#]*)", text):
            assert (CHECKOUT / page.parent / link).exists(), (page, link)


def test_links_lead_to_headings_that_are_there() -> None:
    """`page.md#heading`, as the hosts of repositories make them from headings."""
    for page, text in PAGES.items():
        for link, heading in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]*)\)", text):
            target = (CHECKOUT / page.parent / link).resolve() if link else CHECKOUT / page
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, (page, link, heading)


def test_the_settings_of_dagster_are_those_of_the_demo() -> None:
    """Those that are advised are tried there."""
    (block,) = blocks(OPERATING, "yaml")
    tried = yaml.safe_load((demo.CONF / "dagster.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(block).items() <= tried.items()


def test_the_advised_retention_is_that_of_the_demo() -> None:
    """And what deletes old runs does, but none that is new or not over."""
    _, block = blocks(RETENTION, "yaml")
    tried = yaml.safe_load((demo.CONF / "dagster.yaml").read_text(encoding="utf-8"))
    assert yaml.safe_load(block).items() <= tried.items()
    (code,) = blocks(RETENTION, "python")
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - our own page

    @dg.job
    def nothing() -> None:
        pass

    with dg.DagsterInstance.ephemeral() as instance:
        nothing.execute_in_process(instance=instance)
        instance.create_run_for_job(nothing)
        assert names["delete_old_runs"](instance) == 0
        assert names["delete_old_runs"](instance, days=-1) == 1
        assert len(instance.get_runs()) == 1


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configuration, workers, a size of a group, a container and a merged code location."""
    (text,) = blocks(README, "yaml")
    (tmp_path / "config.yaml").write_text(
        text.replace("/var/lib/fleet", str(tmp_path)).replace(
            "command: [my-worker,",
            f"log-dir: {tmp_path}\n      start-check: 0s\n      command: ['true',",
        )
    )
    monkeypatch.setenv("AMORO_CONF_DIR", str(tmp_path))
    assert command_runner().invoke(main, ["apply", "--yes"]).exit_code == 0
    names: dict[str, object] = {}
    for page in PAGES.values():
        for block in blocks(page, "python"):
            exec(block, names)  # noqa: S102 - our own words
    settings = load_settings()
    registry = Registry(Database(settings.database_url, "registry"), settings.heartbeat_timeout)
    assert registry.read_snapshot().resources == 4
    assert [min_parallelism(group) for group in registry.sized_groups().values()] == [8]
    registry.database.close()
    defs = names["defs"]
    assert isinstance(defs, dg.Definitions)
    assert defs.resolve_sensor_def("orphan_sensor").default_status is dg.DefaultSensorStatus.RUNNING
    container = names["UnitContainer"]
    assert isinstance(container, type)
    assert isinstance(container("units", {}), dagster_amoro.Container)


def test_pages_use_the_public_api_alone() -> None:
    """Everything else may change, so nobody is told to import it."""
    for page, text in PAGES.items():
        for block in blocks(text, "python"):
            found = re.findall(r"^(?:from|import) (dagster_amoro[\w.]*)", block, re.MULTILINE)
            assert set(found) <= PUBLIC, page


def test_pages_have_yaml_that_can_be_read() -> None:
    """An indentation that slipped would be noticed by whoever copies it."""
    for page, text in PAGES.items():
        for block in blocks(text, "yaml"):
            assert all(isinstance(each, dict) for each in yaml.safe_load_all(block)), page


def test_the_commands_and_jobs_are_there() -> None:
    """Whatever is to be typed can be typed, and each verb is a job as well."""
    commands = set(re.findall(r"(?m)(?:^|`)dagster-amoro ([a-z-]+)", README + OPERATING))
    assert commands == set(main.commands)
    jobs = set(re.findall(r"`(keeper_\w+)`", OPERATING))
    verbs = main.commands.keys() - {"check", "beat", "metrics"}  # of a host
    assert jobs == {f"keeper_{name.replace('-', '_')}" for name in verbs}


def test_the_page_on_the_audit_has_every_check() -> None:
    """And no other."""
    from dagster_amoro.definitions import defs  # noqa: PLC0415 - it reads the configuration

    built = defs()
    specs = {key.name for key in built.resolve_asset_graph().asset_check_keys}
    rows = re.findall(r"^\| `(\w+)` \|", PAGES[Path("docs/audit.md")], re.MULTILINE)
    assert set(rows) == specs
