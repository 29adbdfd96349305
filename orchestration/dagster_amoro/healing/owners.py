"""Which process carries a declaration out, and is it still at it?

Its name says so, and stands in the ledger where it has something in hand. On its own host one sees
whether it lives; on others its claims hold until they lapse.
"""

import os
import socket
from typing import Final
from uuid import uuid4

import psutil

from dagster_amoro.containers.processes import started_at
from dagster_amoro.core.model import APPLY

_LONGEST_HOST: Final = 40  # characters, so that the name fits into the ledger
_SAME: Final = 1.0  # seconds: what clocks make of one and the same start


def new_owner() -> str:
    """A name for this process that no other one has or had."""
    pid = os.getpid()
    return f"{APPLY} {_host()} {pid} {started_at(pid):.2f} {uuid4().hex[:8]}"


def has_ended(owner: str) -> bool:
    """Whether the process of this name is known to be over: it was one of this host.

    So is what is no such name.
    """
    try:
        _, host, pid, started, _ = owner.split()
        if host != _host():
            return False
        process = psutil.Process(int(pid))
        is_another = abs(process.create_time() - float(started)) > _SAME
        return is_another or process.status() == psutil.STATUS_ZOMBIE
    except (ValueError, OverflowError, psutil.NoSuchProcess):
        return True


def _host() -> str:
    return socket.gethostname()[:_LONGEST_HOST]
