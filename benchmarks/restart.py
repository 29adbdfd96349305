"""What does the restart of one orphan cost, alone and with the step of Dagster around it?"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import dagster as dg

from benchmarks.figures import Figure, Figures, interleaved, seconds
from benchmarks.world import close, configure, neglect, no_runs, services_of
from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.defs.restart_job import RESTART_POOL, build_restart_job
from dagster_amoro.healing.assembly import Services

_ORPHANS: Final = 100
_REPETITIONS: Final = 5
_SILENT: Final = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def figures(folder: Path) -> Figures:
    """A restart, alone and in its step, to a mapped step that does nothing."""
    configure(folder)
    services = services_of(folder)
    with instance_in(folder / "dagster") as instance:
        job, empty = build_restart_job(services.restarter), _empty_steps()
        outages = _outages(services)
        sides = (
            lambda: _restarts(services, next(outages)),
            lambda: _each(partial(run, job, instance, of(next(outages)))),
            lambda: _each(partial(run, empty, instance)),
        )
        restart, step, bare = interleaved(*sides, repetitions=_REPETITIONS)
    close(services)
    for name, ours in (("restart without Dagster", restart), ("restart in its step", step)):
        yield Figure(name=f"{name}, to an empty step", ours=ours, bare=bare, unit="ms")


def instance_in(home: Path) -> dg.DagsterInstance:
    """A Dagster instance with a home, as it is by default."""
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    return dg.DagsterInstance.from_config(str(home))


def _outages(services: Services) -> Iterator[str]:
    """Run keys; under each, as many new orphans have been dispatched."""
    first = 0
    while True:
        neglect(services, first, _ORPHANS)
        (plan,) = services.ticker.tick(no_runs, AmsRestartDetector()).dispatches
        yield plan.run_key
        first += _ORPHANS


def _restarts(services: Services, run_key: str) -> float:
    """Milliseconds for each orphan, in this process."""
    incidents = services.restarter.claim(run_key, run_key)

    def restart_all() -> None:
        for incident in incidents:
            services.restarter.restart(incident.incident_id, run_key)

    return _each(restart_all)


def _each(work: Callable[[], object]) -> float:
    """Milliseconds for each orphan."""
    return seconds(work)() * 1000 / _ORPHANS


def run(
    job: dg.JobDefinition, instance: dg.DagsterInstance, config: Mapping[str, Any] | None = None
) -> None:
    """A run in this process."""
    job.execute_in_process(run_config={**_SILENT, **(config or {})}, instance=instance)


def of(run_key: str) -> Mapping[str, Any]:
    """The configuration of a run of `restart_orphans` for what was dispatched under a key."""
    return {"resources": {RESTART_POOL: {"config": {"dispatch": run_key}}}}


def _empty_steps() -> dg.JobDefinition:
    @dg.op(out=dg.DynamicOut(int))
    def fan_out() -> Iterator[dg.DynamicOutput[int]]:
        for number in range(_ORPHANS):
            yield dg.DynamicOutput(number, mapping_key=str(number))

    @dg.op(out=dg.Out(dg.Nothing))
    def do_nothing(number: int) -> None:
        """A step like those of `restart_orphans`."""

    @dg.job(executor_def=dg.in_process_executor)
    def empty_steps() -> None:
        fan_out().map(do_nothing)

    return empty_steps
