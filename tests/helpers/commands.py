"""How the tests run the command `dagster-amoro`, on every version of click."""

from inspect import signature
from typing import Any

from click.testing import CliRunner


def command_runner() -> CliRunner:
    """A runner that keeps standard error apart, which click before 8.2 does when asked to only."""
    asks = "mix_stderr" in signature(CliRunner).parameters
    apart: dict[str, Any] = {"mix_stderr": False} if asks else {}
    return CliRunner(**apart)
