"""How is something waited for that nobody reports?"""

import time
from collections.abc import Callable


def within(seconds: float, condition: Callable[[], object], pause: float) -> bool:
    """Whether the condition holds within so many seconds; it is looked at once at least."""
    deadline = time.monotonic() + seconds
    while not (met := bool(condition())) and time.monotonic() < deadline:
        time.sleep(pause)
    return met
