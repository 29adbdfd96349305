"""What Prometheus reads: each number equals an independent count, and what counts never falls."""

import random
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client.core import Metric
from prometheus_client.openmetrics import parser
from prometheus_client.parser import text_string_to_metric_families as parse_file

from dagster_amoro.cli import REFUSED, main
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.counters import bucket_of, middle_of
from dagster_amoro.core.errors import KeeperError
from dagster_amoro.core.model import State
from dagster_amoro.core.post_mortem import class_of
from dagster_amoro.core.texts import in_one_line
from dagster_amoro.healing import openmetrics
from dagster_amoro.healing.metrics import Metrics
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import Database, has_tables
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import optimizer, resource
from dagster_amoro_audit.settling import settle
from tests.helpers.attacks import TEXTS, acts
from tests.helpers.commands import command_runner
from tests.helpers.fleet import GRACE, Fleet, fleet, with_settings
from tests.helpers.histories import fill
from tests.integration.test_status_agrees import begins, happens, runs

pytestmark = pytest.mark.long

Numbers = Mapping[tuple[str, frozenset[tuple[str, str]]], float]
COUNTERS = ("incidents", "attempts")
ENDS = {"recoveries": State.RECOVERED, "give_ups": State.EXHAUSTED}
CONFIG = """
ams:
  database: {type: sqlite, url: "sqlite:///registry.db"}
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with nothing in it."""
    with fleet(tmp_path) as made:
        made.services = with_settings(made.services, notes_surveys=True)
        yield made


def parse(text: str) -> Iterable[Metric]:
    """A text as a reader of OpenMetrics understands it."""
    found: Iterable[Metric] = parser.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    return found


def flat(families: Iterable[Metric]) -> Numbers:
    """Every sample by its name, without ours before it, and its labels; none is there twice."""
    samples = [each for family in families for each in family.samples]
    found = {
        (each.name.removeprefix("dagster_amoro_"), frozenset(each.labels.items())): each.value
        for each in samples
    }
    assert len(found) == len(samples)
    return found


def numbers_of(metrics: Metrics) -> Numbers:
    """What a reader of OpenMetrics understands."""
    return flat(parse(openmetrics.render(metrics) + "\n"))


def of(name: str, numbers: Numbers, *labels: str) -> dict[Any, float]:
    """The samples of a metric, by the values of these labels; by that of one where there is one."""
    found = {key: value for (each, key), value in numbers.items() if each == name}
    named = {tuple(dict(key)[label] for label in labels): value for key, value in found.items()}
    return {key[0] if len(labels) == 1 else key: value for key, value in named.items()}


def rows_of(ledger: Ledger) -> list[Any]:
    """All incidents that are no dry run's, whole."""
    query = sa.select(schema.incident).where(schema.incident.c.dry_run == 0)
    with ledger.reading() as connection:
        return list(connection.execute(query))


def counted(rows: list[Any]) -> dict[str, Counter[str]]:
    """The counters by group, one incident after the other."""
    found: dict[str, Counter[str]] = {name: Counter() for name in COUNTERS}
    for row in rows:
        group = row.group_name or "(no group)"
        found["incidents"][group] += 1
        found["attempts"][group] += row.attempts
    return found


def count_agrees(numbers: Numbers, rows: list[Any]) -> None:
    """Counters and the histogram are what all incidents say."""
    for name, by_group in counted(rows).items():
        assert Counter(of(f"{name}_total", numbers, "group")) == by_group, name
    for name, state in ENDS.items():
        ends = Counter(
            (row.group_name or "(no group)", class_of(row.cause))
            for row in rows
            if row.state is state
        )
        assert Counter(of(f"{name}_total", numbers, "group", "cause")) == ends, name
    took: dict[str, list[float]] = {}
    for row in rows:
        lasted = took.setdefault(row.group_name or "(no group)", [])
        if row.state is State.RECOVERED:
            lasted.append(max((row.closed_at - row.detected_at).total_seconds(), 0))
    buckets = of("time_to_recover_seconds_bucket", numbers, "group", "le")
    for group, seconds in took.items():
        told = [buckets[group, f"{float(bound)}"] for bound in openmetrics.BOUNDS]
        rounded = sorted(middle_of(bucket_of(each)) for each in seconds)
        up_to = [sum(each <= bound for each in rounded) for bound in openmetrics.BOUNDS]
        assert told == up_to
        exact = [sum(each <= bound for each in seconds) for bound in openmetrics.BOUNDS]
        near = [
            sum(abs(each - bound) <= 0.01 * bound + 0.01 for each in seconds)
            for bound in openmetrics.BOUNDS
        ]
        off = zip(exact, up_to, near, strict=True)
        assert all(abs(one - other) <= some for one, other, some in off)
        assert buckets[group, "+Inf"] == len(seconds)
    for group, total in of("time_to_recover_seconds_sum", numbers, "group").items():
        assert total == pytest.approx(sum(took[group]), rel=0.011, abs=0.01 * len(took[group]))


