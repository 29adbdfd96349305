"""Who looks at no page is told: of losses, failed checks and silence, once each, whoever dies."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from threading import Event

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_amoro.code_location import alert_sensor_of
from dagster_amoro.config import AuditSettings
from dagster_amoro.core.alerts import Alert
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.policy import OnExhausted
from dagster_amoro.stores import schema
from dagster_amoro_audit.alert_sensor import sent
from tests.helpers.attacks import TEXTS, acts
from tests.helpers.fleet import GRACE, Fleet, fleet, with_settings
from tests.helpers.user_cloud import user_cloud

DAY = timedelta(days=1)


@dataclass
class Watcher:
    """Whoever is told, and the sensor that tells it, as the daemon evaluates it."""

    world: Fleet
    told: list[Alert] = field(default_factory=list)
    works: int = 0  # so many sends, before
    fails: int = 0  # so many of them do not
    cursor: str | None = None
    message: str = ""

    def send(self, alert: Alert) -> None:
        """Is told, unless it cannot be reached."""
        self.works -= 1
        if self.fails and self.works < 0:
            self.fails -= 1
            raise ConnectionError("nobody there; token=hunter2")
        self.told.append(alert)

    def looks(self, *, dies: bool = False) -> list[Alert]:
        """One evaluation, and what was told in it; its cursor is lost where the process dies."""
        before, services = len(self.told), self.world.services
        alerting = alert_sensor_of(services, AuditSettings(), self.send, "https://d.example/")
        context = dg.build_sensor_context(instance=self.world.instance, cursor=self.cursor)
        done = alerting.evaluate_tick(context)
        self.message = done.skip_message or ""
        if not dies:
            self.cursor = done.cursor
        return self.told[before:]


@pytest.fixture
def watcher(tmp_path: Path) -> Iterator[Watcher]:
    """A fleet of which nobody was told anything yet."""
    with fleet(tmp_path, max_retries=1) as world:
        world.services = with_settings(world.services, notes_surveys=True)
        yield Watcher(world)


def survey(world: Fleet) -> None:
    """A tick, and the runs that it requests."""
    done = world.services.ticker.tick(lambda _: {}, AmsRestartDetector())
    for run in done.dispatches:
        for each in world.services.restarter.claim(run.run_key, run.run_key):
            world.services.restarter.restart(each.incident_id, run.run_key)


def loses(world: Fleet, *names: str, group: str = "g") -> None:
    """Workers that no start helps, up to their end."""
    for name in names:
        world.worker(name, group)
    world.container.fail_starts("no room; password=hunter2", times=len(names))
    for _ in range(4):
        survey(world)
        world.later(timedelta(minutes=15))  # longer than the claim of a run
    survey(world)


def test_nothing_is_told_of_a_fleet_that_does_well(watcher: Watcher) -> None:
    """Nor is anything kept but when it was looked at."""
    watcher.world.worker()
    watcher.world.register()
    survey(watcher.world)
    assert watcher.looks() == []
    assert watcher.message == "0 alerts sent"
    assert len(watcher.cursor or "") < 200


def test_a_loss_is_told_once(watcher: Watcher) -> None:
    """With why, what was tried, what to do and where; also across days, and with one more."""
    loses(watcher.world, "w-1")
    (told,) = (each for each in watcher.looks() if "given up" in each.title)
    assert told.title == "w-1 of group g: given up, 2 threads fewer than declared"
    assert told.cause == "why its worker died is not known"
    assert told.story.startswith("w-1: 1 attempt until ")
    assert "last error: no room" in told.story
    assert "dagster-amoro restore RESOURCE" in told.next_step
    assert told.link == "https://d.example/assets/orphan_history?view=partitions&partition=g"
    assert told.is_urgent
    assert "hunter2" not in told.text
    for span in (GRACE, timedelta(hours=2), timedelta(hours=12)):
        watcher.world.later(span)
        survey(watcher.world)
        assert [each for each in watcher.looks() if "given up" in each.title] == []
    loses(watcher.world, "w-2")
    (told,) = (each for each in watcher.looks() if "given up" in each.title)
    assert told.title.startswith("w-2 of group g")
    assert len(json.loads(watcher.cursor or "")["losses"]) == 1


def test_what_is_kept_is_a_loss_too(watcher: Watcher) -> None:
    """With another verb."""
    policy = replace(watcher.world.services.policy, on_exhausted=OnExhausted.KEEP)
    watcher.world.services = replace(watcher.world.services, policy=policy)
    loses(watcher.world, "w-1")
    (told,) = (each for each in watcher.looks() if "w-1 of" in each.title)
    assert "out of attempts and kept" in told.title
    assert "dagster-amoro reset RESOURCE" in told.next_step


def test_many_losses_of_a_group_are_one_alert(watcher: Watcher) -> None:
    """Nobody is woken forty times by one outage; the first are named."""
    loses(watcher.world, *(f"w-{number}" for number in range(7)))
    loses(watcher.world, "x-1", group="h")
    first, second = (each for each in watcher.looks() if "given up" in each.title)
    assert first.title == "7 resources of group g: given up, 14 threads fewer than declared"
    assert first.story.count("attempt until") == 5
    assert first.story.endswith("and 2 more")
    assert second.title.startswith("x-1 of group h")


def test_a_check_is_told_when_it_fails_and_when_it_passes_again(watcher: Watcher) -> None:
    """About the same thing; and once more when it fails anew."""
    watcher.world.group("g", min_parallelism="2")
    watcher.world.worker()
    abouts = []
    for _ in range(2):
        survey(watcher.world)
        (failed,) = watcher.looks()
        assert failed.title == "groups_at_min_parallelism failed"
        assert failed.cause == "1 group below min-parallelism: g (0 of 2 threads)"
        assert failed.link == "https://d.example/assets/amoro/resource?view=checks"
        assert watcher.looks() == []
        watcher.world.register(group="g", threads=2)
        survey(watcher.world)
        (passes,) = watcher.looks()
        assert (passes.title, passes.is_over) == ("groups_at_min_parallelism passes again", True)
        assert passes.about == failed.about
        assert watcher.looks() == []
        watcher.world.dies()
        abouts.append(failed.about)
    assert abouts[0] != abouts[1]
    assert len({each.key for each in watcher.told}) == 4


def test_silence_is_told_though_no_store_answers(watcher: Watcher) -> None:
    """Three check intervals after the last survey, or a minute; with why; and its end."""
    world = watcher.world
    world.worker()
    world.register()
    survey(world)
    assert watcher.looks() == []
    world.execute(sa.text("ALTER TABLE optimizer RENAME TO away"))
    world.later(timedelta(seconds=60))
    assert watcher.looks() == []
    world.later(timedelta(seconds=1))
    (silent,) = watcher.looks()
    assert silent.title == "survey_is_fresh failed"
    assert silent.cause.startswith(
        "no survey since 2026-03-29 00:59:30 UTC, for 61 s: the registry"
    )
    assert silent.link == "https://d.example/assets/amoro/fleet_status"
    assert "daemon" in silent.next_step
    assert watcher.looks() == []
    world.execute(sa.text("ALTER TABLE away RENAME TO optimizer"))
    survey(world)
    (over,) = watcher.looks()
    assert (over.title, over.is_over, over.about) == (
        "survey_is_fresh passes again",
        True,
        silent.about,
    )


def test_a_fleet_that_nobody_ever_looked_at_is_silent_too(watcher: Watcher) -> None:
    """Counted from when this sensor began; not where nobody is to look."""
    watcher.world.worker()
    assert watcher.looks() == []
    watcher.world.later(timedelta(minutes=2))
    assert [each.title for each in watcher.looks()] == ["survey_is_fresh failed"]
    policy = replace(watcher.world.services.policy, enabled=False)
    watcher.world.services = replace(watcher.world.services, policy=policy)
    watcher.cursor = None
    assert watcher.looks() == []
    watcher.world.later(timedelta(minutes=2))
    assert watcher.looks() == []


def test_where_surveys_are_not_noted_the_ticks_say_whether_there_is_silence(
    watcher: Watcher, tmp_path: Path
) -> None:
    """Those that Dagster knows of; and not before the first of them can be."""
    watcher.world.services = with_settings(watcher.world.services, notes_surveys=False)
    watcher.world.worker()
    watcher.world.register()
    settings = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path), settings) as instance:
        watcher.world.instance = instance
        survey(watcher.world)
        assert watcher.looks() == []
        watcher.world.later(timedelta(seconds=61))
        (silent,) = watcher.looks()
        assert silent.title == "survey_is_fresh failed"
        assert "orphan_sensor completed no survey in its newest ticks" in silent.cause
        assert watcher.looks() == []


def test_who_dies_in_between_sends_the_same_again(watcher: Watcher) -> None:
    """With the same keys, by which whoever is told knows it."""
    watcher.world.group("h", min_parallelism="2")
    loses(watcher.world, "w-1", "w-2")
    first = watcher.looks(dies=True)
    watcher.world.later(timedelta(seconds=1))
    second = watcher.looks()
    assert [each.key for each in first] == [each.key for each in second]
    assert [each.about for each in first] == [each.about for each in second]
    assert len(first) >= 2
    assert watcher.looks() == []


def test_what_cannot_be_sent_is_tried_again(watcher: Watcher) -> None:
    """That alone, and what comes after it; why is said without its secrets."""
    loses(watcher.world, "w-1")
    loses(watcher.world, "x-1", group="h")
    watcher.works, watcher.fails = 0, 1
    assert watcher.looks() == []
    assert "tried again: ConnectionError: nobody there" in watcher.message
    assert "hunter2" not in watcher.message
    told = watcher.looks()
    assert len(told) >= 2
    assert watcher.looks() == []
    loses(watcher.world, "w-2")
    loses(watcher.world, "x-2", group="h")
    watcher.works, watcher.fails = 1, 1
    (first,) = watcher.looks()
    later = watcher.looks()
    assert first.key not in {each.key for each in later}
    assert {first.title[:3], later[0].title[:3]} == {"w-2", "x-2"}


def test_a_send_that_hangs_ends_with_its_time(watcher: Watcher) -> None:
    """What was sent before it is not sent again, as it would be where Dagster ends the tick."""
    loses(watcher.world, "w-1")
    (told,) = (each for each in watcher.looks() if "given up" in each.title)
    opens = Event()
    assert sent(lambda _: opens.wait(), told, 0.05) == "it took longer than 0.05 s"
    opens.set()
    assert sent(watcher.send, told, 20) is None


def test_nothing_is_asked_of_dagster(watcher: Watcher, tmp_path: Path) -> None:
    """So it works where user code may not ask."""
    loses(watcher.world, "w-1")
    settings = {"telemetry": {"enabled": False}}
    with dg.DagsterInstance.local_temp(str(tmp_path), settings) as instance:
        watcher.world.instance = instance
        with user_cloud(instance) as asked:
            assert watcher.looks()
            assert asked == []


def test_a_cursor_that_makes_no_sense_tells_all_once_more(watcher: Watcher) -> None:
    """It stops nobody from being told."""
    loses(watcher.world, "w-1")
    first = watcher.looks()
    for broken in ("[]", "{", '{"losses": "x"}', '{"checks": {"a": 1}}', '{"since": {}}'):
        watcher.cursor = broken
        assert [each.key for each in watcher.looks()] == [each.key for each in first]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_of_an_attack_are_words_only(watcher: Watcher, text: str) -> None:
    """In names and errors, in every line."""
    world = watcher.world
    world.group(text, min_parallelism="9")
    for name in (f"{text}1", f"{text}2"):
        world.worker(name, text)
    world.container.fail_starts(text, times=2)
    for _ in range(5):
        survey(world)
        world.later(GRACE * 2)
    with world.services.ledger.transaction() as ledger:
        changes = {"cause": text, "death": f"{text} password=hunter2"}
        ledger.connection.execute(sa.update(schema.incident).values(**changes))
    told = watcher.looks()
    assert len(told) >= 2
    for alert in told:
        assert acts(alert.text) == []
        assert "hunter2" not in alert.text
        assert "\n" not in f"{alert.title}{alert.link}{alert.next_step}"
