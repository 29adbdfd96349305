"""Fleets that are declared, as the tests of plans and of `apply` have them."""

from collections.abc import Sequence
from typing import Any

from dagster_amoro.core.fleet_plan import DeclaredGroup
from dagster_amoro.core.groups import MIN_PARALLELISM
from dagster_amoro.core.model import Resource


def a_group(
    workers: Sequence[str] = (),
    *,
    name: str = "g",
    container: str = "recording",
    properties: dict[str, str] | None = None,
    **changes: Any,  # noqa: ANN401 - of any field of the workers
) -> DeclaredGroup:
    """A declared group with these workers, which have its properties."""
    given = properties or {}
    own = {key: value for key, value in given.items() if key != MIN_PARALLELISM}
    fields: dict[str, Any] = {
        "container_name": container,
        "thread_count": 2,
        "memory_mb": 0,
        "properties": own,
    }
    return DeclaredGroup(
        name=name,
        container_name=container,
        properties=given,
        workers=tuple(
            Resource(resource_id=each, group_name=name, **(fields | changes)) for each in workers
        ),
    )