def nothing_falls(before: Numbers, after: Numbers) -> None:
    """Each counter, and each bucket, is there again and not less."""
    counts = ("_total", "_bucket", "_count", "_sum")
    for key, value in before.items():
        if key[0].endswith(counts):
            assert after[key] >= value, key


@pytest.mark.parametrize("seed", range(3))
def test_counters_say_what_all_incidents_say(
    tmp_path: Path, database_url: sa.URL, open_database: Callable[..., Database], seed: int
) -> None:
    """Of a random history, whatever of it is settled by now; to settle it changes nothing."""
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    ledger = Ledger(open_database(database_url, "ledger"))
    now = fill(ledger, chance, 300, 12)
    rows, known = rows_of(ledger), []
    with fleet(tmp_path) as world:
        world.services = replace(world.services, ledger=ledger)
        for ago in (20, 9, 8, 1, 0):
            settle(ledger, now - timedelta(days=ago), lambda _: None)
            known.append(numbers_of(world.services.metrics.read()))
            count_agrees(known[-1], rows)
    counts = [
        {key: value for key, value in each.items() if key[0].endswith(("_total", "_bucket"))}
        for each in known
    ]
    assert all(each == counts[0] for each in counts)


@pytest.mark.parametrize("seed", range(3))
def test_each_number_equals_an_independent_count(tmp_path: Path, seed: int) -> None:
    """While workers come and go, operators ask for something and days pass; no counter falls."""
    chance = random.Random(seed)  # noqa: S311 - a story, told again by its seed
    before: Numbers = {}
    with fleet(tmp_path) as world:
        world.services = with_settings(world.services, notes_surveys=True)
        begins(world, chance)
        for _ in range(8):
            done = world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
            surveyed_at = world.now
            runs(world, done, chance)
            happens(world, chance)
            if chance.random() < 0.5:
                world.later(timedelta(hours=9))
                settle(world.services.ledger, world.now, lambda _: None)
            numbers = numbers_of(world.services.metrics.read())
            of_now_agrees(world, numbers)
            count_agrees(numbers, rows_of(world.services.ledger))
            assert of("last_survey_timestamp_seconds", numbers) == {(): surveyed_at.timestamp()}
            age = (world.now - surveyed_at).total_seconds()
            assert of("last_survey_age_seconds", numbers) == {(): age}
            nothing_falls(before, numbers)
            before = numbers
        for name in ENDS:
            assert sum(of(f"{name}_total", before, "group", "cause").values()) > 0


def of_now_agrees(world: Fleet, numbers: Numbers) -> None:
    """What there is now is what the tables say."""
    alive = sa.select(optimizer.c.resource_id).where(optimizer.c.resource_id.is_not(None))
    dead = resource.c.resource_id.not_in(alive)
    group = resource.c.group_name

    def by_group(query: "sa.Select[Any]") -> Counter[str]:
        with world.services.registry.database.reading() as connection:
            return Counter(dict(map(tuple, connection.execute(query))))

    assert of("resources", numbers, "group") == by_group(
        sa.select(group, sa.func.count()).group_by(group)
    )
    orphans = by_group(sa.select(group, sa.func.count()).where(dead).group_by(group))
    starting = Counter(of("starting_resources", numbers, "group"))
    assert Counter(of("orphans", numbers, "group")) + starting == orphans
    wanted = by_group(sa.select(group, sa.func.sum(resource.c.thread_count)).group_by(group))
    assert of("threads_wanted", numbers, "group") == wanted
    lives = optimizer.c.group_name
    ours = lives.in_(sa.select(group))  # an optimizer can name a group that there is not
    threads = sa.func.sum(optimizer.c.thread_count)
    live = by_group(sa.select(lives, threads).where(ours).group_by(lives))
    assert Counter(of("threads_live", numbers, "group")) == live
    assert of("threads_min", numbers, "group") == {"sized": 6}
    lost = Counter(row.group_name for row in lost_of(world))
    assert Counter(of("lost_resources", numbers, "group")) == lost
    threads_of_lost: Counter[str] = Counter()
    for row in lost_of(world):
        threads_of_lost[row.group_name] += row.thread_count
    assert Counter(of("threads_lost", numbers, "group")) == threads_of_lost
    opened = Counter(
        (row.group_name, class_of(row.cause))
        for row in rows_of(world.services.ledger)
        if row.closed_at is None
    )
    assert of("open_incidents", numbers, "group", "cause") == opened


