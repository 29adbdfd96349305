"""How does Prometheus read metrics? As OpenMetrics, or as a file of the node exporter's collector.

Names of groups are written by others: they are made harmless, as everywhere, and two that become
the same are counted together. However many there are, so many series come of them at most.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Final

from dagster_amoro.core.counters import Counters, middle_of
from dagster_amoro.core.errors import ConfigError, KeeperError, describe
from dagster_amoro.core.post_mortem import UNKNOWN, class_of
from dagster_amoro.core.texts import Shown, in_one_line
from dagster_amoro.healing.metrics import Metrics
from dagster_amoro.healing.status import GroupStatus, OrphanStatus

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

MOST_GROUPS: Final = 1_000  # with a label of their own; a series of each costs Prometheus memory
OTHER_GROUPS: Final = "(other groups)"
BOUNDS: Final = (15, 30, 60, 120, 300, 600, 1_800, 3_600, 7_200, 21_600, 86_400)
"""Seconds to recover up to which the histogram counts; a time counts as that of its bucket."""
_NO_GROUP: Final = "(no group)"  # Prometheus would drop the label
_PREFIX: Final = "dagster_amoro"
_NEVER: Final = datetime.max.replace(tzinfo=UTC)
_SUFFIX: Final = ".prom"  # the collector reads no other files
_OF_GROUPS: Final[Mapping[str, tuple[str, Callable[[GroupStatus], float | None]]]] = {
    "resources": ("Resources that were asked for.", lambda group: group.resources),
    "orphans": ("Resources that no optimizer stands for.", lambda group: group.orphans),
    "starting_resources": (
        "Resources without an optimizer that are too young to be orphans.",
        lambda group: group.starting,
    ),
    "lost_resources": (
        "Resources given up, or kept without attempts left, that nobody restored or acknowledged.",
        lambda group: group.given_up + group.kept,
    ),
    "threads_lost": ("Threads of those lost resources.", lambda group: group.lost_threads),
    "threads_wanted": ("Threads that the resources stand for.", lambda group: group.wanted),
    "threads_live": ("Threads of the optimizers that live.", lambda group: group.live),
    "threads_min": (
        "Threads that the group must have at least, where somebody asked for any.",
        lambda group: group.min_parallelism,
    ),
}
Values = Mapping[tuple[str, ...], float]


def render(metrics: Metrics) -> Shown:
    """The metrics as OpenMetrics, without the end of the last line.

    Raises:
        ConfigError: The library is not installed.
    """
    _ensure_library()
    from prometheus_client.openmetrics.exposition import generate_latest  # noqa: PLC0415 - optional

    text: str = generate_latest(_Collector(metrics)).decode()  # type: ignore[no-untyped-call]
    return Shown(text.rstrip("\n"))  # each label of it was made harmless


def write(metrics: Metrics, path: Path) -> None:
    """Puts a whole file in the place of the one before, in the format of the collector.

    Raises:
        ConfigError: The library is not installed.
        KeeperError: The file cannot be written, or the collector would not read it.
    """
    _ensure_library()
    from prometheus_client import write_to_textfile  # noqa: PLC0415 - optional

    if path.suffix != _SUFFIX:
        raise KeeperError(f"the collector reads files that end with {_SUFFIX}, not {path.name!r}")
    try:
        write_to_textfile(str(path), _Collector(metrics))
    except OSError as error:
        raise KeeperError(f"the metrics cannot be written: {describe(error)}") from None


def _ensure_library() -> None:
    try:
        import prometheus_client  # noqa: F401, PLC0415 - optional
    except ImportError as error:
        raise ConfigError(
            f"metrics need Prometheus's client ({error}): pip install dagster-amoro[metrics]"
        ) from None


@dataclass(frozen=True, slots=True)
class _Collector:
    """What the library asks for metrics."""

    metrics: Metrics

    def collect(self) -> "Iterator[Metric]":
        """Each metric with all its series, which say whose they are where the keeper has a name."""
        of = {"keeper": self.metrics.keeper} if self.metrics.keeper else {}
        for metric in self._collected():
            metric.samples = [each._replace(labels=of | each.labels) for each in metric.samples]
            yield metric

    def _collected(self) -> "Iterator[Metric]":
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415

        metrics, label = self.metrics, _labels(self.metrics)
        for name, (text, value_of) in _OF_GROUPS.items():
            values = _of_groups(metrics.status.groups, label, value_of)
            yield _filled(GaugeMetricFamily, name, text, values, "group")
        text = "Incidents without an outcome, by what ended the worker."
        values = _open_incidents(metrics.status.orphans, label)
        yield _filled(GaugeMetricFamily, "open_incidents", text, values, "group", "cause")
        for name, text, seconds in _survey(metrics):
            yield _filled(GaugeMetricFamily, name, text, {(): seconds}, unit="seconds")
        for name, text, numbers in _counts(metrics.counters):
            values = _summed(((of,), numbers[group]) for group, of in label.items())
            yield _filled(CounterMetricFamily, name, text, values, "group")
        for name, text, by_cause in _ends(metrics.counters):
            values = _summed([
                *(((of, UNKNOWN), 0) for of in label.values()),
                *(((label[group], cause), number) for (group, cause), number in by_cause.items()),
            ])  # fmt: skip
            yield _filled(CounterMetricFamily, name, text, values, "group", "cause")
        yield _time_to_recover(metrics.counters, label)


def _filled(
    family: "type[CounterMetricFamily | GaugeMetricFamily]",
    name: str,
    text: str,
    values: Values,
    *labels: str,
    unit: str = "",
) -> "Metric":
    metric = family(f"{_PREFIX}_{name}", text, labels=labels, unit=unit)
    for of, value in sorted(values.items()):
        metric.add_metric(list(of), value)
    return metric


def _of_groups(
    groups: Iterable[GroupStatus],
    label: Mapping[str, str],
    value_of: Callable[[GroupStatus], float | None],
) -> Values:
    numbers = ((label[group.name], value_of(group)) for group in groups)
    return _summed(((name,), value) for name, value in numbers if value is not None)


def _open_incidents(orphans: Iterable[OrphanStatus], label: Mapping[str, str]) -> Values:
    opened = (orphan for orphan in orphans if orphan.incident_id is not None)
    return _summed(((label[each.group_name], class_of(each.cause)), 1) for each in opened)


def _survey(metrics: Metrics) -> Iterator[tuple[str, str, float]]:
    at, age = metrics.surveyed_at, metrics.survey_age
    if at is not None and age is not None:
        text = "When the last survey of the fleet was completed, since 1970."
        yield "last_survey_timestamp_seconds", text, at.timestamp()
        text = "How old the last completed survey was when this was written."
        yield "last_survey_age_seconds", text, age.total_seconds()


def _counts(counters: Counters) -> Iterator[tuple[str, str, Counter[str]]]:
    # Of each group, from 0 on: Prometheus sees no increase where a number begins with 1.
    yield "incidents", "Resources that became orphans.", counters.incidents
    yield "attempts", "Attempts to restart an orphan.", counters.attempts


def _ends(counters: Counters) -> Iterator[tuple[str, str, Counter[tuple[str, str]]]]:
    text = "Incidents that ended with the return of an optimizer, by what ended the worker."
    yield "recoveries", text, counters.recoveries
    text = "Incidents whose resource was given up, by what ended the worker."
    yield "give_ups", text, counters.give_ups


def _time_to_recover(counters: Counters, label: Mapping[str, str]) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415 - optional

    name = f"{_PREFIX}_time_to_recover_seconds"
    text = "From the detection of an orphan to the return of its optimizer, within 1 %."
    metric = HistogramMetricFamily(name, text, labels=["group"], unit="seconds")
    by_group: dict[str, Counter[float]] = {label[group]: Counter() for group in label}
    for (group, bucket), number in counters.took.items():
        by_group[label[group]][middle_of(bucket)] += number
    for group, took in sorted(by_group.items()):
        total = sum(seconds * number for seconds, number in sorted(took.items()))
        metric.add_metric([group], buckets=list(_up_to_bounds(took)), sum_value=total)
    return metric


def _up_to_bounds(took: Mapping[float, int]) -> Iterator[tuple[str, float]]:
    """How many took no longer than each bound, and how many there are."""
    numbers = [0] * (len(BOUNDS) + 1)
    for seconds, number in took.items():
        numbers[bisect_left(BOUNDS, seconds)] += number
    names = [*(f"{float(bound)}" for bound in BOUNDS), "+Inf"]
    yield from zip(names, accumulate(numbers), strict=True)


def _summed(values: Iterable[tuple[tuple[str, ...], float]]) -> Values:
    sums: Counter[tuple[str, ...]] = Counter()
    for of, value in values:
        sums[of] += value  # type: ignore[assignment]
    return sums


def _labels(metrics: Metrics) -> Mapping[str, str]:
    """How each group is called; those that were known last share a name, where they are many.

    A group with a past keeps its name for good: what counts for it never counts for another.
    """
    since = metrics.counters.since
    names = {group.name for group in metrics.status.groups} | since.keys()
    names |= {orphan.group_name for orphan in metrics.status.orphans}
    order = sorted(names, key=lambda name: (since.get(name, _NEVER), name))
    label = {name: in_one_line(name) or _NO_GROUP for name in order[:MOST_GROUPS]}
    return label | dict.fromkeys(order[MOST_GROUPS:], OTHER_GROUPS)
