"""Ids, groups and errors that act on whoever shows them, and everything that shows them."""

import json
from collections.abc import Iterator
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from dagster._serdes import serialize_value
from markdown_it import MarkdownIt

from dagster_amoro.asset_keys import EVENTS, FLEET, HISTORY, RESOURCES, partition_key
from dagster_amoro.cli import main
from dagster_amoro.config import load_settings
from dagster_amoro.core.model import Resource
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores import schema
from dagster_amoro.testing import RecordingContainer
from dagster_amoro_audit.group_reliability import KEY
from tests.helpers.attacks import TEXTS, acts
from tests.helpers.commands import command_runner
from tests.helpers.fleet import GRACE, Fleet

# SQLite takes an id, and the name of a group, that is all of them.
FOREIGN = "\n".join(TEXTS.values())
PAGES = (EVENTS, FLEET, HISTORY, KEY)
BY = ("--author", TEXTS["a title of the window"], "--reason", TEXTS["a new line"])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A configured fleet with an orphan of such a name, whose starts fail with such a text."""
    failing = {"fail-starts": FOREIGN, "refuse-releases": FOREIGN, "dies-of": FOREIGN}
    conf = {
        "ams": {
            "database": {"type": "sqlite", "url": f"sqlite:///{tmp_path}/registry.db"},
            "optimizer": {
                "auto-restart-enabled": True,
                "auto-restart-max-retries": 1,
                "auto-restart-grace-period": "30 s",
            },
        },
        "containers": [
            {
                "name": "recording",
                "container-impl": "dagster_amoro.testing.RecordingContainer",
                "properties": failing,
            }
        ],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(conf))
    services = Services.connect(load_settings(tmp_path, environ={}))
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        world = Fleet(services=services, container=RecordingContainer(), instance=instance)
        world.group(FOREIGN)
        for name, container in ((FOREIGN, "recording"), (f"{FOREIGN}2", FOREIGN)):
            fields = {"container_name": container, "thread_count": 2, "memory_mb": 0}
            add(services.registry, Resource(resource_id=name, group_name=FOREIGN, **fields))  # type: ignore[arg-type]
        yield world
        services.close()


def said(folder: Path, *arguments: str) -> str:
    """What a command says, well or not."""
    result = command_runner().invoke(main, ["--conf-dir", str(folder), *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return f"{result.stdout}\n{result.stderr}"


def strings(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """All texts within a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.items():
            yield from strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each)


def told(instance: dg.DagsterInstance) -> Iterator[str]:
    """Every text of every event, run and partition that Dagster has stored."""
    yield from instance.get_dynamic_partitions("optimizer_group")
    for each in stored(instance):
        yield from strings(each)


def stored(instance: dg.DagsterInstance) -> Iterator[Any]:
    """Every event and run that Dagster has stored, as JSON."""
    for run in instance.get_runs():
        yield json.loads(serialize_value(run))
        for entry in instance.all_logs(run.run_id):
            yield json.loads(serialize_value(entry))
    made = [instance.fetch_materializations(key, limit=1000).records for key in PAGES]
    attempts = instance.fetch_observations(EVENTS, limit=1000).records
    for record in [
        *attempts,
        *chain(*made),
        *instance.fetch_observations(RESOURCES, limit=1000).records,
    ]:
        yield json.loads(serialize_value(record.event_log_entry))


def refreshed(world: Fleet) -> list[str]:
    """All that the audit's sensor asks to be refreshed; what its checks say."""
    told, requests = world.audit()
    assert requests
    for request in requests:
        assert world.refreshed(request).success
    return [each.description or "" for each in told.values()]


def markdown(value: Any) -> Iterator[str]:  # noqa: ANN401 - JSON
    """All Markdown within what Dagster has stored."""
    if isinstance(value, dict):
        yield from [value["md_str"]] if "md_str" in value else []
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict | list):
            yield from markdown(each)


