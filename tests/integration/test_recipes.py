"""What the pages have one type or copy does what they say; tests of their own run the rest.

Python is run by `test_readme`, the page on alerting by `test_alerting_page`, that on backups by
`test_backups`, that on heartbeats by `test_heartbeats`, that on Kubernetes by
`test_pod_container`, statements of SQL by
`test_attached_registry` and `test_views`, `defs.yaml` by `test_component`, and the programs of
Dagster by `test_operator_page`, and by `test_component` and `test_deploy` of the packaging.
"""

import re
import shlex
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from click.testing import CliRunner

from dagster_amoro import Resource, load_settings
from dagster_amoro.cli import main
from dagster_amoro.containers.resolve import ENTRY_POINTS
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.definitions import defs
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import Registry
from tests.helpers.fleet import age

CHECKOUT: Final = Path(__file__).parents[2]
PAGES: Final = {
    page.name: page.read_text(encoding="utf-8")
    for page in [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
}
EXAMPLE: Final = (CHECKOUT / "examples" / "systemd" / "README.md").read_text(encoding="utf-8")
CONFIG: Final = """
ams:
  database: {type: sqlite, url: "sqlite:///registry.db"}
  optimizer: {auto-restart-enabled: true, auto-restart-grace-period: 1h}
containers:
  - {name: local, container-impl: dagster_amoro.testing.RecordingContainer}
fleet:
  groups:
    - {name: etl, container: local, workers: 4, threads: 2}
    - {name: loaders, container: local, workers: [loader-a]}
"""
ELSEWHERE: Final = {"amoro.md": {"export", "touch", "dagster-webserver", "dagster-daemon"}}
ELSEWHERE["dagster.md"] = {"dg"}
ELSEWHERE["heartbeats.md"] = {"dagster-amoro-beat"}
ELSEWHERE["kubernetes.md"] = {"kubectl"}
ELSEWHERE["README.md"] = {"export"}  # as on the page for operators of Amoro
ELSEWHERE["backup.md"] = {"pg_dump", "pg_restore"}
# What a host, an engine and a cluster have; which files of ours they are given is looked at.
ELSEWHERE["deployment.md"] = {
    *("cd", "cp", "docker", "helm", "install", "kubectl", "python3", "systemctl", "useradd"),
    "/opt/dagster-amoro/bin/pip",
}


def blocks(page: str, language: str) -> list[str]:
    """The code of a page in one language."""
    return _blocks(PAGES[page], language)


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def lines(page: str) -> list[list[str]]:
    """What the page has one type, each with its arguments."""
    typed = "\n".join(blocks(page, "sh")).splitlines()
    return [words for line in typed if (words := shlex.split(line, comments=True))]


def our_own() -> list[list[str]]:
    """The arguments of `dagster-amoro` on all pages, each once."""
    found = [words for page in PAGES for words in lines(page) if words[0] == "dagster-amoro"]
    return [list(words) for words in dict.fromkeys(tuple(words[1:]) for words in found)]


@pytest.mark.parametrize("page", PAGES)
def test_what_is_typed_is_there(page: str) -> None:
    """A target of make, an extra of the wheel, a command of ours, or what another test runs."""
    targets = re.findall(r"^([\w-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    projects = {
        project["name"]: project["optional-dependencies"]
        for folder in (CHECKOUT, CHECKOUT / "client")
        if (project := tomllib.loads((folder / "pyproject.toml").read_text())["project"])
    }
    for program, *arguments in lines(page):
        if program == "make":
            assert set(arguments) <= set(targets)
        elif program == "pip":
            ((name, extra),) = re.findall(r"^([a-z-]+)\[(\w+)\]$", arguments[-1])
            assert extra in projects[name]
        elif program == "dagster-amoro":
            assert arguments[0] in main.commands
        else:
            assert program in ELSEWHERE.get(page, set()), (page, program)


def test_the_files_that_a_deployment_is_given_are_there() -> None:
    """Each by its path in the repository, and all that are to be given."""
    deploy = CHECKOUT / "deploy"
    named = {
        word for words in lines("deployment.md") for word in words if word.startswith("deploy/")
    }
    assert [name for name in named if not (CHECKOUT / name).exists()] == []
    units = {f"deploy/systemd/{file.name}" for file in (deploy / "systemd").iterdir()}
    assert units <= named


def test_the_commands_of_the_pages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fleet that lost the worker of which they speak; what was paused is resumed before."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.setenv("AMORO_CONF_DIR", str(tmp_path))
    url = sa.URL.create("sqlite", database=str(tmp_path / "registry.db"))
    registry = Registry(Database(url, "registry"), timedelta(minutes=1))
    lost = Resource(
        resource_id="etl-3",
        group_name="etl",
        container_name="local",
        thread_count=2,
        memory_mb=0,
    )
    add(registry, lost)
    age(registry)
    registry.database.close()
    services = Services.connect(load_settings())
    services.ticker.tick(lambda _: {}, AmsRestartDetector())
    services.close()
    typed = our_own()
    assert {words[0] for words in typed} >= {"check", "status", "pause", "resume", "restart-now"}
    for words in sorted(typed, key=lambda words: words[0] == "restart-now"):
        here = [word.replace("/var/lib/node_exporter", str(tmp_path)) for word in words]
        here += ["--yes"] if words[0] == "apply" else []  # there is nobody to be asked
        done = CliRunner().invoke(main, here)
        assert done.exit_code == 0, (words, done.output)
    assert "dagster_amoro_resources" in (tmp_path / "dagster_amoro.prom").read_text()


def test_settings_of_the_pages_can_be_used() -> None:
    """No key of theirs is unknown, and no value is refused."""
    (amoro,), (container,) = blocks("amoro.md", "yaml"), blocks("containers.md", "yaml")
    (check_in, _), (units,) = blocks("alerting.md", "yaml"), blocks("write-a-container.md", "yaml")
    (fleet,), (worker,) = blocks("fleets.md", "yaml"), blocks("heartbeats.md", "yaml")
    local = {"name": "local", "container-impl": "dagster_amoro.testing.RecordingContainer"}
    base: dict[str, Any] = {
        "ams": {
            "server-expose-host": "ams.example.org",
            "database": {"type": "postgres", "url": "jdbc:postgresql://db:5432/amoro"},
        },
        "keeper": {"registry": "standalone"},
        "containers": [local],
    }
    for text in (amoro, container, check_in, units, fleet, worker, *_blocks(EXAMPLE, "yaml")):
        given = yaml.safe_load(text)
        merged = {
            name: {**base.get(name, {}), **section} if isinstance(section, dict) else section
            for name, section in {**base, **given}.items()
        }
        assert load_settings(sections=merged, environ={}).warnings == ()


def test_packages_install_containers_as_the_page_says() -> None:
    """In the group that is looked at, and so does the example."""
    example = CHECKOUT / "examples" / "systemd" / "pyproject.toml"
    for text in (*blocks("write-a-container.md", "toml"), example.read_text(encoding="utf-8")):
        assert ENTRY_POINTS in tomllib.loads(text)["project"]["entry-points"]


def test_the_launchpad_takes_what_the_page_has_for_it() -> None:
    """The page on what grows, of the job that deletes."""
    config = yaml.safe_load(blocks("retention.md", "yaml")[0])
    job = defs().resolve_job_def("prune")
    checked = dg.validate_run_config(job, config)["ops"]
    assert checked["prune_past"]["config"] == {"dry_run": False}
