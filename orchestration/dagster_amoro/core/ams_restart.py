"""Did AMS keep its optimizers since the last look, or may it have forgotten all of them at once?

An AMS that comes back after it was away for longer than its heartbeat timeout deletes every
optimizer row before it answers again (`DefaultOptimizingService` does so while it starts). Healthy
optimizers register again with their next heartbeat; until then each of them looks orphaned. So
some are remembered by their tokens, which AMS gives out anew with every registration. As long as
one of them is still there, AMS forgot nobody.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

SAMPLE_SIZE: Final = 20  # enough that ordinary deaths between two looks leave one
# So many must be gone at once to raise a doubt. Where there are only one or two optimizers, their
# deaths are nothing unusual, and the grace period alone protects them.
_SUSPICIOUS: Final = 3
# A heartbeat, at most as long as the timeout, tells an optimizer that its token is void; it
# registers after a retry or two, 5 s apart.
_RETRIES: Final = timedelta(seconds=15)


@dataclass(frozen=True, kw_only=True, slots=True)
class AmsRestartDetector:
    """What one look remembers for the next."""

    sample_tokens: tuple[str, ...] = ()  # tokens of optimizers that were registered
    was_away: bool = False  # AMS did not answer since they were seen
    settling_since: datetime | None = None  # AMS answers again, and they were not there any more

    def seen_away(self) -> "AmsRestartDetector":
        """After a look at which AMS did not answer."""
        return AmsRestartDetector(sample_tokens=self.sample_tokens, was_away=True)


def settling_time(heartbeat_timeout: timedelta) -> timedelta:
    """How long healthy optimizers may take to register with an AMS that forgot them."""
    return heartbeat_timeout + _RETRIES


def look_again(
    watch: AmsRestartDetector,
    *,
    still_there: AbstractSet[str],
    registered: Sequence[str],
    settling: timedelta,
    now: datetime,
) -> tuple[AmsRestartDetector, datetime | None]:
    """What to remember after a look at which AMS answered, and until when to doubt what was seen.

    The tokens of `watch` that are `still_there` are looked up after the snapshot: one that is there
    now was there all along. Some of those that are `registered` are remembered next.
    """
    since = watch.settling_since or now
    if not _is_doubtful(watch, still_there) or now >= since + settling:
        return AmsRestartDetector(sample_tokens=tuple(registered[:SAMPLE_SIZE])), None
    settles = AmsRestartDetector(sample_tokens=watch.sample_tokens, settling_since=since)
    return settles, since + settling


def _is_doubtful(watch: AmsRestartDetector, still_there: AbstractSet[str]) -> bool:
    if watch.settling_since is not None:
        return True  # whoever is back, others may still be on their way
    if not still_there.isdisjoint(watch.sample_tokens):
        return False
    return watch.was_away or len(watch.sample_tokens) >= _SUSPICIOUS
