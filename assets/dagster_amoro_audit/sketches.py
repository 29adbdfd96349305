"""What does one look at first? Small charts that stand on a page itself, as text.

Dagster shows Markdown of fewer than 1,000 characters without a click, and stores it with every
refresh. A sketch is no longer than that: where there is too much to show, the newest is shown. Like
the charts, it brings a card of its own, light in either theme, and has their colours.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar
from urllib.parse import quote
from xml.sax.saxutils import escape

import pandas as pd

from dagster_amoro.core.formatting import duration
from dagster_amoro_audit.charts import CARD, COLOURS, FIRST, ITSELF, LATER, TEXT, by_kind, printable

NOTHING: Final = "*nothing to show yet*"
QUIET: Final = "*no incident*"
_SHORTEST_HIDDEN: Final = 1_000  # characters of Markdown that hide behind a click
_UNQUOTED: Final = "/:=',;-.*+!~@"  # what acts neither in Markdown nor in an address
_DAY: Final = timedelta(days=1)
_SHORTEST: Final = timedelta(minutes=5)  # of an axis of time
_RIGHT: Final = 596  # px; all charts are as wide
_NAMES: Final = 96  # px that names of resources take
_LONGEST_NAME: Final = 14  # characters
_ROW: Final = 16  # px
_PLOT: Final = 56  # px that the highest value takes
_BASE: Final = 74  # px from the top to the value 0
_LETTER: Final = 6.6  # px
_THICK: Final = 13  # px, of an incident's bar
_BAR: Final = 20  # px, the width of a day's bar
_SHORT: Final = {ITSELF: "by itself", FIRST: "1 attempt", LATER: "2+ attempts"}
_ROWS_AND_BARS: Final = ((6, 40), (6, 24), (5, 18), (4, 12), (3, 8), (2, 5), (1, 3))
_POINTS: Final = (64, 48, 32, 16, 8)
_DAYS: Final = range(14, 0, -1)
T = TypeVar("T")


def timeline(incidents: pd.DataFrame, now: datetime) -> str:
    """When each resource was orphaned within the last day, and how that ended; as Markdown."""
    since = pd.Timestamp(now - _DAY)
    mine = incidents[incidents["closed"].isna() | (incidents["closed"] > since)]
    if mine.empty:
        return QUIET
    newest = mine.sort_values("detected")
    since = _begin(newest["detected"], now)
    return _longest(lambda most: _timeline(newest, since, now, *most), _ROWS_AND_BARS)


def capacity(events: pd.DataFrame, now: datetime) -> str:
    """The live threads of a group within the last day, below those that it should have had."""
    seen = events.dropna(subset=["wanted", "live"]).sort_values("event")
    if seen.empty:
        return NOTHING
    before = (seen["at"] <= pd.Timestamp(now - _DAY)).sum()
    seen = seen.iloc[max(before - 1, 0) :]
    since = _begin(seen["at"], now)
    return _longest(lambda most: _capacity(seen, since, now, most), _POINTS)


def outcomes(incidents: pd.DataFrame, now: datetime) -> str:
    """How the incidents of the last two weeks ended, by the UTC day of their detection."""
    last = pd.Timestamp(now).tz_convert("UTC").floor("D")
    recent = incidents[incidents["detected"] > last - timedelta(days=_DAYS[0])]
    if recent.empty:
        return QUIET
    return _longest(lambda days: _outcomes(recent, last, days), _DAYS)


def _begin(times: "pd.Series[pd.Timestamp]", now: datetime) -> pd.Timestamp:
    """Where the axis of the last day begins: later where there is nothing before."""
    latest = pd.Timestamp(now - _SHORTEST)
    return max(pd.Timestamp(now - _DAY), min(times.min(), latest))


def _longest(draw: Callable[[T], str], sizes: Iterable[T]) -> str:
    """The first of these drawings that is short enough."""
    drawn = (draw(size) for size in sizes)
    return next((text for text in drawn if len(text) < _SHORTEST_HIDDEN), "*too much for a sketch*")


def _timeline(
    newest: pd.DataFrame, since: pd.Timestamp, now: datetime, rows: int, bars: int
) -> str:
    shown = newest.tail(bars)
    names = list(dict.fromkeys(shown["resource"][::-1]))[:rows]
    shown = shown[shown["resource"].isin(names)]
    end = pd.Timestamp(now)
    scale = (_RIGHT - _NAMES) / (end - since).total_seconds()
    left = _seconds(shown["detected"], since) * scale
    width = _seconds(shown["closed"].fillna(end), since) * scale - left
    middle = shown["resource"].map({name: n * _ROW + 9 for n, name in enumerate(names)})
    bar = [
        f"M{_NAMES + round(x)},{y}h{max(round(w), 2)}"
        for x, y, w in zip(left, middle, width, strict=True)
    ]
    paths = {
        kind: "".join(b for b, is_its in zip(bar, its, strict=True) if is_its)
        for kind, its in by_kind(shown).items()
    }
    texts = [_text(0, n * _ROW + 13, _cut(name)) for n, name in enumerate(names)]
    bottom = len(names) * _ROW
    strokes = _strokes(paths, _THICK, f"{duration(end - since)}:", bottom + 16)
    return _drawn(bottom + 22, strokes, *texts)


def _seconds(times: "pd.Series[pd.Timestamp]", since: pd.Timestamp) -> "pd.Series[float]":
    """How long after a moment; what was before it counts as at it."""
    return (times - since).dt.total_seconds().clip(lower=0)


def _capacity(seen: pd.DataFrame, since: pd.Timestamp, now: datetime, points: int) -> str:
    span = pd.Timestamp(now) - since
    share = _seconds(seen["at"], since) / span.total_seconds()
    # Of many observations the lowest in each stretch of time.
    lowest = seen.groupby((share * points).astype("int64"))["live"].idxmin()
    chosen = seen.loc[[*lowest, seen.index[-1]]]
    at = [round(float(x) * _RIGHT) for x in share.loc[chosen.index]]
    top = max(int(seen["wanted"].max()), int(seen["live"].max()), 1)
    areas = [
        f"<path d='{_steps(at, chosen[name].tolist(), top)}' fill='{COLOURS[kind]}'/>"
        for name, kind in (("wanted", "given up"), ("live", FIRST))
    ]
    live, wanted = seen["live"].iloc[-1], seen["wanted"].iloc[-1]
    said = f"{duration(span)}, now {live} of {wanted} threads live, red: missing"
    return _drawn(_BASE + 4, *areas, _text(0, 12, said))


def _steps(at: Sequence[int], values: Sequence[int], top: int) -> str:
    """The outline of an area below values, each of which holds until the next one."""
    heights = [_BASE - round(value * _PLOT / top) for value in values]
    path, last = f"M{at[0]},{_BASE}", None
    for x, y in zip(at, heights, strict=True):
        path += f"H{x}V{y}" if y != last else ""
        last = y
    return f"{path}H{_RIGHT}V{_BASE}z"


def _outcomes(recent: pd.DataFrame, last: pd.Timestamp, days: int) -> str:
    index = pd.date_range(end=last, periods=days, freq="D")
    detected = recent["detected"].dt.floor("D")
    counts = {
        kind: detected[its].value_counts().reindex(index, fill_value=0).to_numpy()
        for kind, its in by_kind(recent).items()
    }
    top = max(int(sum(counts.values()).max()), 1)
    step, below, paths = _RIGHT // days, [0] * days, {}
    for kind, numbers in counts.items():
        path = ""
        for n, number in enumerate(numbers):
            if number:
                height = max(round(number * _PLOT / top), 1)
                path += f"M{n * step + step // 2},{_BASE - below[n]}v-{height}"
                below[n] += height
        paths[kind] = path
    said = f"{days} days, at most {top}:"
    return _drawn(_BASE + 26, _strokes(paths, _BAR, said, _BASE + 18))


def _strokes(paths: Mapping[str, str], width: int, said: str, y: int) -> str:
    """Thick lines, a colour for each kind; and a line of text that names each on its colour."""
    lines = ""
    for kind, path in paths.items():
        label = _SHORT.get(kind, kind.removeprefix("still "))
        chip = f"M{round((len(said) + 1) * _LETTER) - 2},{y - 4}h{round(len(label) * _LETTER) + 4}"
        lines += f"<path d='{path}{chip}' stroke='{COLOURS[kind]}'/>"
        said += f" {label}"
    return f"<g stroke-width='{width}'>{lines}</g>{_text(0, y, said)}"


def _text(x: int, y: int, text: str) -> str:
    place = f" x='{x}'" if x else ""
    return f"<text{place} y='{y}'>{escape(text)}</text>"


def _cut(name: str) -> str:
    shown = printable(name)
    return shown if len(shown) <= _LONGEST_NAME else f"{shown[: _LONGEST_NAME - 1]}…"


def _drawn(height: int, *parts: str) -> str:
    style = f"font:11px monospace;background:{CARD}"
    size = f"width='{_RIGHT + 4}' height='{height}'"
    svg = f"<svg xmlns='http://www.w3.org/2000/svg' {size} style='{style}' fill='{TEXT}'>"
    return f"![](data:image/svg+xml,{quote(svg + ''.join(parts) + '</svg>', safe=_UNQUOTED)})"
