"""An instance that refuses what Dagster+ refuses: "Not callable from user cloud".

The names are those that dagster-cloud 1.13.27 raises for, in `dagster_cloud/storage/*/storage.py`.
Left out is what Dagster itself, where it is not Dagster+, needs to record events and to load
definitions: `handle_run_event`, `get_cursor_values` and `set_cursor_values`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn
from unittest.mock import patch

import dagster as dg

_REFUSED: Final = {
    "event_log_storage": (
        "watch",
        "end_watch",
        "get_freshness_state_records",
        "get_concurrency_run_ids",
        "get_asset_check_execution_history",
        "get_asset_check_partition_info",
        "update_asset_cached_status_data",
    ),
    "run_storage": (
        "delete_run",
        "wipe_daemon_heartbeats",
        "wipe",
        "get_backfills_count",
    ),
    "schedule_storage": (
        "wipe",
        "delete_instigator_state",
        "get_tick",
        "get_ticks_by_ids",
        "get_tick_summaries",
        "purge_ticks",
        "add_auto_materialize_asset_evaluations",
        "get_auto_materialize_asset_evaluations",
        "get_auto_materialize_evaluations_for_evaluation_id",
        "purge_asset_evaluations",
        "upgrade",
    ),
}


@contextmanager
def user_cloud(instance: dg.DagsterInstance) -> Iterator[list[str]]:
    """Refuses within the block; gives the names of what was asked for all the same."""
    asked: list[str] = []
    with _all(instance, asked):
        yield asked


@contextmanager
def _all(instance: dg.DagsterInstance, asked: list[str]) -> Iterator[None]:
    patches = [patch.object(instance.run_storage, "get_run_storage_id", None)]  # it has none
    for place, names in _REFUSED.items():
        storage = getattr(instance, place)
        patches += [patch.object(storage, name, _refusing(name, asked)) for name in names]
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def _refusing(name: str, asked: list[str]) -> Any:  # noqa: ANN401 - in place of any method
    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        asked.append(name)
        raise NotImplementedError(f"Not callable from user cloud: {name}")

    return refuse