def lost_of(world: Fleet) -> list[Any]:
    """The incidents with which a resource was lost within a day, and is lost still."""
    since, there = world.now - timedelta(days=1), {row[0] for row in world.resources()}
    kept_at = {}
    with world.services.ledger.reading() as connection:
        for row in connection.execute(sa.select(schema.event)):
            if row.kind == "kept":
                kept_at[row.incident_id] = row.at
    return [
        row
        for row in rows_of(world.services.ledger)
        if (row.state is State.EXHAUSTED and row.closed_at > since and row.resource_id not in there)
        or (row.state is State.KEPT and kept_at[row.incident_id] > since)
    ]


def test_a_dry_run_counts_nothing(world: Fleet) -> None:
    """What it did not do was not done."""
    services = world.services.in_dry_run()
    world.worker()
    services.ticker.tick(lambda _: {}, AmsRestartDetector())
    numbers = numbers_of(services.metrics.read())
    assert of("incidents_total", numbers, "group") == {"g": 0}
    assert of("last_survey_age_seconds", numbers) == {(): 0}


def test_before_the_first_tick_nothing_is_there_or_made(world: Fleet) -> None:
    """No metric that nobody knows; no table comes to be."""
    assert openmetrics.render(world.services.metrics.read()).endswith("# EOF")
    world.worker()
    numbers = numbers_of(world.services.metrics.read())
    assert of("orphans", numbers, "group") == {"g": 1}
    assert of("incidents_total", numbers, "group") == {"g": 0}
    assert not any("survey" in name for name, _ in numbers)
    assert not has_tables(world.services.ledger.database, schema.ledger)


def test_where_surveys_are_not_noted_none_has_an_age(world: Fleet) -> None:
    """Also where they were once: nobody knows how old the last one is."""
    world.worker()
    world.register()
    world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
    world.services = with_settings(world.services, notes_surveys=False)
    world.later().services.ticker.tick(lambda _: {}, AmsRestartDetector())
    assert world.services.ledger.surveyed_at() == world.now - GRACE
    numbers = numbers_of(world.services.metrics.read())
    assert not any("survey" in name for name, _ in numbers)


def test_an_abstaining_tick_is_no_survey(world: Fleet) -> None:
    """What cannot be concluded from was not surveyed, and its age says so."""
    tick = world.services.ticker.tick
    tick(lambda _: {}, AmsRestartDetector())
    world.later()
    dropped = sa.text("ALTER TABLE resource RENAME TO away")
    world.execute(dropped)
    with pytest.raises(KeeperError):
        tick(lambda _: {}, AmsRestartDetector())
    world.execute(sa.text("ALTER TABLE away RENAME TO resource"))
    numbers = numbers_of(world.services.metrics.read())
    assert of("last_survey_age_seconds", numbers) == {(): 30}


def test_a_clock_that_was_set_back_makes_no_age_below_zero(world: Fleet) -> None:
    """The survey is of now, then."""
    world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
    world.later(timedelta(hours=-1))
    numbers = numbers_of(world.services.metrics.read())
    assert of("last_survey_age_seconds", numbers) == {(): 0}


def test_causes_of_containers_are_not_labels(world: Fleet) -> None:
    """Of any number of their own words comes one series."""
    for number in range(4):
        world.worker(f"w-{number}")
    world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
    causes = iter(["eaten by 17", "eaten by 18", "exit 3", None])
    with world.services.ledger.transaction() as ledger:
        for row, cause in zip(rows_of(world.services.ledger), causes, strict=True):
            mine = schema.incident.c.incident_id == row.incident_id
            ledger.connection.execute(sa.update(schema.incident).where(mine).values(cause=cause))
    numbers = numbers_of(world.services.metrics.read())
    assert of("open_incidents", numbers, "group", "cause") == {
        ("g", "other"): 2,
        ("g", "exit 3"): 1,
        ("g", "unknown"): 1,
    }


