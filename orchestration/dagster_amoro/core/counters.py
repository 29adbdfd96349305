"""How often has what happened since the ledger began? Numbers that never fall.

Incidents of days that are over are known by their sums, those after them one by one; they count the
same, so that nothing changes when a day is summed up. Times to recover are known by buckets.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

from dagster_amoro.core.model import State
from dagster_amoro.core.post_mortem import class_of

WIDTH: Final = math.log(1.02)
"""Of a bucket of times to recover: values in it differ by 2 %, and by 0.02 s."""


class Seen(NamedTuple):
    """What counts of an incident."""

    group_name: str
    state: State
    attempts: int
    cause: str | None  # of the death of its worker
    detected_at: datetime
    closed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Counters:
    """By group: how many of what. Filled as incidents are counted.

    What is over has a cause that stays as it is; that of an open incident may come to be known.
    """

    incidents: Counter[str] = field(default_factory=Counter)  # all that were detected
    attempts: Counter[str] = field(default_factory=Counter)
    recoveries: Counter[tuple[str, str]] = field(default_factory=Counter)  # and class of cause
    give_ups: Counter[tuple[str, str]] = field(default_factory=Counter)  # and class of cause
    took: Counter[tuple[str, int]] = field(default_factory=Counter)  # by group and bucket
    since: dict[str, datetime] = field(default_factory=dict)  # when it had its first incident

    def add_sums(
        self,
        group: str,
        attempts: int,
        took: Mapping[int, int],
        causes: Mapping[str, Mapping[str, int]],
    ) -> None:
        """Counts the incidents of a group that are summed up.

        Args:
            group: Its name.
            attempts: All their attempts.
            took: How many took how long to recover, by bucket.
            causes: By why workers died: how many incidents ended how. What is 0 is left out.
        """
        self.attempts[group] += attempts
        for cause, outcomes in causes.items():
            of, recovered = (group, class_of(cause)), (n for n in outcomes if "recovered" in n)
            self.incidents[group] += sum(outcomes.values())
            self.recoveries[of] += sum(outcomes[name] for name in recovered)
            self.give_ups[of] += outcomes.get("given_up", 0)
        self.took.update({(group, bucket): number for bucket, number in took.items()})

    def add(self, seen: Seen) -> None:
        """Counts an incident that is not summed up yet; it may be open."""
        group, of = seen.group_name, (seen.group_name, class_of(seen.cause))
        self.note_first(group, seen.detected_at)
        self.incidents[group] += 1
        self.attempts[group] += seen.attempts
        self.give_ups[of] += seen.state is State.EXHAUSTED
        self.recoveries[of] += seen.state is State.RECOVERED
        if seen.state is State.RECOVERED and seen.closed_at is not None:
            self.took[group, bucket_of((seen.closed_at - seen.detected_at).total_seconds())] += 1

    def note_first(self, group: str, at: datetime) -> None:
        """Notes that the group had an incident at this moment."""
        self.since[group] = min(at, self.since.get(group, at))


def bucket_of(seconds: float) -> int:
    """The bucket that a time belongs to; below zero, as clocks of two hosts may say, it is 0."""
    return round(math.log1p(max(seconds, 0.0)) / WIDTH)


def middle_of(bucket: int) -> float:
    """The middle of a bucket, in seconds: no time in it is further away than 1 %, and 0.01 s."""
    return math.expm1(bucket * WIDTH)
