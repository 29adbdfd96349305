"""A container for benchmarks, in a module that loads nothing."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dagster_amoro.core.model import Resource


class StampingContainer:
    """Starts nothing; appends a line with the time of each start to a file, for all processes.

    A start takes as many seconds as its property `seconds` says, and then writes its line.
    """

    supports_auto_restart = True

    def __init__(self, name: str, properties: Mapping[str, str]) -> None:
        self.name: Final = name
        self._file: Final = Path(properties["file"])
        self._seconds: Final = float(properties.get("seconds", "0"))

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Notes the time."""
        time.sleep(self._seconds)
        with self._file.open("a") as stamps:
            stamps.write(f"{time.time()}\n")
        return {"job-id": resource.resource_id}

    def release_resource(self, resource: Resource) -> None:
        """There is nothing to stop."""
