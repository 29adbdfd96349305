"""Who comes first in the queue, with the dagster.yaml of the demo: restarts, the audit last."""

from pathlib import Path
from typing import Final

import dagster as dg
import pytest

from dagster_amoro.asset_keys import GROUPS
from dagster_amoro.demo.fleet import environment
from tests.helpers.daemons import daemons
from tests.helpers.fleet import fleet

pytestmark = pytest.mark.long

OTHERS: Final = """
import dagster as dg
from dagster_amoro import build_definitions, load_settings

@dg.job
def theirs():
    pass

defs = dg.Definitions.merge(build_definitions(load_settings()), dg.Definitions(jobs=[theirs]))
"""
AUDIT: Final = {"dagster-amoro/audit": "true", "dagster/priority": "-10"}


def test_the_audit_has_one_run_at_a_time_and_restarts_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came before; groups that are apart are refreshed by runs of their own."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with daemons(tmp_path) as dagster:
        dagster.sense()  # makes the tables; whichever sensor comes first, nothing waits after it
        for run in dagster.instance.get_runs():
            dagster.instance.report_run_canceled(run)
        before = len(dagster.instance.get_runs())
        dagster.instance.add_dynamic_partitions(GROUPS.name or "", ["a", "b", "c"])
        dagster.report_news("a", "c")
        dagster.sense()
        runs = dagster.instance.get_runs()  # the newest first
        audit = {run.run_id: run for run in runs[: len(runs) - before]}
        assert len(audit) == 2
        for run in audit.values():
            assert run.tags.items() >= AUDIT.items()
            assert run.status is dg.DagsterRunStatus.QUEUED
        with fleet(tmp_path) as world:
            world.worker()
            world.tick()
            (request,) = world.later().tick()
            restart = dagster.submit(world, request)
        first, *others = dagster.dequeue()
        assert first == restart.run_id
        (one,) = others
        assert one in audit
        assert dagster.dequeue() == [first, one]


def test_a_restart_overtakes_fifty_runs_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were there first, and no limit of theirs or ours was set for it."""

    @dg.job
    def theirs() -> None:
        pass

    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    file = tmp_path / "location.py"
    file.write_text(OTHERS)
    with daemons(tmp_path, {"merged": file}) as dagster, fleet(tmp_path) as world:
        world.shared = dg.Definitions.merge(world.definitions, dg.Definitions(jobs=[theirs]))
        asked = dg.RunRequest(job_name="theirs")
        others = [dagster.submit(world, asked).run_id for _ in range(50)]
        world.worker()
        world.tick()
        (request,) = world.later().tick()
        restart = dagster.submit(world, request)
        queued = dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED])
        assert dagster.instance.get_runs_count(queued) == 51
        first, *rest = dagster.dequeue()
        assert first == restart.run_id
        assert len(rest) < len(others)  # most still wait
        assert rest == others[: len(rest)]
