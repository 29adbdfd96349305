"""The example of a container of somebody else, with real units of a real systemd."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "systemd"
UNSHARE: Final = "/usr/bin/unshare"
MANAGER: Final = Path("/lib/systemd/systemd")
# Within a mount namespace of its own. A manager only runs where the system was booted by systemd,
# which the folder tells; it ends with the shell, and its units with it.
INSIDE: Final = """
mount -t tmpfs none /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
"$0" --user & manager=$!
for _ in $(seq 300); do systemctl --user show-environment >/dev/null 2>&1 && break; sleep 0.1; done
"$@"; code=$?
systemctl --user exit; wait $manager
exit $code
"""


def missing() -> str | None:
    """Why no manager can run here."""
    if not MANAGER.exists():
        return "there is no systemd (Debian: apt-get install systemd)"
    tried = subprocess.run([UNSHARE, "--mount", "true"], capture_output=True, check=False)
    return None if tried.returncode == 0 else "who runs the tests may not mount anything"


pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def test_the_example_keeps_the_contract(tmp_path: Path) -> None:
    """Copied to where nothing else is, as somebody has it; no test of it is left out."""
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    tests = [sys.executable, "-m", "pytest", "-ra", f"--basetemp={tmp_path / 'own'}", str(folder)]
    done = subprocess.run(
        [UNSHARE, "--mount", "/bin/sh", "-c", INSIDE, str(MANAGER), *tests],
        cwd=folder,
        env={**os.environ, "XDG_RUNTIME_DIR": "/run/user/0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"=+ [0-9]+ passed in ", done.stdout), done.stdout
