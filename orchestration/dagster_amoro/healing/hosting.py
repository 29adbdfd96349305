"""Is what belongs to one host used from several, as far as that is evident from here?

Processes, SQLite files and folders belong to a host. Where each run has one of its own, or hosts
are pods that come and go, no run finds what another one left.
"""

import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dagster_amoro.containers.command.launches import HOST
from dagster_amoro.core.errors import PropertiesError
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.properties import parse_properties

_LAUNCHES_HERE: Final = "DefaultRunLauncher"  # Dagster's own: beside the code server
_NAMED: Final = 3  # hosts that a message names


@dataclass(frozen=True, kw_only=True, slots=True)
class Hosting:
    """Where the keeper's runs execute."""

    host: str  # the name of this one
    is_pod: bool  # of Kubernetes
    launcher: str  # the class that launches runs on hosts of their own; empty: none does

    @property
    def doubt(self) -> str:
        """Why two runs may not share a host; empty: nothing says so."""
        if self.launcher:
            return f"runs are launched by {self.launcher}, each on a host of its own"
        return "this host is a pod, and those come and go" if self.is_pod else ""

    def of_workers(self, properties: Iterable[str | None]) -> Iterator[str]:
        """What is wrong with workers that are processes of a host, by properties of their rows."""
        if self.doubt:
            yield (
                f"{self.doubt}: its workers end with theirs, and from another they can be neither "
                "seen nor stopped; a PodContainer runs each as a pod of its own"
            )
        if elsewhere := sorted(_hosts_of(properties) - {self.host}):
            named = ", ".join(elsewhere[:_NAMED])
            yield (
                f"its workers were started on {counted(len(elsewhere), 'other host')} ({named}"
                f"{' …' if len(elsewhere) > _NAMED else ''}) as well: from this one they can be "
                "neither seen nor stopped"
            )

    def of_files(self, better: str) -> Iterator[str]:
        """What is wrong with files of this host, and what would be better."""
        if self.doubt:
            yield f"{self.doubt}: another has other files; {better} serves all of them"


def find_hosting(environ: Mapping[str, str]) -> Hosting:
    """What the environment says, and the `dagster.yaml` that it leads to."""
    home = environ.get("DAGSTER_HOME")
    return Hosting(
        host=socket.gethostname(),
        is_pod="KUBERNETES_SERVICE_HOST" in environ,
        launcher=_launcher(Path(home, "dagster.yaml")) if home else "",
    )


def _launcher(file: Path) -> str:
    """The class that launches runs elsewhere; what cannot be read says nothing."""
    import yaml  # noqa: PLC0415 - slow to import

    with suppress(OSError, ValueError, yaml.YAMLError):
        match yaml.safe_load(file.read_text(encoding="utf-8")):
            case {"run_launcher": {"class": str(name)}} if name != _LAUNCHES_HERE:
                return name
    return ""


def _hosts_of(properties: Iterable[str | None]) -> set[str]:
    found = set()
    for text in properties:
        with suppress(PropertiesError):
            found.add(parse_properties(text).get(HOST, ""))
    return found - {""}
