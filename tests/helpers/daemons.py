"""Dagster's daemons on a real instance, set up as the demo does, an iteration at a time."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest.mock import patch

import dagster as dg
from dagster._core.remote_origin import InProcessCodeLocationOrigin, RemoteJobOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import InProcessWorkspaceLoadTarget
from dagster._daemon import sensor
from dagster._daemon.asset_daemon import AssetDaemon
from dagster._daemon.backfill import execute_backfill_iteration
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
_LOGGER: Final = logging.getLogger(__name__)


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

    def automate(self) -> None:
        """The audit's sensor is evaluated; backfills make their runs."""
        daemon = AssetDaemon(settings={}, pre_sensor_interval_seconds=0)
        daemon._run_iteration_impl(  # a whole iteration, without threads
            self.workspace, threadpool_executor=None, amp_tick_futures={}, debug_crash_flags={}
        )
        list(execute_backfill_iteration(self.workspace, _LOGGER))

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

    def dequeue(self) -> list[str]:
        """The ids of all runs that were launched so far, in this order."""
        list(QueuedRunCoordinatorDaemon(interval_seconds=1).run_iteration(self.workspace))
        return [run.run_id for run in self.instance.run_launcher.queue()]  # type: ignore[attr-defined]


@contextmanager
def daemons(folder: Path) -> Iterator[Daemons]:
    """Dagster with the demo's dagster.yaml and definitions; the environment is the caller's."""
    settings = (demo.CONF / "dagster.yaml").read_text()
    (folder / "dagster.yaml").write_text(settings + _NO_LAUNCHES)
    target = LoadableTargetOrigin(
        executable_path=sys.executable, module_name="dagster_amoro.definitions", attribute="defs"
    )
    origin = InProcessCodeLocationOrigin(target, location_name="dagster-amoro")
    with (
        dg.DagsterInstance.from_config(str(folder)) as instance,
        WorkspaceProcessContext(instance, InProcessWorkspaceLoadTarget(origin)) as workspace,
    ):
        yield Daemons(instance, workspace)
