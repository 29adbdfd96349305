"""What a worker installs: how large it is, and that it works where there is nothing else."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import Registry, optimizer
from tests.helpers.waiting import wait_until
from tests.packaging.environments import build, clean_environment, client_of, environment, run

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("packaging")]

LARGEST: Final = 40 * 10**6  # bytes
BLOCK: Final = 4096  # bytes that a file takes at least, on most disks
EXTRAS: Final = {"sqlite": "", "postgresql": "[postgres]", "mysql": "[mysql]"}
WHO: Final = ("--resource-id", "w-1", "--group", "g", "--container", "local")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The light client's wheel."""
    return client_of(build("wheel", tmp_path_factory.mktemp("wheel")))


def size_of(folder: Path) -> int:
    """Bytes on a disk."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(-(-path.stat().st_size // BLOCK) * BLOCK for path in files)


def test_it_is_small_and_works_alone(
    tmp_path: Path, wheel: Path, database_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """With the driver of each database, everything compiled, as pip leaves it."""
    extra = EXTRAS[database_url.get_backend_name()]
    wanted = f"dagster-amoro-worker{extra} @ {wheel.as_uri()}"
    programs = environment(tmp_path / "venv", wanted, "--compile-bytecode")
    assert size_of(tmp_path / "venv") < LARGEST
    database = open_database(database_url)
    Registry(database, None).create()

    def registered() -> list[str]:
        with database.reading() as connection:
            return list(connection.scalars(sa.select(optimizer.c.resource_id)))

    url = database_url.render_as_string(hide_password=False)
    command = [str(programs / "dagster-amoro-beat"), *WHO, "--", "sleep", "600"]
    process = subprocess.Popen(command, env=clean_environment(DAGSTER_AMORO_REGISTRY=url))
    try:
        wait_until(lambda: registered() == ["w-1"])
    finally:
        process.terminate()
        process.wait()
    assert registered() == []


def test_it_knows_its_version(tmp_path: Path, wheel: Path) -> None:
    """As the command, and in Python."""
    programs = environment(tmp_path / "venv", str(wheel))
    version = wheel.name.split("-")[1]
    assert version in run([programs / "dagster-amoro-beat", "--version"], tmp_path)
    script = "import dagster_amoro_worker; print(dagster_amoro_worker.__version__)"
    assert run([programs / "python", "-c", script], tmp_path) == f"{version}\n"
