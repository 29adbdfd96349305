"""How long do tests wait? Until it happens; a deadline only ends what hangs."""

import time
from collections.abc import Callable
from typing import Final

# Seconds. Many times what a busy machine needs, since a deadline is not what a test is about.
PATIENCE: Final = 180


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Returns as soon as the condition holds, and fails where it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} s in vain"
        time.sleep(0.01)