def acts_in_a_browser(text: str) -> list[str]:
    """What of a text in Markdown becomes HTML, a picture of somebody else, or a way out."""
    found, tokens = [], MarkdownIt("commonmark", {"html": True}).parse(text)
    while tokens:
        token = tokens.pop()
        tokens += token.children or []
        shown, leads = str(token.attrs.get("src", "data:")), str(token.attrs.get("href", "/"))
        is_ours = shown.startswith("data:") and leads.startswith("/") and leads[:2] != "//"
        if token.type.startswith("html") or not is_ours:
            found.append(token.content or shown or leads)
    return found


def written(world: Fleet) -> Iterator[str]:
    """What the ledger says to people; names and ids stand there as they are."""
    events, incidents, pauses = schema.event.c, schema.incident.c, schema.pause.c
    for columns in (
        (events.message, events.details),
        (incidents.note, incidents.last_error),
        (incidents.cause, incidents.death),
        (pauses.author, pauses.reason),
    ):
        with world.services.ledger.reading() as connection:
            for row in connection.execute(sa.select(*columns)):
                yield from (str(each) for each in row if each is not None)


@pytest.mark.long
def test_nothing_that_others_write_acts_on_what_shows_it(
    world: Fleet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failing restart to its end, a container of no name, and every verb and answer."""
    shown = [said(tmp_path, verb) for verb in ("check", "status")]
    world.tick()
    shown += refreshed(world)
    assert {each.cause for each in world.incidents() if each.container_name == "recording"} != {
        None
    }
    group, resource = ("--group", FOREIGN), ("--resource", FOREIGN)
    for arguments in (
        *(("check",), ("check", "--json"), ("status",), ("status", "--json")),
        *(("status", *group), ("pause", *group, *BY), ("status",), ("resume", *group, *BY)),
        *(("pause", *resource, *BY), ("resume", *resource, *BY), ("resume", *resource, *BY)),
        *(("restart-now", "--", FOREIGN), ("reset", *resource, *BY), ("give-up", "x", *BY)),
        *(("restart-now", *BY, "--", f"{FOREIGN}2"), ("restart-now", *BY, "--", f"{FOREIGN}3")),
        *(("restore", *BY, "--", f"{FOREIGN}3"), ("pause", "--group", "x", *BY)),
        ("pause", *group, *BY, "--until", FOREIGN),
        ("status", "--group", f"{FOREIGN}3"),
    ):
        shown += [said(tmp_path, *arguments)]
    for _ in range(3):
        for request in world.later(GRACE).tick():
            shown += [*request.tags.values()]
            world.launch(request)
    assert any(incident.state == "exhausted" for incident in world.incidents())
    shown += [said(tmp_path, "acknowledge", *BY, "--", FOREIGN)]
    shown += refreshed(world.later(timedelta(hours=2)))
    assert world.refresh(partition_key(FOREIGN)).success
    for request in world.audit()[1]:
        assert world.refreshed(request).success
    assert all(world.instance.fetch_materializations(key, limit=1).records for key in PAGES)
    shown += [said(tmp_path, *each) for each in (("status",), ("restore", *BY, "--", FOREIGN))]
    checks = [
        *(each.description or "" for each in world.check(raise_on_error=False).values()),
        *(
            str(each)
            for found in world.check(raise_on_error=False).values()
            for each in found.metadata
        ),
    ]
    captured = capfd.readouterr()
    found = [
        text
        for text in (*shown, *world.messages, *told(world.instance), *written(world), *checks)
        if acts(text)
    ]
    assert found == []
    pages = [*markdown([*stored(world.instance)])]
    assert len(pages) > 10
    assert [active for page in pages if (active := acts_in_a_browser(page))] == []
    # Dagster colours the levels of its lines itself.
    log = f"{captured.out}\n{captured.err}"
    for code in ("\x1b[34m", "\x1b[31m", "\x1b[33m", "\x1b[0m"):
        log = log.replace(code, "")
    assert acts(log) == []
