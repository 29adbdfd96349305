"""How does a person read a status? As tables."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from dagster_amoro.config import Mode
from dagster_amoro.core.errors import shorten
from dagster_amoro.core.formatting import clock_time, duration
from dagster_amoro.core.model import State
from dagster_amoro.core.texts import Shown, in_one_line
from dagster_amoro.healing.status import GroupStatus, LossStatus, OrphanStatus, Status

SHOWN: Final = 20  # orphans of a group that a table shows
_WIDE: Final = 160  # characters in a line of what is no terminal: a file, a pipe
_LONGEST_ERROR: Final = 200  # characters of an error in a table; JSON has all
_NUMBERS: Final = ("resources", "wanted", "live", "min-parallelism", "orphans", "starting")
_GROUP_COLUMNS: Final = ("group", *_NUMBERS, "scale-ups", "state")
_LOSS_COLUMNS: Final = ("resource", "group", "state", "for", "attempts", "why", "last error")
_ORPHAN_COLUMNS: Final = ("orphan", "state", "for", "attempts", "next", "why", "last error")


def render(status: Status) -> Shown:
    """The status as tables, as wide as the terminal; without colours where there is none."""
    is_wide = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    console = Console(width=_WIDE if is_wide else None, highlight=False)
    with console.capture() as capture:
        for part in _parts(status):
            console.print(part)
            console.print()
    return Shown("\n".join(line.rstrip() for line in capture.get().splitlines()).rstrip())


def _parts(status: Status) -> Iterator[RenderableType]:
    yield _table("", ("", ""), _head(status))
    if status.groups:
        yield _table("", _GROUP_COLUMNS, map(_group_row, status.groups))
    by_group: dict[str, list[OrphanStatus]] = {}
    for orphan in status.orphans:
        by_group.setdefault(orphan.group_name, []).append(orphan)
    for name, found in sorted(by_group.items()):
        rows = (_orphan_row(orphan, status.at) for orphan in found[:SHOWN])
        yield _table(f"group {name}", _ORPHAN_COLUMNS, rows)
        if len(found) > SHOWN:
            yield Text(f" and {len(found) - SHOWN:,} more")
    if status.losses:
        newest = status.losses[: -SHOWN - 1 : -1]
        rows = (_loss_row(each, status.at) for each in newest)
        yield _table("lost, until restored or acknowledged", _LOSS_COLUMNS, rows)
        if len(status.losses) > SHOWN:
            yield Text(f" and {len(status.losses) - SHOWN:,} more")


def _head(status: Status) -> Iterator[tuple[str, str]]:
    dry = status.mode is Mode.DRY_RUN
    ams = f"does not answer, nothing is concluded before it does: {status.silence}"
    yield "at", clock_time(status.at)
    yield "acts", status.acting.message
    yield "mode", "dry run: nothing is started or removed" if dry else str(status.mode)
    yield "auto-restart", "on" if status.auto_restart else "off"
    yield "AMS", (ams if status.silence else "answers") if status.attached else "none"
    if status.doubt:
        yield "registry", f"nothing is concluded from it: {status.doubt}"
    yield from (("pause", str(pause)) for pause in status.pauses)
    yield from ((group.name, group.message) for group in status.groups if group.message)


def _group_row(group: GroupStatus) -> tuple[str, ...]:
    threads = (group.wanted, group.live, group.min_parallelism)
    numbers = (group.resources, *threads, group.orphans, group.starting)
    rounds = f"{group.scale_up.rounds} of {group.scale_up.most}" if group.scale_up else ""
    shown = ("" if number is None else f"{number:,}" for number in numbers)
    return group.name, *shown, rounds, group.condition


def _orphan_row(orphan: OrphanStatus, now: datetime) -> tuple[str, ...]:
    since = orphan.orphaned_since
    return (
        orphan.resource_id,
        orphan.state or "new",
        duration(now - since) if since else "",
        "" if orphan.attempts_used is None else f"{orphan.attempts_used} of {orphan.max_attempts}",
        orphan.next,
        shorten(orphan.death or "", _LONGEST_ERROR),
        shorten(orphan.last_error or "", _LONGEST_ERROR),
    )


def _loss_row(loss: LossStatus, now: datetime) -> tuple[str, ...]:
    return (
        loss.resource_id,
        loss.group_name,
        "kept" if loss.state is State.KEPT else "given up",
        duration(now - loss.lost_at),
        str(loss.attempts),
        shorten(loss.death or "", _LONGEST_ERROR),
        shorten(loss.last_error or "", _LONGEST_ERROR),
    )


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table whose columns break lines where the terminal ends."""
    name = Text(in_one_line(title), no_wrap=True, overflow="ellipsis")  # no line of it is whole
    table = Table(title=name if title else None, title_justify="left")
    table.box, table.show_header, table.show_edge = box.SIMPLE_HEAD, any(columns), False
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(_text, row))
    return table


def _text(text: str) -> Text:
    return Text(in_one_line(text))
