"""The wheel: what is in it, and that it lives in a project that has packages of our old names."""

import re
import zipfile
from email import message_from_bytes
from pathlib import Path
from typing import Final

import pytest

from tests.packaging.environments import CHECKOUT, build, environment, install, run

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("packaging")]

PROJECT: Final = {
    "assets/__init__.py": """
import dagster as dg


@dg.asset
def orders() -> None:
    pass
""",
    "orchestration/__init__.py": """
import dagster as dg

from assets import orders

daily = dg.define_asset_job("daily", [orders])
""",
    "location.py": """
import dagster as dg
from assets import orders
from orchestration import daily

from dagster_amoro import build_definitions, load_settings

defs = dg.Definitions.merge(
    dg.Definitions(assets=[orders], jobs=[daily]),
    build_definitions(load_settings()),
)
""",
}
LOOK: Final = """
import location
names = {key.to_user_string() for key in location.defs.resolve_asset_graph().get_all_asset_keys()}
assert {"orders", "orphan_history", "group_reliability"} <= names, names
assert location.defs.resolve_job_def("restart_orphans") and location.defs.resolve_job_def("daily")
"""


BUILD: Final = """
from dagster_amoro.config import ContainerSettings
from dagster_amoro.containers.resolve import build_container
entry = ContainerSettings(name="u", implementation="systemd", properties={"command": '["true"]'})
found = type(build_container(entry))
print(f"{found.__module__}.{found.__name__}")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """The programs of an environment that has the wheel, and never saw this checkout."""
    return environment(tmp_path_factory.mktemp("environment") / "venv", wheel)


def names(wheel: Path) -> list[str]:
    """The files in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return sorted(archive.namelist())


def test_its_top_level_is_two_packages(wheel: Path) -> None:
    """And what every wheel has about itself."""
    top = {name.partition("/")[0] for name in names(wheel)}
    (about,) = (name for name in top if name.endswith(".dist-info"))
    assert top == {"dagster_amoro", "dagster_amoro_audit", about}


def test_it_has_the_files_that_are_no_code(wheel: Path) -> None:
    """The bundled configurations, and that the packages are typed."""
    found = names(wheel)
    for name in (
        "dagster_amoro/py.typed",
        "dagster_amoro_audit/py.typed",
        "dagster_amoro/config/standalone/config.yaml",
        "dagster_amoro/demo/conf/config.yaml",
    ):
        assert name in found


def test_the_source_distribution_makes_the_same_wheel(
    tmp_path_factory: pytest.TempPathFactory, wheel: Path
) -> None:
    """Whoever builds from the sources of a release gets what was released."""
    folder = tmp_path_factory.mktemp("sdist")
    archive = build("sdist", folder)
    run(["tar", "-xzf", archive, "-C", folder], folder)
    (sources,) = (path for path in folder.iterdir() if path.is_dir())
    uv = environment(folder / "venv", wheel, "uv") / "uv"
    run([uv, "build", "--quiet", "--wheel", "--out-dir", folder / "built", sources], folder)
    (again,) = (folder / "built").glob("*.whl")
    assert names(again) == names(wheel)


def test_links_of_the_readme_work_where_there_are_no_files_beside_it(wheel: Path) -> None:
    """A page of a package index has nothing but this text."""
    (about,) = (name for name in names(wheel) if name.endswith("/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(about).decode()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links
    assert [link for link in links if not link.startswith("https://")] == []


def test_an_index_is_told_what_it_is(wheel: Path) -> None:
    """Its licence, where it lives, and the versions of Python that it is for, which are typed."""
    (about,) = (name for name in names(wheel) if name.endswith("/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        told = message_from_bytes(archive.read(about))
    assert told["License-Expression"] == "Apache-2.0"
    links = {link.partition(",")[0] for link in told.get_all("Project-URL", ())}
    assert links == {"Homepage", "Repository", "Documentation", "Changelog", "Issues"}
    classifiers = set(told.get_all("Classifier", ()))
    versions = {f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 15)}
    assert versions | {"Typing :: Typed"} <= classifiers


def test_a_project_with_packages_of_its_own_merges_the_definitions(
    tmp_path: Path, programs: Path
) -> None:
    """Its `assets` and `orchestration` are its own, and Dagster finds nothing amiss."""
    for name, text in PROJECT.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    home = {"DAGSTER_HOME": str(tmp_path)}
    run([programs / "python", "-c", LOOK], tmp_path, **home)
    validate: list[str | Path] = [programs / "dagster", "definitions", "validate", "-m", "location"]
    assert "Validation successful" in run(validate, tmp_path, **home)


def test_a_container_of_another_package_is_found_by_its_name(
    tmp_path: Path, programs: Path
) -> None:
    """The example, installed beside the wheel as its users do it."""
    install(programs, "--no-deps", CHECKOUT / "examples" / "systemd")
    found = run([programs / "python", "-c", BUILD], tmp_path)
    assert found.strip() == "systemd_container.SystemdContainer"


def test_the_command_is_installed(tmp_path: Path, programs: Path) -> None:
    """It says what it can do, from any folder."""
    assert "restart-now" in run([programs / "dagster-amoro", "--help"], tmp_path)
