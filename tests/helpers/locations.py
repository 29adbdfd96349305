"""Keepers with code locations of their own, each with a fleet of one worker that is gone."""

from datetime import timedelta
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from dagster_amoro.core.model import Resource
from dagster_amoro.healing.fleet import add
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.registry import Registry
from tests.helpers.fleet import age

_LOCATION: Final = """
import dagster as dg
from dagster_amoro import build_definitions, load_settings

sections = {{
    "keeper": {{"registry": "standalone"}},
    "ams": {{
        "database": {{"type": "{kind}", "url": "{url}"}},
        "optimizer": {{"auto-restart-enabled": True, "auto-restart-grace-period": "0s"}},
        "optimizer-group": {{"min-parallelism-check-interval": "1s"}},
    }},
    "containers": [
        {{
            "name": "local",
            "container-impl": "dagster_amoro.CommandContainer",
            "properties": {{"command": {command}, "start-check": "0s"}},
        }}
    ],
}}
defs = build_definitions(load_settings(sections=sections), name="{name}")
"""


def location(folder: Path, name: str, url: sa.URL, *command: str) -> Path:
    """The file of a code location with the keeper of this name; the command starts a worker."""
    file = folder / f"{name}_location.py"
    kind = {"sqlite": "sqlite", "postgresql": "postgres"}[url.get_backend_name()]
    text = url.render_as_string(hide_password=False)
    file.write_text(_LOCATION.format(name=name, kind=kind, url=text, command=list(command)))
    return file


def lose_a_worker(url: sa.URL) -> None:
    """A resource that nobody stands for, since long ago."""
    registry = Registry(Database(url, "registry"), timedelta(minutes=1))
    add(
        registry,
        Resource(
            resource_id="w-1",
            group_name="g",
            container_name="local",
            thread_count=1,
            memory_mb=0,
        ),
    )
    age(registry)
    registry.database.close()
