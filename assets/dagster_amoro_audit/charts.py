"""What would people rather look at than read? The audit's charts, as images for Dagster's UI.

The UI shows an image at its own size, in a dialog some 1,000 pixels wide, on white or, in its dark
theme, on almost black. No colour of text has enough contrast on both, so a chart brings a card of
its own, light in either theme.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, Final

import dagster as dg
import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import (
    FixedLocator,
    Formatter,
    FuncFormatter,
    Locator,
    MaxNLocator,
    MultipleLocator,
    NullLocator,
)
from PIL import Image

from dagster_amoro.core.formatting import duration
from dagster_amoro.core.model import EventKind, State

CARD: Final = "#fbfbfc"
TEXT: Final = "#1d232b"
QUIET_TEXT: Final = "#5b6470"
_GRID: Final = "#e3e6ea"

ITSELF: Final = "back by itself"
FIRST: Final = "back after the first attempt"
LATER: Final = "back after more attempts"
# After Okabe and Ito, whose colours are told apart by the colour-blind too.
COLOURS: Final = {
    ITSELF: "#56b4e9",
    FIRST: "#009e73",
    LATER: "#e69f00",
    "given up": "#d55e00",
    "released": "#9aa2ad",
    "superseded": "#cc79a7",
    "still open": "#f0e442",
}
_ENDINGS: Final = {
    State.EXHAUSTED: "given up",
    State.RELEASED: "released",
    State.SUPERSEDED: "superseded",
}
_WIDTH: Final = 9.6  # inches, of 100 pixels
_DPI: Final = 100
_COLOURS: Final = 64  # of an image
_LONGEST_NAME: Final = 30  # characters of a resource id at an axis
_MOST_BARS: Final = 600  # newest incidents of a timeline; more than that cannot be told apart
_THINNEST: Final = 0.004  # share of the axis that an incident takes at least
_STEPS: Final = (10, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400, 604_800, 2_592_000)  # s
_SECONDS: Final = (1, 10, 60, 600, 3600, 36_000, 86_400, 864_000, 8_640_000)
_Numbers = np.ndarray[Any, np.dtype[np.float64]]
_OFFSETS: Final = ("", "%Y", "%Y-%b", "%Y-%b-%d", "%Y-%b-%d", "%Y-%b-%d %H:%M")
_EPOCH: Final = pd.Timestamp(0, tz="UTC")
_DAY: Final = 86_400
_FONT: Final = FontProperties(family="DejaVu Sans")


def timeline(
    incidents: pd.DataFrame, events: pd.DataFrame, now: datetime, *, most: int = 25
) -> bytes | None:
    """When each resource was orphaned, how that ended, and when it was attempted to restart it.

    Args:
        incidents: As in `orphan_history`.
        events: As in `orphan_history`.
        now: Aware UTC; where the bars of open incidents end.
        most: How many resources are shown, those with the newest incidents.
    """
    if incidents.empty:
        return None
    newest = incidents.sort_values("detected").tail(_MOST_BARS)
    order = newest.groupby("resource")["detected"].max().sort_values().index[-most:]
    shown = newest[newest["resource"].isin(order)]
    rows = {resource: number for number, resource in enumerate(order)}
    figure, axes = _card(0.9 + 0.27 * max(len(rows), 2))
    left, width = _bars(shown, now)
    kinds = _kinds(shown)
    axes.barh(
        shown["resource"].map(rows).to_numpy(),
        width,
        left=left,
        height=0.62,
        color=[COLOURS[kind] for kind in kinds],
        hatch=["////" if kind == "still open" else "" for kind in kinds],
        edgecolor=[TEXT if kind == "still open" else COLOURS[kind] for kind in kinds],
        linewidth=0.5,
    )
    marks = _mark_attempts(axes, events[events["incident"].isin(shown["incident"])], rows)
    hidden = incidents["resource"].nunique() - len(rows)
    _name_rows(axes, order, f"and {hidden:,} more resources" if hidden else "")
    _time_axis(axes)
    _legend(axes, [*_patches(kind for kind in COLOURS if kind in set(kinds)), *marks])
    return _png(figure)


def capacity(events: pd.DataFrame, now: datetime) -> bytes | None:
    """The live threads of a group against those that are wanted, as ticks saw them."""
    seen = events.dropna(subset=["wanted", "live"]).sort_values("event")
    if seen.empty:
        return None
    seen = _thinned(seen)
    at = np.append(_numbers(seen["at"]), (now - _EPOCH).total_seconds() / _DAY)
    wanted, live = (_to_the_end(seen[name]) for name in ("wanted", "live"))
    figure, axes = _card(2.9)
    missing: dict[str, Any] = {"color": COLOURS["given up"], "alpha": 0.25, "linewidth": 0}
    axes.fill_between(at, np.minimum(live, wanted), wanted, step="post", **missing)
    axes.step(at, wanted, where="post", color=QUIET_TEXT, linewidth=1.6, linestyle="--")
    axes.step(at, live, where="post", color=COLOURS[FIRST], linewidth=2)
    axes.set_ylim(0, max(wanted.max(), live.max(), 1) * 1.12)
    axes.set_ylabel("threads", color=QUIET_TEXT)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _time_axis(axes)
    lines = [
        Line2D([], [], color=QUIET_TEXT, linestyle="--", label="wanted"),
        Line2D([], [], color=COLOURS[FIRST], linewidth=2, label="live"),
        Patch(label="missing", **missing),
    ]
    _legend(axes, lines)
    return _png(figure)


def recovery_times(incidents: pd.DataFrame, grace: timedelta) -> bytes | None:
    """How long recovery took, by how it came about, against the grace period."""
    back = incidents.dropna(subset=["time_to_recover"])
    if back.empty:
        return None
    seconds = back["time_to_recover"].dt.total_seconds().clip(lower=1).to_numpy(dtype=float)
    kinds = np.array(_kinds(back))
    used = [kind for kind in (ITSELF, FIRST, LATER) if (kinds == kind).any()]
    lowest = max(min(float(seconds.min()), grace.total_seconds() or 1) / 3, 1)
    highest = max(float(seconds.max()), grace.total_seconds(), 100) * 1.5
    lowest = max((each for each in _SECONDS if each <= lowest), default=1)
    highest = min((each for each in _SECONDS if each >= highest), default=highest)
    bins = np.logspace(np.log10(lowest), np.log10(highest), 41)
    figure, axes = _card(2.9)
    axes.hist(
        [seconds[kinds == kind] for kind in used],
        bins=list(bins),
        stacked=True,
        color=[COLOURS[kind] for kind in used],
    )
    _duration_axis(axes, lowest, highest)
    _count_axis(axes, "incidents")
    handles: list[Any] = _patches(used)
    if grace:
        at = max(grace.total_seconds(), 1)
        axes.axvline(at, color=TEXT, linestyle="--", linewidth=1.2)
        handles.append(
            Line2D([], [], color=TEXT, linestyle="--", label=f"grace period, {duration(grace)}")
        )
    _legend(axes, handles)
    return _png(figure)


def outcomes_per_day(incidents: pd.DataFrame, now: datetime, *, days: int = 30) -> bytes | None:
    """How the incidents of the last days ended, by the UTC day of their detection."""
    last = pd.Timestamp(now).tz_convert("UTC").floor("D")
    index = pd.date_range(end=last, periods=days, freq="D")
    recent = incidents[incidents["detected"] >= index[0]]
    if recent.empty:
        return None
    counts = pd.crosstab(recent["detected"].dt.floor("D"), np.array(_kinds(recent)))
    counts = counts.reindex(index, fill_value=0)
    used = [kind for kind in COLOURS if kind in counts]
    figure, axes = _card(2.9)
    bottom = np.zeros(days)
    for kind in used:
        axes.bar(range(days), counts[kind], bottom=bottom, width=0.8, **_fill(kind))
        bottom += counts[kind].to_numpy()
    step = 1 if days <= 10 else 5  # noqa: PLR2004 - more labels than that run into each other
    ticks = list(range(days - 1, -1, -step))[::-1]
    axes.set_xticks(ticks, [f"{index[tick]:%d %b}" for tick in ticks])
    axes.set_xlim(-0.6, days - 0.4)
    _count_axis(axes, "incidents")
    _legend(axes, _patches(used))
    return _png(figure)


def advice_chart(advice: pd.DataFrame) -> bytes | None:
    """What other grace periods would have done: rows of `what_if.advice` for one group or all.

    Bars are orphans, by what would have come of them; the line is the median time in s that those
    which were restarted would have waited for their first attempt.
    """
    if advice.empty or not advice["orphans"].max():
        return None
    rows = advice.sort_values("grace_seconds").reset_index(drop=True)
    figure, axes = _card(3.2)
    bottom = np.zeros(len(rows))
    bars = {
        "back by themselves": ("by_itself", COLOURS[ITSELF]),
        "back after a restart": ("restarted", COLOURS[FIRST]),
        "restarted in vain": ("unneeded_restarts", COLOURS[LATER]),
        "given up": ("given_up", COLOURS["given up"]),
        "ended otherwise": ("otherwise", COLOURS["superseded"]),
        "not known": ("unknown", COLOURS["released"]),
    }
    for column, colour in bars.values():
        values = rows[column].to_numpy(dtype=float)
        axes.bar(range(len(rows)), values, bottom=bottom, width=0.66, color=colour)
        bottom += values
    labels = [
        duration(timedelta(seconds=float(grace))) + ("\nin force" if in_force else "")
        for grace, in_force in zip(rows["grace_seconds"], rows["in_force"], strict=True)
    ]
    axes.set_xticks(range(len(rows)), labels)
    axes.set_xlabel("grace period", color=QUIET_TEXT)
    axes.set_xlim(-1, max(len(rows), 2))
    _count_axis(axes, "orphans")
    waits = _waits(axes, rows)
    _legend(axes, [*(Patch(color=colour, label=name) for name, (_, colour) in bars.items()), waits])
    return _png(figure)


def markdown(title: str, png: bytes | None) -> dg.MarkdownMetadataValue:
    """A chart as metadata; a sentence, where there is nothing to show."""
    if png is None:
        return dg.MetadataValue.md(f"*{title}: nothing to show yet*")
    return dg.MetadataValue.md(
        f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
    )


def printable(text: str) -> str:
    """A name as a chart can show it: on one line, not too long, with what the font has."""
    line = " ".join(text.split()) or "(no name)"
    font = get_font(findfont(_FONT))
    known = "".join(c if font.get_char_index(ord(c)) else "\u25a1" for c in line)
    return known if len(known) <= _LONGEST_NAME else f"{known[: _LONGEST_NAME - 1]}…"


def _card(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor=CARD, layout="constrained")
    axes = figure.add_subplot(facecolor=CARD)
    _plain(axes)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="both", color=_GRID, linewidth=0.8)
    return figure, axes


def _plain(axes: Axes) -> None:
    """Quiet labels, and no frame."""
    axes.tick_params(colors=QUIET_TEXT, labelsize=9, length=0)
    axes.spines[:].set_visible(False)


def _png(figure: Figure) -> bytes:
    """The image, in few colours: a third as large, and every refresh stores it once more."""
    drawn, stored = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", facecolor=CARD)
    Image.open(drawn).convert("RGB").quantize(_COLOURS).save(stored, format="png", optimize=True)
    return stored.getvalue()


def _numbers(times: "pd.Series[Any]") -> _Numbers:
    """Times as matplotlib counts them: in days since 1970."""
    return (times - _EPOCH).dt.total_seconds().to_numpy(dtype=float) / _DAY


def _thinned(seen: pd.DataFrame) -> pd.DataFrame:
    """Of many observations the lowest in each stretch of time that is a pixel wide."""
    if len(seen) <= _WIDTH * _DPI:
        return seen
    at = seen["at"]
    stretch = (at - at.min()) / max((at.max() - at.min()) / (_WIDTH * _DPI), pd.Timedelta(1, "us"))
    lowest = seen.groupby(stretch.astype("int64"))["live"].idxmin()
    return seen.loc[[*lowest, seen.index[-1]]]


def _to_the_end(threads: "pd.Series[Any]") -> _Numbers:
    """The threads after each event, and at the end."""
    values = threads.to_numpy(dtype=float)
    return np.append(values, values[-1])


def _bars(shown: pd.DataFrame, now: datetime) -> tuple[_Numbers, _Numbers]:
    """Where each bar begins, and how long it is: never so short that it cannot be seen."""
    left = _numbers(shown["detected"])
    right = _numbers(shown["closed"].fillna(pd.Timestamp(now)).astype("datetime64[us, UTC]"))
    span = max(float(right.max() - left.min()), 60 / _DAY)
    return left, np.maximum(right - left, span * _THINNEST)


def _kinds(incidents: pd.DataFrame) -> list[str]:
    """How each incident ended, in the words of the legend."""
    return [
        _kind(outcome, attempts)
        for outcome, attempts in zip(incidents["outcome"], incidents["attempts"], strict=True)
    ]


def _kind(outcome: object, attempts: int) -> str:
    if not isinstance(outcome, str):  # NA
        return "still open"
    if outcome == State.RECOVERED:
        return (ITSELF, FIRST)[attempts] if attempts < 2 else LATER  # noqa: PLR2004 - none or one
    return _ENDINGS[State(outcome)]


def _mark_attempts(axes: Axes, events: pd.DataFrame, rows: Mapping[str, int]) -> list[Line2D]:
    """Marks attempts on the bars; returns their handles for the legend."""
    tried = events[events["kind"] == EventKind.ATTEMPT]
    failed = events[events["kind"] == EventKind.ATTEMPT_FAILED]
    numbers = ["incident", "attempt"]
    did_fail = tried.set_index(numbers).index.isin(failed.set_index(numbers).index)
    handles = []
    for chosen, marker, label in ((tried[~did_fail], "|", "attempt"), (failed, "x", "it failed")):
        if not chosen.empty:
            style: dict[str, Any] = {"marker": marker, "markersize": 7, "color": TEXT}
            heights = chosen["resource"].map(rows).to_numpy()
            axes.plot(_numbers(chosen["at"]), heights, linestyle="", markeredgewidth=1.3, **style)
            handles.append(Line2D([], [], linestyle="", markeredgewidth=1.3, label=label, **style))
    return handles


def _name_rows(axes: Axes, names: Iterable[str], below: str) -> None:
    labels = [printable(name) for name in names]
    axes.set_yticks(range(len(labels)), labels)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a `$` in a name is a `$`
        label.set_color(TEXT)
    axes.set_ylim(-0.6, max(len(labels), 2) - 0.4)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(below, color=QUIET_TEXT, loc="left")


def _time_axis(axes: Axes) -> None:
    locator: Locator = mdates.AutoDateLocator(tz=UTC, minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    concise: Formatter = mdates.ConciseDateFormatter(  # type: ignore[no-untyped-call]
        locator, tz=UTC, offset_formats=[f"{each} UTC" for each in _OFFSETS]
    )
    axes.xaxis.set_major_formatter(concise)
    axes.margins(x=0.01)
    low, high = axes.get_xlim()
    if high - low < 60 / _DAY:  # all of it at one moment: a minute around it
        axes.set_xlim(low - 30 / _DAY, high + 30 / _DAY)


def _duration_axis(axes: Axes, lowest: float, highest: float) -> None:
    axes.set_xscale("log")
    axes.set_xlim(lowest / 1.15, highest * 1.15)  # room for the labels at the ends
    axes.xaxis.set_major_locator(FixedLocator([s for s in _SECONDS if lowest <= s <= highest]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda s, _: _rounded(s)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time to recover", color=QUIET_TEXT)


def _rounded(seconds: float) -> str:
    units = ((_DAY, "d"), (3600, "h"), (60, "min"), (1, "s"))
    size, unit = next(each for each in units if seconds >= each[0] or each[0] == 1)
    return f"{seconds / size:g} {unit}"


def _count_axis(axes: Axes, what: str) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(what, color=QUIET_TEXT)


def _waits(axes: Axes, rows: pd.DataFrame) -> Line2D:
    """The waiting times on an axis of their own; returns their handle for the legend."""
    style: dict[str, Any] = {"color": TEXT, "marker": "o", "markersize": 4, "linewidth": 1.2}
    other = axes.twinx()
    other.plot(range(len(rows)), rows["median_wait"].to_numpy(dtype=float), **style)
    other.yaxis.set_major_formatter(FuncFormatter(lambda s, _: duration(timedelta(seconds=s))))
    longest = float(rows["median_wait"].max()) if rows["median_wait"].notna().any() else 60.0
    step = next((step for step in _STEPS if longest / step <= 6), longest / 6)  # noqa: PLR2004
    other.yaxis.set_major_locator(MultipleLocator(step))
    other.set_ylim(0, max(longest, step) * 1.05)
    _plain(other)
    other.set_ylabel("median wait", color=QUIET_TEXT)
    return Line2D([], [], label="median wait for the first attempt", **style)


def _patches(kinds: Iterable[str]) -> list[Any]:
    return [Patch(label=kind, **_fill(kind)) for kind in kinds]


def _fill(kind: str) -> dict[str, Any]:
    """The colour of an ending; what is not over yet is hatched besides."""
    is_open = kind == "still open"
    edge = TEXT if is_open else COLOURS[kind]
    hatch = "////" if is_open else None
    return {"facecolor": COLOURS[kind], "edgecolor": edge, "hatch": hatch, "linewidth": 0.5}


def _legend(axes: Axes, handles: Sequence[Any]) -> None:
    """Above the data, where nothing is hidden by it."""
    axes.legend(
        handles=list(handles),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=TEXT,
        handlelength=1.4,
        columnspacing=1.4,
        borderaxespad=0.2,
    )
