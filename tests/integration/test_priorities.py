"""Who comes first in the queue, with the dagster.yaml of the demo: restarts, then the audit."""

from pathlib import Path
from typing import Final

import dagster as dg
import pytest

from dagster_amoro.demo.fleet import environment
from tests.helpers.daemons import daemons
from tests.helpers.fleet import fleet

AUDIT: Final = {"dagster-amoro/audit": "true", "dagster/priority": "-10"}


@pytest.mark.filterwarnings("ignore:.*AssetSelection.keys:DeprecationWarning")  # Dagster's own
def test_the_audit_has_one_run_at_a_time_and_restarts_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever came before; the runs of a backfill of many groups are the audit's as well."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with daemons(tmp_path) as dagster:
        dagster.report_news("a", "b", "c")
        dagster.automate()
        audit = {run.run_id: run for run in dagster.instance.get_runs()}
        assert ["dagster/backfill" in run.tags for run in audit.values()].count(True) == 1
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
