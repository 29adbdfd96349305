"""What would people rather look at than read? The audit's charts, as images.

They are looked at on white or, in a dark theme, on almost black. No colour of text has enough
contrast on both, so a chart brings a card of its own, light in either theme.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any, Final

import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator, NullLocator
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
_ADVISED: Final = {  # of each column of the advice: what it is called, and whose colour it has
    "by_itself": ("back by themselves", ITSELF),
    "restarted": ("back after a restart", FIRST),
    "unneeded_restarts": ("restarted in vain", LATER),
    "given_up": ("given up", "given up"),
    "otherwise": ("ended otherwise", "superseded"),
    "open": ("still open", "still open"),
    "unknown": ("not known", "released"),
}
_WIDTH: Final = 9.6  # inches, of 100 pixels
_DPI: Final = 100
_COLOURS: Final = 64  # of an image
_LONGEST_NAME: Final = 30  # characters of a resource id at an axis
_MOST_ROWS: Final = 25  # resources of a timeline
_MOST_BARS: Final = 600  # newest incidents of a timeline; more than that cannot be told apart
_THINNEST: Final = 0.004  # share of the axis that an incident takes at least
_DAYS: Final = 30  # of the outcomes
_STEPS: Final = (10, 30, 60, 120, 300, 600, 1800, 3600, 21_600, 86_400, 604_800, 2_592_000)  # s
_MARKS: Final = ("1 s", "10 s", "1 min", "10 min", "1 h", "10 h", "1 d", "10 d", "100 d")
_TIMES: Final = (1, 10, 60, 600, 3600, 36_000, 86_400, 864_000, 8_640_000)  # the same in s
_SECONDS: Final = dict(zip(_TIMES, _MARKS, strict=True))
_OFFSETS: Final = ("", "%Y", "%Y-%b", "%Y-%b-%d", "%Y-%b-%d", "%Y-%b-%d %H:%M")
_MINUTE: Final = 1 / 1440  # of a day
_FONT: Final = FontProperties(family="DejaVu Sans")


def timeline(incidents: pd.DataFrame, events: pd.DataFrame, now: datetime) -> bytes | None:
    """When each resource was orphaned, how that ended, and when it was attempted to restart it.

    Of the resources with the newest incidents; the bars of open incidents end `now`, in aware UTC.
    """
    if incidents.empty:
        return None
    newest = incidents.sort_values("detected").tail(_MOST_BARS)
    order = newest.groupby("resource")["detected"].max().sort_values().index[-_MOST_ROWS:]
    shown = newest[newest["resource"].isin(order)]
    rows = {resource: number for number, resource in enumerate(order)}
    figure, axes = _card(0.9 + 0.27 * max(len(rows), 2))
    left = _numbers(shown["detected"])
    right = _numbers(shown["closed"].fillna(pd.Timestamp(now)))
    thinnest = max(float(right.max() - left.min()), _MINUTE) * _THINNEST
    width = np.maximum(right - left, thinnest)  # never so short that it cannot be seen
    heights = shown["resource"].map(rows).to_numpy()
    for kind, its in by_kind(shown).items():
        axes.barh(heights[its], width[its], left=left[its], height=0.62, **_fill(kind))
    _mark_attempts(axes, events[events["incident"].isin(shown["incident"])], rows)
    hidden = incidents["resource"].nunique() - len(rows)
    axes.set_xlabel(f"and {hidden:,} more resources" if hidden else "", loc="left")
    axes.set_yticks(range(len(rows)), [printable(name) for name in rows])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)  # a `$` in a name is a `$`
        label.set_color(TEXT)
    axes.set_ylim(-0.6, max(len(rows), 2) - 0.4)
    axes.grid(visible=False, axis="y")
    _time_axis(axes)
    return _png(figure)


def capacity(events: pd.DataFrame, now: datetime) -> bytes | None:
    """The live threads of a group against those that are wanted, as ticks saw them."""
    seen = events.dropna(subset=["wanted", "live"]).sort_values("event")
    if seen.empty:
        return None
    seen = _thinned(seen)
    seen = pd.concat([seen, seen.tail(1).assign(at=pd.Timestamp(now))])
    at = _numbers(seen["at"])
    wanted, live = (seen[name].to_numpy(dtype=float) for name in ("wanted", "live"))
    figure, axes = _card(2.9)
    axes.step(at, wanted, "--", where="post", color=QUIET_TEXT, linewidth=1.6, label="wanted")
    axes.step(at, live, where="post", color=COLOURS[FIRST], linewidth=2, label="live")
    missing: dict[str, Any] = {"color": COLOURS["given up"], "alpha": 0.25, "linewidth": 0}
    axes.fill_between(at, np.minimum(live, wanted), wanted, step="post", label="missing", **missing)
    axes.set_ylim(0, max(wanted.max(), live.max(), 1) * 1.12)
    axes.set_ylabel("threads")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _time_axis(axes)
    return _png(figure)


def recovery_times(incidents: pd.DataFrame, grace: timedelta) -> bytes | None:
    """How long recovery took, by how it came about, against the grace period."""
    back = incidents.dropna(subset=["time_to_recover"])
    if back.empty:
        return None
    seconds = back["time_to_recover"].dt.total_seconds().clip(lower=1).to_numpy(dtype=float)
    patience = grace.total_seconds()
    shortest = max(min(seconds.min(), patience or 1) / 3, 1)
    longest = max(seconds.max(), patience, 100) * 1.5
    low = max(each for each in _SECONDS if each <= shortest)
    high = min((each for each in _SECONDS if each >= longest), default=longest)
    kinds = by_kind(back)
    figure, axes = _card(2.9)
    axes.hist(
        [seconds[its] for its in kinds.values()],
        bins=np.geomspace(low, high, 41).tolist(),
        stacked=True,
        color=[COLOURS[kind] for kind in kinds],
    )
    for bars, kind in zip(axes.containers, kinds, strict=True):
        bars.set_label(kind)
    axes.set_xscale("log")
    axes.set_xlim(low / 1.15, high * 1.15)  # room for the labels at the ends
    ticks = [s for s in _SECONDS if low <= s <= high]
    axes.set_xticks(ticks, [_SECONDS[s] for s in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("time to recover")
    _count_axis(axes, "incidents")
    if grace:
        label = f"grace period, {duration(grace)}"
        axes.axvline(max(patience, 1), color=TEXT, linestyle="--", linewidth=1.2, label=label)
    return _png(figure)


def outcomes_per_day(incidents: pd.DataFrame, now: datetime) -> bytes | None:
    """How the incidents of the last days ended, by the UTC day of their detection."""
    last = pd.Timestamp(now).tz_convert("UTC").floor("D")
    index = pd.date_range(end=last, periods=_DAYS, freq="D")
    recent = incidents[incidents["detected"] >= index[0]]
    if recent.empty:
        return None
    detected = recent["detected"].dt.floor("D")
    figure, axes = _card(2.9)
    bottom = np.zeros(_DAYS)
    for kind, its in by_kind(recent).items():
        counts = detected[its].value_counts().reindex(index, fill_value=0).to_numpy()
        axes.bar(range(_DAYS), counts, bottom=bottom, width=0.8, **_fill(kind))
        bottom += counts
    ticks = range(4, _DAYS, 5)  # more labels would run into each other
    axes.set_xticks(ticks, [f"{index[tick]:%d %b}" for tick in ticks])
    axes.set_xlim(-0.6, _DAYS - 0.4)
    axes.set_xlabel("day of the detection, UTC")
    _count_axis(axes, "incidents")
    return _png(figure)


def advice_chart(advice: pd.DataFrame) -> bytes | None:
    """What other grace periods would have done: rows of `what_if.advice` for one group or all.

    Bars are orphans, by what would have come of them; the line is the median time in s that those
    which were restarted would have waited for their first attempt.
    """
    if advice.empty or not advice["orphans"].max():
        return None
    rows = advice.sort_values("grace_seconds")
    figure, axes = _card(3.2)
    bottom = np.zeros(len(rows))
    for column, (label, kind) in _ADVISED.items():
        values = rows[column].to_numpy(dtype=float)
        bars: dict[str, Any] = {"width": 0.66, "color": COLOURS[kind], "label": label}
        axes.bar(range(len(rows)), values, bottom=bottom, **bars)
        bottom += values
    labels = [
        duration(timedelta(seconds=float(grace))) + ("\nin force" if in_force else "")
        for grace, in_force in zip(rows["grace_seconds"], rows["in_force"], strict=True)
    ]
    axes.set_xticks(range(len(rows)), labels)
    axes.set_xlabel("grace period")
    axes.set_xlim(-1, max(len(rows), 2))
    _count_axis(axes, "orphans")
    _waits(axes, rows["median_wait"])
    return _png(figure)


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
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(QUIET_TEXT)


def _png(figure: Figure) -> bytes:
    """The image, with its legend above the data, where it hides nothing.

    It has few colours: a third as large, and every refresh writes it anew.
    """
    shown = [h for axes in figure.axes for h in (*axes.containers, *axes.lines, *axes.collections)]
    figure.axes[0].legend(
        handles=shown,
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
    drawn, stored = BytesIO(), BytesIO()
    figure.savefig(drawn, format="png", facecolor=CARD)
    _with_few_colours(Image.open(drawn).convert("RGB")).save(stored, format="png", optimize=True)
    return stored.getvalue()


def _with_few_colours(image: Image.Image) -> Image.Image:
    """The image with those colours that mean something as they are, and others nearly so."""
    meant = [
        int(colour[at : at + 2], 16)
        for colour in (CARD, TEXT, QUIET_TEXT, _GRID, *COLOURS.values())
        for at in (1, 3, 5)
    ]
    others = image.quantize(_COLOURS - len(meant) // 3).getpalette() or []
    palette = np.array([*meant, *others], dtype=np.int32).reshape(-1, 3)
    red, green, blue = np.asarray(image, dtype=np.int32).reshape(-1, 3).T
    seen, places = np.unique(red << 16 | green << 8 | blue, return_inverse=True)
    # For each colour that is seen, the nearest one of the palette.
    parts = np.stack([seen >> 16, seen >> 8 & 255, seen & 255], axis=1)
    nearest = ((parts[:, None, :] - palette) ** 2).sum(axis=2).argmin(axis=1)
    few = Image.fromarray(nearest[places].reshape(image.height, image.width).astype(np.uint8), "P")
    few.putpalette(palette.astype(np.uint8).ravel().tolist())
    return few


def _numbers(times: "pd.Series[Any]") -> np.ndarray[Any, np.dtype[np.float64]]:
    """Times as matplotlib counts them: in days since 1970."""
    return np.asarray(mdates.date2num(times))  # type: ignore[no-untyped-call]


def _thinned(seen: pd.DataFrame) -> pd.DataFrame:
    """Of many observations the lowest in each stretch of time that is a pixel wide."""
    if len(seen) <= _WIDTH * _DPI:
        return seen
    at = seen["at"]
    stretch = (at - at.min()) / max((at.max() - at.min()) / (_WIDTH * _DPI), pd.Timedelta(1, "us"))
    lowest = seen.groupby(stretch.astype("int64"))["live"].idxmin()
    return seen.loc[[*lowest, seen.index[-1]]]


def by_kind(incidents: pd.DataFrame) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    """Which incidents ended how, in the words of the legend and in its order."""
    back = incidents["attempts"].clip(upper=2).map({0: ITSELF, 1: FIRST, 2: LATER})
    ended = incidents["outcome"].fillna("still open").replace("exhausted", "given up")
    kinds = ended.mask(ended == State.RECOVERED, back).to_numpy()
    return {kind: kinds == kind for kind in COLOURS if (kinds == kind).any()}


def _mark_attempts(axes: Axes, events: pd.DataFrame, rows: Mapping[str, int]) -> None:
    tried = events[events["kind"] == EventKind.ATTEMPT]
    failed = events[events["kind"] == EventKind.ATTEMPT_FAILED]
    numbers = ["incident", "attempt"]
    did_fail = tried.set_index(numbers).index.isin(failed.set_index(numbers).index)
    style: dict[str, Any] = {
        "linestyle": "",
        "color": TEXT,
        "markersize": 7,
        "markeredgewidth": 1.3,
    }
    for chosen, marker, label in ((tried[~did_fail], "|", "attempt"), (failed, "x", "it failed")):
        if not chosen.empty:
            heights = chosen["resource"].map(rows).to_numpy()
            axes.plot(_numbers(chosen["at"]), heights, marker=marker, label=label, **style)


def _time_axis(axes: Axes) -> None:
    locator = mdates.AutoDateLocator(tz=UTC, minticks=3, maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    concise = mdates.ConciseDateFormatter(  # type: ignore[no-untyped-call]
        locator, tz=UTC, offset_formats=[f"{each} UTC" for each in _OFFSETS]
    )
    axes.xaxis.set_major_formatter(concise)
    axes.margins(x=0.01)
    low, high = axes.get_xlim()
    if high - low < _MINUTE:  # all of it at one moment: a minute around it
        axes.set_xlim(low - _MINUTE / 2, high + _MINUTE / 2)


def _count_axis(axes: Axes, what: str) -> None:
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(what)


def _waits(axes: Axes, waits: "pd.Series[float]") -> None:
    """The waiting times, on an axis of their own."""
    other = axes.twinx()
    style: dict[str, Any] = {"color": TEXT, "marker": "o", "markersize": 4, "linewidth": 1.2}
    label = "median wait for the first attempt"
    other.plot(range(len(waits)), waits.to_numpy(dtype=float), label=label, **style)
    other.yaxis.set_major_formatter(FuncFormatter(lambda s, _: duration(timedelta(seconds=s))))
    longest = float(waits.max()) if waits.notna().any() else 60.0
    step = next((step for step in _STEPS if longest / step <= 6), longest / 6)  # noqa: PLR2004
    other.yaxis.set_major_locator(MultipleLocator(step))
    other.set_ylim(0, max(longest, step) * 1.05)
    _plain(other)
    other.set_ylabel("median wait")


def _fill(kind: str) -> dict[str, Any]:
    """How the bars of an ending look; what is not over yet is hatched besides."""
    is_open = kind == "still open"
    edge, hatch = (TEXT, "////") if is_open else (COLOURS[kind], None)
    looks = {"facecolor": COLOURS[kind], "edgecolor": edge, "hatch": hatch, "linewidth": 0.5}
    return {"label": kind, **looks}
