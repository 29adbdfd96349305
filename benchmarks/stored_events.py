"""How much does a run store in Dagster for each orphan?"""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple

import dagster as dg

from benchmarks.figures import Figure, Figures
from benchmarks.restart import instance_in, of, run
from benchmarks.world import configure, neglect, no_runs, services_of
from dagster_amoro.asset_keys import HISTORY, partition_key
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.messages import next_step
from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.defs.restart_job import Dispatch, build_restart_job, step_name
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.restart import Restarter, RestartResult

_ORPHANS: Final = 100
_BOUND: Final = 0.5
_OBSERVED: Final = ("resource", "incident", "attempt", "next", "result")


class _Stored(NamedTuple):
    """What the event log holds."""

    events: int
    size: int  # of all events, in bytes


def figures(folder: Path) -> Figures:
    """The job as it is, to one whose steps hand on values, and say all in two events."""
    configure(folder)
    with closing(services_of(folder)) as services:
        ours = _stored(services, folder / "ours", build_restart_job(services.restarter), of)
        home = folder / "talkative"
        talkative = _stored(services, home, _talkative(services.restarter, home), _of_talkative)
    for unit, *values in zip(("events", "bytes"), ours, talkative, strict=True):
        each = [value / _ORPHANS for value in values]
        name = f"stored {unit} for each orphan, to a talkative job"
        yield Figure(name=name, ours=each[0], bare=each[1], unit=unit, bound=_BOUND)


def _stored(
    services: Services,
    home: Path,
    job: dg.JobDefinition,
    configuration: Callable[[str], Mapping[str, Any]],
) -> _Stored:
    """Restarts some orphans by a job, in an instance of its own."""
    neglect(services, len(services.ledger.open_incidents()), _ORPHANS)
    (dispatch,) = services.ticker.tick(no_runs, AmsRestartDetector()).dispatches
    with instance_in(home) as instance:
        run(job, instance, configuration(dispatch.run_key))
    # The log of the run. SQLite alone has a copy of some in an index, other databases have none.
    (file,) = (each for each in home.glob("history/runs/*.db") if each.stem != "index")
    with closing(sqlite3.connect(file)) as connection:
        query = "SELECT count(*), coalesce(sum(length(event)), 0) FROM event_logs"
        return _Stored(*connection.execute(query).fetchone())


def _of_talkative(run_key: str) -> Mapping[str, Any]:
    return {"ops": {"claim_orphans": {"config": {"dispatch": run_key}}}}


def _talkative(restarter: Restarter, home: Path) -> dg.JobDefinition:
    """The job as one writes it at first."""

    @dg.op(out=dg.DynamicOut(int))
    def claim_orphans(
        context: dg.OpExecutionContext, config: Dispatch
    ) -> Iterator[dg.DynamicOutput[int]]:
        for incident in restarter.claim(config.dispatch, context.run_id):
            number = incident.incident_id
            name = step_name(incident.resource_id, f"incident_{number}")
            yield dg.DynamicOutput(number, mapping_key=name)

    @dg.op(out=dg.Out(dg.Nothing))
    def restart_orphan(
        context: dg.OpExecutionContext, incident_id: int
    ) -> Iterator[dg.Output[None] | dg.AssetObservation]:
        result = restarter.restart(incident_id, context.run_id)
        metadata = _metadata(result, restarter.policy)
        observed = {key: metadata[key] for key in _OBSERVED}
        partition = partition_key(metadata["group"])
        yield dg.AssetObservation(HISTORY, partition=partition, metadata=observed)
        yield dg.Output(None, metadata=metadata)

    # In a file for each value, as in a run of a daemon; in this process Dagster would keep them.
    files = dg.FilesystemIOManager(base_dir=str(home / "storage"))

    @dg.job(executor_def=dg.in_process_executor, resource_defs={"io_manager": files})
    def restart_orphans() -> None:
        claim_orphans().map(restart_orphan)

    return restart_orphans


def _metadata(result: RestartResult, policy: RestartPolicy) -> dict[str, str]:
    incident = result.incident
    if incident is None:
        raise AssertionError(result.message)
    return {
        "result": result.message,
        "group": incident.group_name,
        "resource": incident.resource_id,
        "container": incident.container_name,
        "incident": str(incident.incident_id),
        "attempt": f"{incident.attempts_used} of {policy.max_retries}",
        "orphaned since": clock_time(incident.detected_at),
        "next": next_step(incident, policy),
        **result.startup,
    }
