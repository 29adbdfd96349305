"""What does somebody who was woken read first? A few lines of Markdown, and tables, of a status.

Dagster shows Markdown of fewer than 1,000 characters without a click, and cuts its lines at the
right, so both are short. Names and texts of others are escaped.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from textwrap import wrap
from typing import Final, NamedTuple

import dagster as dg

from dagster_amoro.asset_keys import partition_key
from dagster_amoro.config import Mode
from dagster_amoro.core.formatting import clock_time, counted
from dagster_amoro.core.model import State
from dagster_amoro.core.pages import Pages
from dagster_amoro.core.pauses import Pause, Scope
from dagster_amoro.core.texts import in_markdown, in_one_line
from dagster_amoro.healing.status import GroupStatus, LossStatus, OrphanStatus, Status, loss

HIDDEN: Final = 1_000
"""Characters of Markdown that hide behind a click."""
STORIES: Final = 3
"""So many orphans, losses and pauses are told of, each, as far as there is room."""
_LINE: Final = 60  # characters of a line; a narrow window cuts longer ones
_LINES: Final = 3  # that a text of others may take
_NAME: Final = 30  # characters of a name
_END_OF_LINE: Final = "  \n"  # in a paragraph of Markdown
_CELL: Final = 160  # characters of a text in a table
_ROWS: Final = 10  # of a table; `dagster-amoro status` has all
_REST: Final = 50  # characters that say how much is left out
_NO_CAUSE: Final = "why it died is not known"
_TROUBLES: Final = {"held": "held back", "scale-up stopped": "not scaled up"}


class Links(NamedTuple):
    """Where one sees and does more."""

    pages: Pages = Pages()
    runs: Mapping[int, str] = {}  # the run that had an incident last, by its number


def of_fleet(status: Status, links: Links, *, end: str = "") -> str:
    """How all groups of a status do, what is the matter with the worst of it, and what to do.

    It is Markdown of fewer than `HIDDEN` characters. `end` is a short one to end with.
    """
    text = f"**{headline(status)}**, at {clock_time(status.at)}"
    left = 0
    for paragraph in [*map(_line, _cautions(status)), *_stories(status, links)]:
        fits = len(text) + len(paragraph) < HIDDEN - _REST - len(end)
        text += f"\n\n{paragraph}" if fits else ""
        left += not fits
    more = _untold(status) + left
    text += f"\n\nand {more:,} more" if more else ""
    return f"{text}\n\n{end}" if end else text


def of_group(status: Status, name: str, links: Links) -> str:
    """The same of one group, with a link to the page of all."""
    end = _link("the whole fleet now", links.pages.fleet)
    return of_fleet(only(status, name), links, end=end)


def in_brief(status: Status, links: Links) -> str:
    """How all groups do, in a line, with a link to the page that says more."""
    head = f"**{headline(status)}**, at {clock_time(status.at)}"
    return f"{head}{_END_OF_LINE}{_link('the whole fleet now', links.pages.fleet)}"


def unknown(why: str) -> str:
    """What is said where nobody can tell how a fleet does."""
    return f"**how it does now is not known**{_END_OF_LINE}{_line(why)}"


def only(status: Status, name: str) -> Status:
    """What a status says of one group, and of what holds everywhere."""

    def concerns(pause: Pause) -> bool:
        return pause.target.scope is not Scope.GROUP or pause.target.name == name

    return replace(
        status,
        pauses=tuple(filter(concerns, status.pauses)),
        groups=tuple(each for each in status.groups if each.name == name),
        orphans=tuple(each for each in status.orphans if each.group_name == name),
        losses=tuple(each for each in status.losses if each.group_name == name),
    )


def worst(status: Status) -> list[OrphanStatus]:
    """The orphans, those that used up most of their attempts first, and of these the oldest."""

    def key(orphan: OrphanStatus) -> tuple[int, datetime, str]:
        since = orphan.orphaned_since or status.at
        return -(orphan.attempts_used or 0), since, orphan.resource_id

    return sorted(status.orphans, key=key)


def headline(status: Status) -> str:
    """In a few words: orphans, losses and threads; "all is well" where nothing is the matter."""
    parts = [counted(len(status.orphans), "orphan")] if status.orphans else []
    parts += [gone] if (gone := _lost(status.losses)) else []
    troubles = Counter(each.trouble for each in status.groups if each.trouble in _TROUBLES)
    parts += [f"{counted(n, 'group')} {_TROUBLES[str(word)]}" for word, n in troubles.items()]
    parts += [counted(len(status.pauses), "pause")] if status.pauses else []
    wanted = sum(each.wanted for each in status.groups)
    live = sum(each.live for each in status.groups)
    is_short = " but threads are missing" if live < wanted and not parts else ""
    said = ", ".join(parts) or f"all is well{is_short}"
    return f"{said}; {live:,} of {counted(wanted, 'thread')} live"


def groups_table(status: Status) -> dg.MetadataValue:
    """The groups, the worst first."""

    def badness(group: GroupStatus) -> tuple[bool, int, int, str]:
        missing = group.wanted - group.live + group.lost_threads
        return group.trouble is None, -group.orphans, -missing, group.name

    def cells(group: GroupStatus) -> tuple[str, ...]:
        numbers = (group.wanted, group.live, group.min_parallelism, group.orphans)
        texts = ("" if number is None else f"{number:,}" for number in numbers)
        return group.name, group.condition, *texts

    columns = ("group", "state", "wanted", "live", "at least", "orphans")
    return _table(columns, map(cells, sorted(status.groups, key=badness)), len(status.groups))


def orphans_table(status: Status) -> dg.MetadataValue:
    """The orphans, the worst first, with what happens next."""

    def cells(orphan: OrphanStatus) -> tuple[str, ...]:
        since, used = orphan.orphaned_since, orphan.attempts_used
        return (
            orphan.resource_id,
            orphan.group_name,
            clock_time(since) if since else "",
            orphan.death or orphan.cause or "",
            "" if used is None else f"{used} of {orphan.max_attempts}",
            orphan.next,
            orphan.last_error or "",
        )

    columns = ("orphan", "group", "since", "why", "attempts", "next", "last error")
    return _table(columns, map(cells, worst(status)), len(status.orphans))


def losses_table(status: Status) -> dg.MetadataValue:
    """What was given up or is kept, and nobody has seen to, the newest first."""

    def cells(lost: LossStatus) -> tuple[str, ...]:
        state = "kept" if lost.state is State.KEPT else "given up"
        told = (lost.death or "", lost.last_error or "")
        at = clock_time(lost.lost_at)
        return lost.resource_id, lost.group_name, state, at, f"{lost.threads}", *told

    columns = ("resource", "group", "state", "at", "threads", "why", "last error")
    return _table(columns, map(cells, reversed(status.losses)), len(status.losses))


def _stories(status: Status, links: Links) -> Iterator[str]:
    """The worst orphan, the newest loss and a pause in full, then some more of each."""
    orphans, losses, pauses = found(status)
    for number in range(STORIES):
        shown = slice(number, number + 1)
        for orphan in orphans[shown]:
            yield _orphan(orphan, links, in_full=not number)
        for lost in losses[shown]:
            yield _loss(lost, links, in_full=not number)
        for pause in pauses[shown]:
            yield _pause(pause, links, in_full=not number)


def _untold(status: Status) -> int:
    """How much there is beyond the stories."""
    return sum(max(len(each) - STORIES, 0) for each in found(status))


def found(
    status: Status,
) -> tuple[list[OrphanStatus], Sequence[LossStatus], Sequence[Pause]]:
    """What there are stories of, the worst and the newest first."""
    kept = {each.resource_id for each in status.losses if each.state is State.KEPT}
    orphans = [each for each in worst(status) if each.resource_id not in kept]
    return orphans, status.losses[::-1], status.pauses


def _cautions(status: Status) -> Iterator[str]:
    """What holds everywhere, and keeps things from happening."""
    if status.mode is Mode.DRY_RUN:
        yield "dry run: nothing is started or removed"
    if not status.auto_restart:
        yield "auto-restart is off: nothing is restarted"
    if status.silence:
        yield f"AMS does not answer, so nothing is concluded: {status.silence}"
    if status.doubt:
        yield f"nothing is concluded from the registry: {status.doubt}"


def _orphan(orphan: OrphanStatus, links: Links, *, in_full: bool) -> str:
    name = _name(orphan.resource_id)
    lines = [f"**{name}** of group {_name(orphan.group_name)}:"]
    lines += [_line(orphan.death or orphan.cause or _NO_CAUSE), _line(f"next: {orphan.next}")]
    if in_full and orphan.last_error:
        lines += [_line(f"last error: {orphan.last_error}")]
    more = [_history(orphan.group_name, links), *_run(orphan.incident_id, links)]
    if in_full:
        more += [_verb("restart-now", orphan.resource_id, links)]
    return _END_OF_LINE.join([*lines, " · ".join(more)])


def _loss(lost: LossStatus, links: Links, *, in_full: bool) -> str:
    is_kept = lost.state is State.KEPT
    state = "out of attempts and kept" if is_kept else "given up"
    lines = [f"**{_name(lost.resource_id)}** {state} at {clock_time(lost.lost_at)}"]
    lines += [_line(lost.last_error or lost.death or _NO_CAUSE)]
    more = [_history(lost.group_name, links), *_run(lost.incident_id, links)]
    if in_full:
        more += [_verb("reset" if is_kept else "restore", lost.resource_id, links)]
        more += [_verb("acknowledge", lost.resource_id, links)]
    return _END_OF_LINE.join([*lines, " · ".join(more)])


def _pause(pause: Pause, links: Links, *, in_full: bool) -> str:
    target = pause.target
    about = {} if target.scope is Scope.ALL else {str(target.scope): target.name}
    link = _link("resume", links.pages.launchpad("resume", **about))
    return f"{_line(str(pause))} · {link}" if in_full else _line(str(pause))


def _lost(losses: Sequence[LossStatus]) -> str:
    kept = sum(each.state is State.KEPT for each in losses)
    threads = sum(each.threads for each in losses)
    return loss(given_up=len(losses) - kept, kept=kept, threads=threads)


def _run(incident_id: int | None, links: Links) -> list[str]:
    run = links.runs.get(incident_id or 0)
    return [] if run is None else [_link("run and its log", links.pages.run(run))]


def _history(group: str, links: Links) -> str:
    return _link(f"history of {_name(group)}", links.pages.history(partition_key(group)))


def _verb(verb: str, resource_id: str, links: Links) -> str:
    return _link(verb.replace("-", " "), links.pages.launchpad(verb, resource=resource_id))


def _link(text: str, path: str) -> str:
    """A link; the text is Markdown, and the path holds nothing that could act there."""
    return f"[{text}]({path})"


def _name(name: str) -> str:
    return in_markdown(_cut(name, _NAME)) or "(no name)"


def _line(text: str) -> str:
    """A text of others, in lines that are short enough."""
    lines = wrap(_cut(text, _LINES * _LINE), _LINE)[:_LINES]
    return _END_OF_LINE.join(map(in_markdown, lines))


def _cut(text: str, most: int) -> str:
    """The beginning of a text, in one line; freed of secrets before it is cut."""
    line = in_one_line(text)
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], number: int) -> dg.MetadataValue:
    """The first rows, each cell a text; the last row counts those that are left out."""
    texts = [
        [_cut(cell, _CELL) for cell in row] for row, _ in zip(rows, range(_ROWS), strict=False)
    ]
    if number > _ROWS:
        texts.append([f"and {number - _ROWS:,} more", *("" for _ in columns[1:])])
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in texts]
    schema = dg.TableSchema(columns=[dg.TableColumn(name) for name in columns])
    return dg.MetadataValue.table(records, schema)
