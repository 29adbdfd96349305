"""Who carries a declaration out, and whether it still lives."""

import os
import subprocess
import sys

import pytest

from dagster_amoro.core.model import is_apply
from dagster_amoro.healing.owners import has_ended, new_owner


def test_this_process_lives() -> None:
    """Each time that it applies it has another name, which fits into the ledger."""
    names = {new_owner() for _ in range(10)}
    assert len(names) == 10
    assert not any(map(has_ended, names))
    assert all(is_apply(name) and len(name) <= 100 for name in names)


def test_a_process_that_is_over_has_ended() -> None:
    """Also where it was not waited for."""
    script = "from dagster_amoro.healing.owners import new_owner; print(new_owner(), flush=True)"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        name = process.stdout.readline().decode().strip()
        process.stdout.read()  # until it is over
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert has_ended(name)
    assert has_ended(name)


def test_a_process_of_another_start_is_another_one() -> None:
    """Numbers of processes are used again; in a container they are always the same."""
    kind, host, pid, started, number = new_owner().split()
    earlier = " ".join([kind, host, pid, str(float(started) - 60), number])
    assert has_ended(earlier)


def test_of_another_host_nobody_knows() -> None:
    """Its claims hold until they lapse."""
    kind, _, *rest = new_owner().split()
    assert not has_ended(" ".join([kind, "elsewhere", *rest]))


@pytest.mark.parametrize("name", ["", "nobody", "apply", "apply {} x 1.0 a", "apply {} 1 x a"])
def test_what_is_no_name_of_a_process_has_ended(name: str) -> None:
    """Anybody can write the registry."""
    assert has_ended(name.format(new_owner().split()[1]))
