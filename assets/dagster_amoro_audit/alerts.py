"""What is to be told now to those who look at no page, and was not told yet?

What was told is known by a memory that is kept once it was sent. Who dies in between makes the
same alerts from the same memory, with the same keys.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from hashlib import sha256
from itertools import groupby
from typing import Any, Final, NamedTuple

import dagster as dg

from dagster_amoro.asset_keys import partition_key
from dagster_amoro.core.alerts import Alert
from dagster_amoro.core.formatting import clock_time, counted, duration
from dagster_amoro.core.model import State
from dagster_amoro.core.pages import Pages
from dagster_amoro.core.texts import in_one_line, shown, shown_lines
from dagster_amoro.healing.status import LossStatus, OrphanStatus, Status
from dagster_amoro_audit.findings import Finding

SURVEY: Final = "survey_is_fresh"
LOSSES: Final = "nothing_given_up"
NOT_BY_CHECK: Final = frozenset({SURVEY, LOSSES})
"""Checks that are told in another way: each loss by itself, and a silence by the ledger alone."""
_SHORTEST_SILENCE: Final = timedelta(minutes=1)
_OVERLAP: Final = timedelta(hours=1)  # in which a loss may come to be known late
_NAMED: Final = 5  # resources whose story is told
_UNKNOWN: Final = "why its worker died is not known"
_NEXT: Final = {
    "no_incident_overdue": "look at the run that has it, and at its log.",
    "restarts_are_not_refused": "mend the container, raise the limit, or pause the group.",
    "restarts_succeed": "look at the last errors: what they share is the cause.",
    "no_resource_flaps": "look at why it dies; a restart alone does not help it.",
    "groups_at_min_parallelism": "look at the orphans and the scale-ups of the group.",
    "groups_not_doubled": "release one resource of the group, or wait for it.",
    SURVEY: "see that Dagster's daemon lives, that orphan_sensor is running, and what its last "
    "ticks said. Nothing is restarted meanwhile.",
}


class Told(NamedTuple):
    """What was told of one check."""

    number: int = 0  # alerts so far; with it, no two have one key
    answer: str = ""  # of the last finding that failed; empty: it passes since
    about: str = ""  # of the alerts since it fails


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Kept by Dagster with the sensor, as a text."""

    since: float = 0.0  # what was lost until then is told; in s since 1970
    losses: tuple[int, ...] = ()  # the incidents of later losses that are told
    checks: Mapping[str, Told] = field(default_factory=dict)
    surveyed: float | None = None  # the last survey that was known of; None: nobody looked yet


def dump(memory: Memory) -> str:
    """The text of a memory."""
    return json.dumps(asdict(memory))


