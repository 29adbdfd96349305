"""Inputs of ticks for the tests of plans."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import Incident
from dagster_amoro.core.policy import Replacement, RestartPolicy, TickSettings
from dagster_amoro.core.replacement import Newcomers, NewResource
from dagster_amoro.core.tick_inputs import Changes, RegistrySnapshot, TickInputs

NOW: Final = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
GRACE: Final = timedelta(minutes=5)
SETTINGS: Final = TickSettings(
    check_interval=timedelta(seconds=5),
    round_interval=timedelta(seconds=5),
    claim_timeout=timedelta(minutes=10),
    max_restarts_per_run=100,
)
EMPTY: Final = RegistrySnapshot(resources=0, groups=(), orphans={})
INPUTS: Final = TickInputs(
    snapshot=EMPTY,
    incidents=(),
    now=NOW,
    policy=RestartPolicy(enabled=True, max_retries=5, grace_period=GRACE),
    settings=SETTINGS,
    obstacle=lambda _: None,
)


def inputs_of(
    snapshot: RegistrySnapshot,
    incidents: Sequence[Incident] = (),
    base: TickInputs = INPUTS,
    *,
    present: AbstractSet[str] | None = None,
    **changes: Any,  # noqa: ANN401 - of TickInputs
) -> TickInputs:
    """A tick's; with `present`, the snapshot is newer than the incidents."""
    if present is not None:
        changes["changes"] = Changes(present=present)
    return replace(base, snapshot=snapshot, incidents=incidents, **changes)


def refilled(inputs: TickInputs, came: Replacement) -> TickInputs:
    """A new resource came to every group of these incidents after they were orphaned, or not."""
    if came is Replacement.NONE:
        return inputs

    def newcomers(since: Mapping[str, str]) -> Newcomers:
        live = came is Replacement.LIVE
        resources = [NewResource(f"new {name}", name, 99, "2", live) for name in since]
        return Newcomers(resources, dict.fromkeys(since, 99))

    names = {incident.group_name for incident in inputs.incidents}
    sized = {name: group(name, min_parallelism="1") for name in names}
    return replace(
        inputs,
        attached=True,  # where somebody else brings new resources
        snapshot=replace(inputs.snapshot, sized=sized),
        incidents=[incident._replace(newest_start="1") for incident in inputs.incidents],
        newcomers=newcomers,
    )


def group(name: str = "g", container: str | None = "c", **properties: str) -> Group:
    """A group with these properties; `_` in a name stands for `-`, `__` for `.`."""
    named = {key.replace("__", ".").replace("_", "-"): each for key, each in properties.items()}
    text = ", ".join(f'"{key}": "{each}"' for key, each in named.items())
    return Group(name=name, container_name=container, properties=f"{{{text}}}")


def dynamic(name: str = "g") -> Group:
    """A group that AMS sizes by its load."""
    return group(name, dynamic_allocation__enabled="true", dynamic_allocation__max_parallelism="8")
