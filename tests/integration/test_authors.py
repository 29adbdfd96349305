"""Who did it: as it was typed, and as the system knows, whatever the environment says."""

import os
import pwd
from pathlib import Path

import pytest

from dagster_amoro.healing.verbs import os_user
from tests.helpers.fleet import fleet

USER = pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize(
    ("tags", "kept"),
    [({}, f"ann ({USER})"), ({"user": "bob@example.com"}, "ann (bob@example.com)")],
)
def test_a_job_keeps_who_launched_it(tmp_path: Path, tags: dict[str, str], kept: str) -> None:
    """Where Dagster knows users, theirs; else the one that it runs as."""
    with fleet(tmp_path) as world:
        world.worker()
        job = world.definitions.resolve_job_def("keeper_pause")
        config = {"ops": {"pause": {"config": {"author": "ann", "reason": "a move"}}}}
        assert job.execute_in_process(run_config=config, tags=tags, instance=world.instance).success
        (pause,) = world.services.ledger.pauses()
        assert pause.author == kept


def test_variables_make_nobody_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """`LOGNAME=boss dagster-amoro pause` is told apart from the boss."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "SUDO_USER"):
        monkeypatch.setenv(name, "boss")
    assert os_user() == USER
