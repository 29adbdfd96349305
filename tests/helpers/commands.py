"""How the tests run the command `dagster-amoro`, and programs of their own."""

import sys
from inspect import signature
from pathlib import Path
from typing import Any

from click.testing import CliRunner


def command_runner() -> CliRunner:
    """A runner that keeps standard error apart, which click before 8.2 does when asked to only."""
    asks = "mix_stderr" in signature(CliRunner).parameters
    apart: dict[str, Any] = {"mix_stderr": False} if asks else {}
    return CliRunner(**apart)


def write_program(path: Path, code: str) -> None:
    """Makes a program of Python code, wherever Python lies.

    A first line that names an interpreter ends at the first blank; a shell can be told of one. What
    the shell sees as a command and never comes back from is a text to Python.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"""#!/bin/sh
'''exec' '{sys.executable}' -IS "$0" "$@"
' '''
{code}""")
    path.chmod(0o755)
