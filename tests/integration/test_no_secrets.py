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
from tests.helpers.commands import command_runner
from tests.helpers.fleet import GRACE

SECRETS = {
    "database": "pw-of-the-database",
    "row": "pw-in-the-resource-row",
    "embedded": "pw-within-an-option",
    "container": "key-of-the-container",
    "token": "tok-of-the-container",
}
# It fails, and tells everybody everything it was given.
CHATTY = """#!/bin/bash
echo "started with $* and with AWS_SECRET_ACCESS_KEY=$AWS_SECRET_ACCESS_KEY"
env >&2
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
    (running.folder / "bin/optimizer.sh").write_text(CHATTY.format(**SECRETS))


@pytest.mark.usefixtures("_secret_container")
def test_no_secret_is_in_anything_that_people_see(
    running: Amoro, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failing restart to its end: events, runs, tags, metadata, frames, logs and the check."""
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
    options = ["--conf-dir", str(running.folder / "conf"), "check"]
    shown = command_runner().invoke(main, options).output
    said = capfd.readouterr()
    seen = {
        "check": shown,
        "output": said.out + said.err,
        "events": str(running.rows("keeper_event")),
        "incidents": str(running.rows("keeper_incident")),
        "ticks": str(world.messages),
        **_files(tmp_path, apart_from=running.folder),
    }
    assert any("runs.db" in name for name in seen), "Dagster's own files were not looked at"
    found = [(what, where) for what, pw in SECRETS.items() for where, t in seen.items() if pw in t]
    assert found == []
    # What was removed can be restored as it was: it is kept, apart from what people see.
    assert SECRETS["row"] in str(running.rows("keeper_removed_row"))


def _files(folder: Path, apart_from: Path) -> dict[str, str]:
    """Everything that was written to files, but for the operator's own."""
    return {
        str(path.relative_to(folder)): path.read_bytes().decode(errors="replace")
        for path in folder.rglob("*")
        if path.is_file() and not path.is_relative_to(apart_from)
    }
