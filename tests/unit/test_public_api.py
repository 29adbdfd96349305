"""What `import dagster_amoro` offers, and what using a part of it costs."""

import ast
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import dagster_amoro
from dagster_amoro.config import ContainerSettings
from dagster_amoro.containers.resolve import build_container
from dagster_amoro.core import errors

HEAVY = {
    *("alembic", "dagster", "kubernetes", "matplotlib", "numpy", "pandas", "psutil", "pyarrow"),
    *("pydantic", "requests", "thriftpy2", "yaml"),
}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages that a fresh interpreter has loaded after a statement."""
    script = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("name", dagster_amoro.__all__)
def test_every_public_name_is_there(name: str) -> None:
    """Each name of `__all__` can be imported, is listed by `dir`, and stays the object it is."""
    assert name in dir(dagster_amoro)
    found = getattr(dagster_amoro, name)
    assert found is not None
    assert getattr(dagster_amoro, name) is found


def test_star_import() -> None:
    """`from dagster_amoro import *` brings what `__all__` lists."""
    assert set(dagster_amoro.__all__) <= loaded_names("from dagster_amoro import *")


def loaded_names(statement: str) -> set[str]:
    """The names that a statement binds."""
    namespace: dict[str, object] = {}
    exec(statement, namespace)  # noqa: S102 - the test's own text
    return set(namespace)


def test_type_checkers_see_what_is_there_at_run_time() -> None:
    """The imports for type checkers bind exactly `__all__`, each name from its own module."""
    tree = ast.parse(Path(dagster_amoro.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    assert {*seen, "__version__"} == set(dagster_amoro.__all__)
    for name, module in seen.items():
        found = getattr(dagster_amoro, name)
        assert getattr(sys.modules[str(module)], name) is found


def test_every_error_is_public() -> None:
    """Whoever catches one of our errors imports it from the top."""
    kinds = {
        name
        for name, found in vars(errors).items()
        if isinstance(found, type) and issubclass(found, errors.KeeperError)
    }
    assert kinds <= set(dagster_amoro.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A typing error is reported as Python reports it for any module."""
    with pytest.raises(AttributeError, match="no attribute 'Hartbeat'"):
        getattr(dagster_amoro, "Hartbeat")  # noqa: B009 - mypy would see it
    with pytest.raises(ImportError, match="Hartbeat"):
        exec("from dagster_amoro import Hartbeat")  # noqa: S102 - as above


def test_the_version_is_that_of_the_distribution() -> None:
    """It stands in one place, the project's metadata."""
    assert dagster_amoro.__version__ == version("dagster-amoro")


@pytest.mark.parametrize(
    "statement",
    [
        "import dagster_amoro",
        "from dagster_amoro import Heartbeat",
        "from dagster_amoro import Container, ContainerError, KeeperError, Resource, __version__",
    ],
)
def test_a_worker_loads_no_heavy_library(statement: str) -> None:
    """A worker that only writes heartbeats pays for nothing but their driver."""
    assert not loaded_by(statement) & {*HEAVY, "sqlalchemy", "click"}


@pytest.mark.parametrize(
    ("statement", "unloaded"),
    [
        ("import dagster_amoro.containers", HEAVY | {"kazoo", "sqlalchemy"}),
        ("import dagster_amoro.ams.client", HEAVY | {"kazoo"}),
        ("import dagster_amoro.containers.resolve", {"kubernetes", "requests", "psutil"}),
        ("import dagster_amoro.containers.amoro.kubernetes", {"kubernetes", "psutil", "dagster"}),
        ("import dagster_amoro.containers.amoro.flink", {"kubernetes", "requests", "dagster"}),
        ("import dagster_amoro.containers.preview", {"kubernetes", "requests", "psutil"}),
        ("import dagster_amoro.containers.amoro.spark", {"kubernetes", "requests", "dagster"}),
        ("from dagster_amoro import CommandContainer", {"kubernetes", "requests", "dagster"}),
        ("from dagster_amoro import PodContainer", {"kubernetes", "psutil", "dagster"}),
        ("import dagster_amoro.testing", {"dagster", "pandas", "pytest"}),
    ],
)
def test_what_is_heavy_is_loaded_where_it_is_used(statement: str, unloaded: set[str]) -> None:
    """A client of Flink, Kubernetes or Thrift is loaded by the first call that needs it."""
    assert not loaded_by(statement) & unloaded


def test_a_public_class_works_in_config_files() -> None:
    """`container-impl` takes the public name of a class."""
    settings = ContainerSettings(
        name="local",
        implementation="dagster_amoro.CommandContainer",
        properties={"command": '["w"]'},
    )
    assert isinstance(build_container(settings), dagster_amoro.CommandContainer)