@pytest.mark.parametrize("name", TEXTS.values(), ids=TEXTS)
def test_names_of_an_attack_are_labels_only(world: Fleet, tmp_path: Path, name: str) -> None:
    """In both formats; and two that look the same are counted together."""
    world.worker("w-1", name)
    world.worker("w-2", str(in_one_line(name)))
    world.worker("w-3", "h")
    world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
    metrics, path = world.services.metrics.read(), tmp_path / "amoro.prom"
    openmetrics.write(metrics, path)
    for text in (openmetrics.render(metrics), path.read_text()):
        assert acts(text) == []
    for numbers in (numbers_of(metrics), flat(parse_file(path.read_text()))):
        expected = {in_one_line(name): 2, "h": 1}
        assert of("orphans", numbers, "group") == expected
        assert of("incidents_total", numbers, "group") == expected


def test_groups_beyond_the_most_share_a_name_for_good(
    world: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that came last; a group with a past keeps its name, so that no counter falls."""
    monkeypatch.setattr(openmetrics, "MOST_GROUPS", 2)
    before: Numbers = {}
    for number, group in enumerate(["m", "z", "b", "a"]):
        world.worker(f"w-{number}", group)
        world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
        world.later(timedelta(hours=13))
        settle(world.services.ledger, world.now, lambda _: None)
        numbers = numbers_of(world.services.metrics.read())
        nothing_falls(before, numbers)
        before = numbers
    expected = {"m": 1, "z": 1, openmetrics.OTHER_GROUPS: 2}
    assert of("incidents_total", before, "group") == expected
    assert of("orphans", before, "group") == expected


def test_each_series_of_a_keeper_with_a_name_says_whose_it_is(world: Fleet, tmp_path: Path) -> None:
    """Two that have a group of one name write two files, and none of their series is the same."""
    world.worker()
    world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
    files = []
    for name in ("east", "west"):
        files.append(tmp_path / f"{name}.prom")
        openmetrics.write(replace(world.services, name=name).metrics.read(), files[-1])
    numbers = flat(family for file in files for family in parse_file(file.read_text()))
    assert of("orphans", numbers, "keeper", "group") == {("east", "g"): 1, ("west", "g"): 1}
    assert {dict(labels).get("keeper") for _, labels in numbers} == {"east", "west"}
    bare = numbers_of(world.services.metrics.read())
    assert not any("keeper" in dict(labels) for _, labels in bare)


def test_the_file_is_whole_or_as_it_was(world: Fleet, tmp_path: Path) -> None:
    """Nothing is left beside it, whoever reads it meanwhile; a bad place is told."""
    metrics, path = world.services.metrics.read(), tmp_path / "metrics" / "amoro.prom"
    with pytest.raises(KeeperError, match=r"cannot be written: .*No such file"):
        openmetrics.write(metrics, path)
    path.parent.mkdir()
    path.write_text("old")
    openmetrics.write(metrics, path)
    assert [each.name for each in path.parent.iterdir()] == ["amoro.prom"]
    assert "dagster_amoro_orphans" in path.read_text()
    with pytest.raises(KeeperError, match=r"end with \.prom, not 'amoro.txt'"):
        openmetrics.write(metrics, path.with_suffix(".txt"))


def test_the_command_prints_and_writes(tmp_path: Path) -> None:
    """OpenMetrics to whoever asks, and a file that the collector reads."""
    (tmp_path / "config.yaml").write_text(CONFIG)

    def run(*arguments: str) -> tuple[int, str, str]:
        result = command_runner().invoke(main, ["--conf-dir", str(tmp_path), *arguments])
        return result.exit_code, result.stdout, result.stderr

    code, text, errors = run("metrics")
    assert (code, errors) == (0, "")
    assert text.endswith("\n# EOF\n")
    assert flat(parse(text)) == {}
    path = tmp_path / "amoro.prom"
    assert run("metrics", "--file", str(path)) == (0, "", "")
    assert flat(parse_file(path.read_text())) == {}
    assert run("metrics", "--file", str(tmp_path))[0] == REFUSED


def test_without_the_library_it_is_said_what_to_install(
    world: Fleet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(KeeperError, match=r"pip install dagster-amoro\[metrics\]"):
        openmetrics.render(world.services.metrics.read())
    (tmp_path / "config.yaml").write_text(CONFIG)
    result = command_runner().invoke(main, ["--conf-dir", str(tmp_path), "metrics"])
    assert (result.exit_code, result.stdout) == (REFUSED, "")


def test_bounds_are_those_of_buckets() -> None:
    """A time that is settled counts for the bound that it counted for before."""
    for bound in openmetrics.BOUNDS:
        for seconds in (bound * 0.985, bound * 1.015):
            side = bisect_left(openmetrics.BOUNDS, seconds)
            assert bisect_left(openmetrics.BOUNDS, middle_of(bucket_of(seconds))) == side
    assert bucket_of(-5) == bucket_of(0) == 0
