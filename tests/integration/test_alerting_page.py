"""The code of the page on alerting, as somebody who copies it runs it, against real receivers."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import dagster as dg
import pypd
import pytest
import sqlalchemy as sa
import yaml
from dagster_slack import SlackResource
from slack_sdk import WebClient

from dagster_amoro import Alert, Resource, build_alert_sensor, load_settings
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.healing import openmetrics
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from tests.helpers.fleet import age
from tests.helpers.receiving import Receiver, receiving, receiving_mail

PAGE: Final = (Path(__file__).parents[2] / "docs" / "alerting.md").read_text(encoding="utf-8")
CONFIG: Final = """
ams:
  database: {type: sqlite, url: "sqlite:///registry.db"}
  optimizer:
    {auto-restart-enabled: true, auto-restart-max-retries: 0, auto-restart-grace-period: 0s}
keeper: {note-surveys: true}
containers:
  - {name: recording, container-impl: dagster_amoro.testing.RecordingContainer}
"""
LOST: Final = "<!channel> & w-1"  # what Slack would take for a command


def blocks(language: str) -> list[str]:
    """The page's code in a language."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@dataclass
class Site:
    """A deployment that has the page's code, and whoever is told by it."""

    names: dict[str, Any]  # of the page's code
    services: Services
    web: Receiver
    cursor: str | None = None

    def tells(self, send: str, *, dies: bool = False) -> None:
        """A tick of a sensor that sends with this function; its cursor may be lost."""
        alerting = build_alert_sensor(load_settings(), self.names[send])
        self.tick(alerting, dies=dies)

    def tick(self, alerting: dg.SensorDefinition, *, dies: bool = False) -> None:
        """A tick of a sensor."""
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance=instance, cursor=self.cursor)
            done = alerting.evaluate_tick(context)
        assert "could not" not in (done.skip_message or ""), done.skip_message
        self.cursor = self.cursor if dies else done.cursor

    def survey(self) -> None:
        """A tick of the keeper with its runs."""
        for run in self.services.ticker.tick(lambda _: {}, AmsRestartDetector()).dispatches:
            for each in self.services.restarter.claim(run.run_key, run.run_key):
                self.services.restarter.restart(each.incident_id, run.run_key)

    def falls_silent(self) -> None:
        """The last survey was long ago, and none can be made now."""
        with self.services.ledger.transaction() as ledger:
            ledger.note_survey(datetime.now(UTC) - timedelta(hours=1))
            ledger.connection.execute(sa.text("ALTER TABLE optimizer RENAME TO away"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """One resource was given up, and the check of a group fails."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.setenv("AMORO_CONF_DIR", str(tmp_path))
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(block, names)  # noqa: S102 - our own page
    with closing(Services.connect(load_settings())) as services, receiving() as web:
        found = Site(names, services, web)
        fields = {"container_name": "recording", "thread_count": 2, "memory_mb": 0}
        add(services.registry, Resource(resource_id=LOST, group_name="etl", **fields))  # type: ignore[arg-type]
        age(services.registry)
        services.registry.save_group("etl", "recording", {"min-parallelism": "2"})
        for _ in range(3):
            found.survey()
        assert services.ledger.last_removed(LOST) is not None
        yield found


def texts_are_complete(texts: list[str]) -> None:
    """A loss, a failed check and the silence, each with why, what to do and where."""
    (loss,) = (each for each in texts if "given up, 2 threads fewer" in each)
    (check,) = (each for each in texts if "groups_at_min_parallelism failed" in each)
    (silence,) = (each for each in texts if "survey_is_fresh failed" in each)
    assert "0 attempts until" in loss
    assert "0 of 2 threads" in check
    assert "no survey since" in silence
    assert "no such table" in silence
    for text, link in ((loss, "orphan_history"), (check, "resource?"), (silence, "fleet_status")):
        assert "Why: " in text
        assert "Next: " in text
        assert f"/assets/{link}" in text or f"/assets/amoro/{link}" in text
    assert len(texts) == 3


def test_a_webhook(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sensor of the page itself; what a dead process sent again has the same key."""
    monkeypatch.setenv("ALERT_WEBHOOK", f"{site.web.url}/hook")
    site.tick(site.names["alerts"], dies=True)
    first = {each.headers["idempotency-key"] for each in site.web.heard}
    site.tick(site.names["alerts"])
    assert {each.headers["idempotency-key"] for each in site.web.heard} == first
    assert len(site.web.heard) == 2 * len(first) == 4
    site.tick(site.names["alerts"])
    assert len(site.web.heard) == 4
    site.falls_silent()
    site.tick(site.names["alerts"])
    told = {each.headers["idempotency-key"]: each.values["text"] for each in site.web.heard}
    texts_are_complete([*told.values()])
    assert all("https://dagster.example.com/assets/" in each for each in told.values())
    sensors = site.names["defs"].resolve_sensor_def("alert_sensor"), site.names["alerts"]
    assert sensors[0].name == sensors[1].name


def test_slack(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each, and no name is a command."""
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-of-nobody")
    made = SlackResource.get_client

    def local(resource: SlackResource) -> WebClient:
        client = made(resource)
        client.base_url = f"{site.web.url}/"
        return client

    monkeypatch.setattr(SlackResource, "get_client", local)
    site.tells("to_slack")
    site.tells("to_slack")
    site.falls_silent()
    site.tells("to_slack")
    heard = site.web.heard
    assert {each.path for each in heard} == {"/chat.postMessage"}
    assert {each.headers["authorization"] for each in heard} == {"Bearer xoxb-of-nobody"}
    texts = [form_of(each.body)["text"] for each in heard]
    assert not any("<!channel>" in each for each in texts)
    assert any("&lt;!channel&gt; &amp; w-1" in each for each in texts)
    texts_are_complete(texts)


def form_of(body: bytes) -> dict[str, str]:
    """What a form holds, or JSON."""
    import json  # noqa: PLC0415
    from urllib.parse import parse_qsl  # noqa: PLC0415

    text = body.decode()
    found: dict[str, str] = json.loads(text) if text.startswith("{") else dict(parse_qsl(text))
    return found


def test_mail(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each; a mailbox knows what was sent twice."""
    with receiving_mail() as (port, mails):
        monkeypatch.setenv("SMTP_HOST", "127.0.0.1")
        monkeypatch.setenv("SMTP_PORT", str(port))
        site.tells("to_mail", dies=True)
        site.tells("to_mail")
        site.tells("to_mail")
        site.falls_silent()
        site.tells("to_mail")
    assert len(mails) == 5
    by_id = {str(mail["Message-ID"]): mail for mail in mails}
    texts_are_complete([mail.get_content() for mail in by_id.values()])
    for mail in mails:
        assert mail.get_content().startswith(str(mail["Subject"]).strip()[:40])


def test_pagerduty(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once each; an incident is resolved when its check passes again."""
    monkeypatch.setenv("PAGERDUTY_ROUTING_KEY", "routing-key")
    monkeypatch.setattr(pypd.EventV2, "base_url", f"{site.web.url}/v2/enqueue")
    site.tells("to_pagerduty")
    site.tells("to_pagerduty")
    site.services.registry.save_group("etl", "recording", {})
    site.survey()
    site.tells("to_pagerduty")
    site.falls_silent()
    site.tells("to_pagerduty")
    told = [each.values for each in site.web.heard]
    assert [each["event_action"] for each in told] == ["trigger", "trigger", "resolve", "trigger"]
    assert told[1]["dedup_key"] == told[2]["dedup_key"]
    assert len({each["dedup_key"] for each in told}) == 3
    assert {each["payload"]["severity"] for each in told} == {"critical", "warning"}
    for each in told:
        assert each["payload"]["custom_details"].keys() == {"why", "story", "next", "link"}
        assert each["payload"]["custom_details"]["next"]


def test_rules_and_table_name_the_metrics_that_there_are(site: Site) -> None:
    """Each metric is on the page, and no rule waits for one that never comes."""
    text = openmetrics.render(site.services.metrics.read())
    there = set(
        re.findall(r"^(dagster_amoro_\w+?)(?:_bucket|_count|_sum)?[{ ]", text, re.MULTILINE)
    )
    rules, _ = (yaml.safe_load(each) for each in reversed(blocks("yaml")))
    (group,) = rules["groups"]
    named = {
        name for rule in group["rules"] for name in re.findall(r"dagster_amoro_\w+", rule["expr"])
    }
    assert len(named) >= 4
    assert named <= there
    rows = re.findall(r"^\| (`dagster_amoro_.*?) \|", PAGE, re.MULTILINE)
    told = {
        name.replace("…", "dagster_amoro") for row in rows for name in re.findall(r"`(.*?)`", row)
    }
    assert told == there | {"dagster_amoro_open_incidents"}


def test_an_alert_is_made_by_whoever_tries_a_channel() -> None:
    """It is a plain record."""
    alert = Alert(
        title="a",
        cause="b",
        story="",
        next_step="c",
        link="/d",
        is_urgent=False,
        key="e",
        about="f",
    )
    assert alert.text == "a\nWhy: b\nNext: c\n/d"