def load(text: str | None) -> Memory:
    """The memory in a text; a new one where it makes no sense: then all is told once more."""
    try:
        values: Any = json.loads(text or "{}")
        surveyed = values.get("surveyed")
        return Memory(
            since=float(values.get("since", 0)),
            losses=tuple(map(int, values.get("losses", ()))),
            checks={
                str(name): Told(int(number), str(answer), str(about))
                for name, (number, answer, about) in values.get("checks", {}).items()
            },
            surveyed=None if surveyed is None else float(surveyed),
        )
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return Memory()


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What there is at one moment."""

    now: datetime
    origin: str  # the ledger's identity; empty: it does not answer
    base: str  # where the web server is, without a slash at the end; empty: nobody said it
    pages: Pages  # of the keeper
    status: Status | None  # None: a store does not answer
    findings: Mapping[str, Finding]  # by the names of checks; without those that could not look


Step = tuple[Alert, Memory]
"""An alert, and what is remembered once it was sent."""


def pending(memory: Memory, seen: Seen) -> Iterator[Step]:
    """What is to be told now, most urgent first; each with the memory after it and those before."""
    for lost in _new_losses(memory, seen):
        memory = replace(memory, losses=(*memory.losses, *(each.incident_id for each in lost)))
        yield _of_losses(lost, seen), memory
    for name in sorted(seen.findings, key=lambda name: (name != SURVEY, name)):
        finding = seen.findings[name]
        told = memory.checks.get(name, Told())
        if (alert := _of_check(name, finding, told, seen)) is not None:
            answer = "" if finding.passed else finding.answer
            after = Told(told.number + 1, answer, "" if finding.passed else alert.about)
            memory = replace(memory, checks={**memory.checks, name: after})
            yield alert, memory


def settled(memory: Memory, now: datetime) -> Memory:
    """The memory without losses that nobody can learn of late any more, once all was told."""
    since = max(memory.since, (now - _OVERLAP).timestamp())
    return replace(memory, since=since)


def remembered(memory: Memory, status: Status) -> Memory:
    """The memory without the losses that are none any more, or are known by their moment."""
    late = {each.incident_id for each in status.losses if each.lost_at.timestamp() > memory.since}
    return replace(memory, losses=tuple(n for n in memory.losses if n in late))


def survey(at: datetime, now: datetime, interval: timedelta, reason: str | None) -> Finding:
    """Whether the fleet was looked at within three check intervals.

    Args:
        at: When the last survey was completed, or nobody had looked for one before.
        now: The present.
        interval: Between two checks.
        reason: Why none can be completed now, as far as it is known.
    """
    allowed, age = max(3 * interval, _SHORTEST_SILENCE), now - at
    if age <= allowed:
        return Finding(True, f"the last survey is {duration(age)} old")  # noqa: FBT003 - of a tuple
    why = reason or "no tick comes to its end"
    message = f"no survey since {clock_time(at)}, for {duration(age)}: {why}"
    return Finding(False, message, about=frozenset({SURVEY}))  # noqa: FBT003 - as above


def _new_losses(memory: Memory, seen: Seen) -> list[list[LossStatus]]:
    """Losses that are not told yet, those of a group together."""
    if seen.status is None:
        return []
    told = frozenset(memory.losses)
    new = [
        each
        for each in seen.status.losses
        if each.lost_at.timestamp() > memory.since and each.incident_id not in told
    ]
    new.sort(key=lambda each: (each.group_name, each.incident_id))
    return [list(lost) for _, lost in groupby(new, lambda each: each.group_name)]


def _of_losses(lost: Sequence[LossStatus], seen: Seen) -> Alert:
    first, number = lost[0], len(lost)
    group = in_one_line(first.group_name) or "(no group)"
    what = in_one_line(first.resource_id) if number == 1 else counted(number, "resource")
    kept = all(each.state is State.KEPT for each in lost)
    end = "out of attempts and kept" if kept else "given up"
    threads = counted(sum(each.threads for each in lost), "thread")
    verb = "reset" if kept else "restore"
    named = [_loss(each) for each in lost[:_NAMED]]
    more = [f"and {number - _NAMED:,} more"] if number > _NAMED else []
    key = _key(seen, "loss", *(str(each.incident_id) for each in lost))
    return Alert(
        title=f"{what} of group {group}: {end}, {threads} fewer than declared",
        cause=shown(first.death or first.cause or _UNKNOWN),
        story=shown_lines([*named, *more]),
        next_step=f"find out why, then: dagster-amoro {verb} RESOURCE, or acknowledge.",
        link=seen.base + seen.pages.history(partition_key(first.group_name)),
        is_urgent=True,
        key=key,
        about=key,
    )


def _loss(lost: LossStatus) -> str:
    error = f"; last error: {lost.last_error}" if lost.last_error else ""
    tried = counted(lost.attempts, "attempt")
    why = f"; {lost.death}" if lost.death else ""
    return f"{lost.resource_id}: {tried} until {clock_time(lost.lost_at)}{why}{error}"


def _of_check(name: str, finding: Finding, told: Told, seen: Seen) -> Alert | None:
    """What is to be told of a check; None: it is known."""
    if finding.passed:
        if not told.answer:
            return None
        title, answer, about = f"{name} passes again", "", told.about
    else:
        if finding.answer == told.answer:
            return None
        title, answer = f"{name} failed", finding.answer
        about = told.about or _key(seen, "check", name, answer, str(told.number))
    is_warning = finding.severity is dg.AssetCheckSeverity.WARN
    page = seen.pages.fleet if name == SURVEY else seen.pages.checks
    return Alert(
        title=title.replace(" failed", " warns") if is_warning else title,
        cause=shown(finding.description),
        story=_open_orphans(seen.status),
        next_step="nothing." if finding.passed else _NEXT.get(name, "look at the check."),
        link=seen.base + page,
        is_urgent=not (is_warning or finding.passed),
        key=_key(seen, name, answer, str(told.number)),
        about=about,
        is_over=finding.passed,
    )


def _open_orphans(status: Status | None) -> str:
    orphans: Sequence[OrphanStatus] = status.orphans if status else ()
    lines = [
        f"{each.resource_id} (group {each.group_name}): {each.death or _UNKNOWN}; {each.next}"
        for each in orphans[:_NAMED]
    ]
    more = [f"and {len(orphans) - _NAMED:,} more orphans"] if len(orphans) > _NAMED else []
    return shown_lines([*lines, *more])


def _key(seen: Seen, *parts: str) -> str:
    return sha256(json.dumps([seen.origin, *parts]).encode()).hexdigest()[:32]
