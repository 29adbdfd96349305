"""Dagster's daemons on a real instance, set up as the demo does, an iteration at a time."""

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from unittest.mock import patch

import dagster as dg
from dagster._core.remote_origin import (
    CodeLocationOrigin,
    InProcessCodeLocationOrigin,
    ManagedGrpcPythonEnvCodeLocationOrigin,
    RemoteJobOrigin,
)
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceLoadTarget
from dagster._daemon import sensor
from dagster._daemon.run_coordinator import QueuedRunCoordinatorDaemon

from dagster_amoro.asset_keys import EVENTS, GROUPS
from dagster_amoro.demo import fleet as demo
from tests.helpers.fleet import Fleet

# Runs are noted, and never come up.
_NO_LAUNCHES: Final = """\
run_launcher:
  module: dagster._core.test_utils
  class: MockedRunLauncher
"""
# Whoever stops the code servers waits for their ends.
_WAITS: Final = """\
code_servers:
  wait_for_local_processes_on_shutdown: true
"""
_LOGGER: Final = logging.getLogger(__name__)


@dataclass
class _Locations(WorkspaceLoadTarget):
    """Code locations, however they are served."""

    origins: Sequence[CodeLocationOrigin]

    def create_origins(self) -> Sequence[CodeLocationOrigin]:
        """All of them."""
        return self.origins


@dataclass
class Daemons:
    """Dagster's daemons on one instance, an iteration at a time."""

    instance: dg.DagsterInstance
    workspace: WorkspaceProcessContext

    def report_news(self, *groups: str) -> None:
        """The sensor reports events of these groups."""
        self.instance.add_dynamic_partitions(GROUPS.name or "", list(groups))
        for group in groups:
            event = dg.AssetMaterialization(EVENTS, partition=group)
            self.instance.report_runless_asset_event(event)

    def submit(self, world: Fleet, request: dg.RunRequest) -> dg.DagsterRun:
        """A run that the sensor of a fleet requests goes into the queue."""
        context = self.workspace.create_request_context()
        (location,) = context.code_locations
        (repository,) = location.get_repositories().values()
        name = request.job_name or ""
        run = self.instance.create_run_for_job(
            world.definitions.resolve_job_def(name),
            run_config=request.run_config,
            tags=request.tags,
            remote_job_origin=RemoteJobOrigin(repository.get_remote_origin(), name),
            job_code_origin=repository.get_full_job(name).get_python_origin(),
        )
        return self.instance.submit_run(run.run_id, context)

    def sense(self) -> None:
        """The sensors are evaluated, however soon after the time before."""
        with patch.object(sensor, "is_under_min_interval", lambda *_: False):
            for error in sensor.execute_sensor_iteration(self.workspace, _LOGGER, None, None):
                assert error is None, error

    def stop(self, location: str, name: str) -> None:
        """Somebody turns a sensor off."""
        context = self.workspace.create_request_context()
        (repository,) = context.get_code_location(location).get_repositories().values()
        found = repository.get_sensor(name)
        self.instance.stop_sensor(found.get_remote_origin_id(), found.selector_id, found)

    def passed(self, check: dg.AssetCheckKey) -> bool:
        """Whether a check passed when it was reported last."""
        found = self.instance.event_log_storage.get_latest_asset_check_execution_by_key([check])
        return found[check].status.value == "SUCCEEDED"

    def dequeue(self) -> list[str]:
        """The ids of all runs that were launched so far, in this order."""
        list(QueuedRunCoordinatorDaemon(interval_seconds=1).run_iteration(self.workspace))
        return [run.run_id for run in self.instance.run_launcher.queue()]  # type: ignore[attr-defined]


@contextmanager
def daemons(
    folder: Path, files: Mapping[str, Path] | None = None, *, served: bool = False
) -> Iterator[Daemons]:
    """Dagster with the demo's dagster.yaml and definitions; the environment is the caller's.

    Or with a code location for each of these files, by name. Each is in this process, or `served`
    by a code server of its own, as everywhere outside of tests.
    """
    settings = (demo.CONF / "dagster.yaml").read_text()
    (folder / "dagster.yaml").write_text(settings + _NO_LAUNCHES + _WAITS)
    target = partial(LoadableTargetOrigin, executable_path=sys.executable, attribute="defs")
    targets = {"dagster-amoro": target(module_name="dagster_amoro.definitions")}
    if files is not None:
        targets = {name: target(python_file=str(file)) for name, file in files.items()}
    kind = ManagedGrpcPythonEnvCodeLocationOrigin if served else InProcessCodeLocationOrigin
    origins = [kind(each, location_name=name) for name, each in targets.items()]
    with warnings.catch_warnings():
        # Dagster's own, of every schedule that it looks at.
        warnings.filterwarnings("ignore", ".*environment_vars", DeprecationWarning)
        with (
            dg.DagsterInstance.from_config(str(folder)) as instance,
            WorkspaceProcessContext(instance, _Locations(origins)) as workspace,
        ):
            yield Daemons(instance, workspace)
