"""Somebody outside hears of each completed survey, and notices when none comes any more."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from dagster_amoro.config import load_settings
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.check_in import CheckIn
from dagster_amoro.testing import RecordingContainer
from tests.helpers.fleet import Fleet, fleet
from tests.helpers.receiving import Receiver, receiving
from tests.helpers.waiting import wait_until

SECRET = "8f2c1a90-77aa-4d0e-9d15-hunter2"  # noqa: S105 - of nobody
INTERVAL = 1.0  # seconds
CONFIG = """
ams:
  database: {type: sqlite, url: "sqlite:///registry.db"}
  optimizer: {auto-restart-enabled: true}
keeper: {check-interval: 1s}
"""
# Ticks as the daemon does, in a process that can be killed.
TICKS = """
import sys, time
from pathlib import Path
import dagster as dg
from dagster_amoro import build_definitions, load_settings
defs = build_definitions(load_settings(Path(sys.argv[1])))
sensor, cursor = defs.resolve_sensor_def("orphan_sensor"), None
with dg.DagsterInstance.ephemeral() as instance:
    while True:
        began = time.monotonic()
        context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs)
        cursor = sensor.evaluate_tick(context).cursor
        time.sleep(max(float(sys.argv[2]) - (time.monotonic() - began), 0))
"""


@pytest.fixture
def outside() -> Iterator[Receiver]:
    """Whoever watches."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def world(tmp_path: Path, outside: Receiver) -> Iterator[Fleet]:
    """A fleet that somebody watches."""
    with fleet(tmp_path) as made:
        check_in = CheckIn(url=f"{outside.url}/{SECRET}?token=hunter2")
        made.services = replace(made.services, check_in=check_in)
        yield made


def test_each_completed_survey_is_heard_of(world: Fleet, outside: Receiver) -> None:
    """And nothing else is: no abstention."""
    world.worker()
    world.tick()
    assert [each.path for each in outside.heard] == [f"/{SECRET}?token=hunter2"]
    world.execute(sa.text("ALTER TABLE optimizer RENAME TO away"))
    world.tick()
    assert world.message.startswith("Abstained")
    assert len(outside.heard) == 1
    world.execute(sa.text("ALTER TABLE away RENAME TO optimizer"))
    world.tick()
    assert len(outside.heard) == 2
    assert "outside" not in world.message


def test_who_does_not_listen_harms_nothing(world: Fleet, outside: Receiver) -> None:
    """The tick says so, without the address, and does what it would have done."""
    world.worker()
    world.tick()
    outside.status = 404
    world.later().tick()
    assert world.message.endswith("(keeper.check-in-url): answered 404") or not world.message
    world.later()
    world.services = replace(world.services, check_in=CheckIn(url=f"http://127.0.0.1:1/{SECRET}"))
    world.tick()
    assert "Nobody outside heard of it (keeper.check-in-url): " in world.message
    assert "refused" in world.message
    assert SECRET not in world.message
    assert [incident.resource_id for incident in world.incidents()] == ["w-1"]


def test_who_hangs_holds_no_tick_up(outside: Receiver) -> None:
    """However it hangs, it gets so long in all; where runs wait to be requested, no time at all."""
    outside.hangs = True
    url, patience = f"{outside.url}/{SECRET}", 60.0
    began = time.monotonic()
    assert CheckIn(url=url, timeout=patience).tell(wait=False) is None
    assert time.monotonic() - began < patience
    assert CheckIn(url=url, timeout=0.3).tell(wait=True) == "no answer within 0.3 s"


@pytest.mark.parametrize(
    "url",
    [
        f"http://no-such-host.invalid/{SECRET}",
        f"http://user:{SECRET}@127.0.0.1:1/x",
        f"http://127.0.0.1:1/?key={SECRET}",
        f"http://127.0.0.1:99999/{SECRET}",
        f"https://127.0.0.1:1/ping/{SECRET}/fail",
        f"http://[{SECRET}/",
    ],
)
def test_no_part_of_the_address_is_told(url: str) -> None:
    """Wherever its secret stands, and whatever is wrong with it."""
    check_in = CheckIn(url=url)
    told = check_in.tell(wait=True)
    assert told
    assert SECRET not in f"{told}{check_in}"


def test_it_is_configured_and_hidden(tmp_path: Path) -> None:
    """By the file or the environment; an address that is none is told without it."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    variable = "KEEPER_CHECK_IN_URL"
    settings = load_settings(tmp_path, {variable: f"https://hc.example/{SECRET}"})
    assert settings.check_in_url == f"https://hc.example/{SECRET}"
    assert SECRET not in repr(settings)
    with closing(Services.connect(settings)) as services:
        assert services.check_in == CheckIn(url=f"https://hc.example/{SECRET}")
        assert SECRET not in repr(services)
    assert load_settings(tmp_path, {}).check_in_url is None
    for wrong in (f"hc.example/{SECRET}", f"ftp://hc.example/{SECRET}", f"https:///{SECRET}"):
        with pytest.raises(ConfigError) as caught:
            load_settings(tmp_path, {variable: wrong})
        assert "keeper.check-in-url is ***; accepted is an address" in str(caught.value)
        assert SECRET not in str(caught.value)


@pytest.mark.crash_loop
def test_somebody_outside_notices_a_dead_daemon_within_three_intervals(
    tmp_path: Path, outside: Receiver
) -> None:
    """It hears of each survey as long as there is a process that ticks, and of none after it."""
    conf = CONFIG + f"  check-in-url: {outside.url}/{SECRET}\n"
    (tmp_path / "config.yaml").write_text(
        conf.replace("keeper: {check-interval: 1s}", "keeper:\n  check-interval: 1s")
    )
    command = [sys.executable, "-c", TICKS, str(tmp_path), str(INTERVAL)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        wait_until(lambda: len(outside.heard) >= 3)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    died_at = time.monotonic()
    time.sleep(INTERVAL / 2)  # what was under way is over
    heard = len(outside.heard)
    wait_until(lambda: time.monotonic() > died_at + 3 * INTERVAL)
    assert len(outside.heard) == heard
    assert outside.heard[-1].at < died_at + INTERVAL / 2


def test_standing_by_is_no_survey(tmp_path: Path, outside: Receiver) -> None:
    """The one that acts is heard; whoever takes over is heard from then on."""
    config = CONFIG.replace("1s}", f"1s, lease-time: 1min, check-in-url: '{outside.url}'}}")
    (tmp_path / "config.yaml").write_text(config)
    with dg.DagsterInstance.ephemeral() as instance:
        for name in ("one", "two"):
            settings = load_settings(tmp_path, {"KEEPER_DEPLOYMENT": name})
            with closing(Services.connect(settings)) as services:
                world = Fleet(services=services, container=RecordingContainer(), instance=instance)
                world.tick()
    assert len(outside.heard) == 1
