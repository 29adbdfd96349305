"""Fresh environments with the built wheels, made by uv."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

CHECKOUT: Final = Path(__file__).parents[2]
_UV: Final = Path(sys.executable).with_name("uv")
# What would tell a fresh environment of the one that the tests run in.
_OURS: Final = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DAGSTER_HOME", "AMORO_CONF_DIR"}


def clean_environment(**variables: str) -> dict[str, str]:
    """The variables of a user who never heard of this checkout, and these."""
    return {name: value for name, value in os.environ.items() if name not in _OURS} | variables


def run(command: Sequence[str | Path], folder: Path, **variables: str) -> str:
    """What a command prints; an AssertionError with all of it where it fails."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=clean_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}"
    return done.stdout


def build(kind: str, folder: Path) -> Path:
    """The wheel or the source distribution of this checkout, as `kind` says: wheel or sdist.

    That of the light client, which it needs, is beside it.
    """
    for source in (CHECKOUT, CHECKOUT / "client"):
        run([_UV, "build", "--quiet", f"--{kind}", "--out-dir", folder, source], CHECKOUT)
    (built,) = folder.glob(f"dagster_amoro-*.{'whl' if kind == 'wheel' else 'tar.gz'}")
    return built


def client_of(built: Path) -> Path:
    """The light client that was built beside the plugin."""
    (client,) = built.parent.glob(f"dagster_amoro_worker-*{built.suffix}")
    return client


def environment(folder: Path, wheel: Path | str, *others: str, locked: bool = True) -> Path:
    """The folder of the programs of a new environment with the wheel, on this Python.

    Where it is `locked`, all libraries are those of uv.lock; otherwise they are chosen anew.
    """
    run([_UV, "venv", "--quiet", "--python", sys.executable, folder], CHECKOUT)
    options: list[str | Path] = ["--constraints", _pins(folder)] if locked else []
    if isinstance(wheel, Path):
        options += ["--find-links", wheel.parent]
    install(folder / "bin", *options, wheel, *others)
    return folder / "bin"


def install(programs: Path, *arguments: str | Path) -> None:
    """Installs into the environment that has its programs in this folder."""
    python = programs / "python"
    run([_UV, "pip", "install", "--quiet", "--python", python, *arguments], CHECKOUT)


def _pins(folder: Path) -> Path:
    """The versions of uv.lock, as a file."""
    file = folder / "pins.txt"
    export = ["export", "--quiet", "--frozen", "--no-hashes", "--no-emit-workspace", "--all-extras"]
    run([_UV, *export, "--output-file", file], CHECKOUT)
    return file
