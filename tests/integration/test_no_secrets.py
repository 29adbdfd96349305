"""Passwords, tokens and secret-looking properties, searched for in everything a full run wrote."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from dagster_amoro.cli import main
from dagster_amoro.core.model import State
from tests.helpers.attached import LOCAL, Amoro, amoro
from tests.helpers.attacks import SPELLINGS, WRITINGS
from tests.helpers.commands import command_runner
from tests.helpers.fleet import GRACE

SECRETS = {
    "database": "pw-of-the-database",
    "row": "pw-in-the-resource-row",
    "embedded": "pw-within-an-option",
    "container": "key-of-the-container",
    "token": "tok-of-the-container",
}
COMMANDS = (
    *(("check",), ("check", "--json"), ("status",), ("status", "--json")),
    ("pause", "--author", "db.pass=hunter2", "--reason", "https://hunter2@h?sig=hunter2"),
    ("resume", "--author", "PGPASS=hunter2", "--reason", "Authorization: Token hunter2"),
    ("restart-now", "--author", "a", "--reason", "bindpw=hunter2", "leaky"),
    ("restore", "--author", "a", "--reason", "mysql -uroot -phunter2", "leaky"),
)
# It fails, and tells everybody everything it was given.
CHATTY = """#!/bin/bash
env >&2
cat "{folder}/leaks.txt" >&2
echo "started with $* and with AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY"
echo "Exception: login with {row} failed, option -Dpassword={embedded}, token {token}" >&2
exit 1
"""


@pytest.fixture
def running(postgresql_url: sa.URL, tmp_path: Path) -> Iterator[Amoro]:
    """An Amoro with secrets wherever its operators put them."""
    url = postgresql_url.set(password=SECRETS["database"])
    with amoro(url, tmp_path, grace=timedelta(seconds=0)) as found:
        yield found


@pytest.fixture
def _secret_container(running: Amoro) -> None:
    conf = yaml.safe_load((running.folder / "conf/config.yaml").read_text())
    properties = {
        "export.AWS_SECRET_ACCESS_KEY": SECRETS["container"],
        "export.API_TOKEN": SECRETS["token"],
    }
    conf["containers"] = [{"name": "local", "container-impl": LOCAL, "properties": properties}]
    (running.folder / "conf/config.yaml").write_text(yaml.safe_dump(conf))
    told = {"folder": running.folder, **SECRETS}
    (running.folder / "bin/optimizer.sh").write_text(CHATTY.format(**told))
    leaks = [*SPELLINGS.values(), *(write(SECRETS["row"]) for write in WRITINGS.values())]
    (running.folder / "leaks.txt").write_text("\n".join(leaks))


@pytest.mark.usefixtures("_secret_container")
def test_no_secret_is_in_anything_that_people_see(
    running: Amoro, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failing restart to its end: events, runs, tags, metadata, frames, logs and commands."""
    world = running.reloaded().world
    running.resources(
        "leaky",
        **{
            "spark-conf.spark.hadoop.fs.s3a.secret.key": SECRETS["row"],
            "spark-conf.spark.driver.extraJavaOptions": f"-Dpassword={SECRETS['embedded']}",
            "heart-beat-interval": "1000",
        },
    )
    for _ in range(3):
        for request in world.later(GRACE).tick():
            world.launch(request)
    (incident,) = world.incidents()
    assert incident.state is State.EXHAUSTED
    assert "optimizer.sh ended with exit code 1" in str(incident.last_error)
    assert "AWS_SECRET_ACCESS_KEY=***" in str(incident.last_error)
    (partition,) = world.instance.get_dynamic_partitions("optimizer_group")
    assert world.refresh(partition).success
    shown = "".join(_said(running, *arguments) for arguments in COMMANDS)
    said = capfd.readouterr()
    seen = {
        "commands": shown,
        "output": said.out + said.err,
        "events": str(running.rows("keeper_event")),
        "incidents": str(running.rows("keeper_incident")),
        "ticks": str(world.messages),
        **_files(tmp_path, apart_from=running.folder),
    }
    assert any("runs.db" in name for name in seen), "Dagster's own files were not looked at"
    told = {**SECRETS, "spelled": "hunter2"}
    told |= {f"row as {way}": write(SECRETS["row"]) for way, write in WRITINGS.items()}
    found = [(what, where) for what, pw in told.items() for where, t in seen.items() if pw in t]
    assert found == []
    # What was removed can be restored as it was: it is kept, apart from what people see.
    assert SECRETS["row"] in str(running.rows("keeper_removed_row"))


def _said(running: Amoro, *arguments: str) -> str:
    options = ["--conf-dir", str(running.folder / "conf"), *arguments]
    result = command_runner().invoke(main, options)
    return result.stdout + result.stderr


def _files(folder: Path, apart_from: Path) -> dict[str, str]:
    """Everything that was written to files, but for the operator's own."""
    return {
        str(path.relative_to(folder)): path.read_bytes().decode(errors="replace")
        for path in folder.rglob("*")
        if path.is_file() and not path.is_relative_to(apart_from)
    }
