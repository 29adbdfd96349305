"""How long do tests wait? Until it happens; a deadline only ends what hangs."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psutil

# Seconds. Many times what a busy machine needs, since a deadline is not what a test is about.
PATIENCE: Final = 180


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Returns as soon as the condition holds, and fails where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} s in vain"
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still does something."""
    with suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
