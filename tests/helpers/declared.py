"""Fleets that are declared, as the tests of plans and of `apply` have them."""

from collections.abc import Sequence
from typing import Any

from dagster_amoro.core.fleet_plan import DeclaredGroup
from dagster_amoro.core.model import Resource


def a_group(
    workers: Sequence[str] = (),
    *,
    name: str = "g",
    container: str = "recording",
    properties: dict[str, str] | None = None,
    **changes: Any,  # noqa: ANN401 - of any field of the workers
) -> DeclaredGroup:
    """A declared group with these workers."""
    fields = {"container_name": container, "thread_count": 2, "memory_mb": 0, "properties": {}}
    return DeclaredGroup(
        name=name,
        container_name=container,
        properties=properties or {},
        workers=tuple(
            Resource(resource_id=each, group_name=name, **(fields | changes)) for each in workers
        ),
    )
