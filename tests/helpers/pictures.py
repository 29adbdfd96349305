"""The pictures of the README: taken by the browser's test, and known to be of the pages of today.

`DAGSTER_AMORO_SCREENSHOTS=FOLDER pytest tests/e2e/test_demo.py` takes them, and
`python -m tests.helpers.pictures FOLDER` puts them into `docs`, with what tells when a page was
changed since.
"""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import dagster as dg
from PIL import Image

from dagster_amoro_audit.findings import Finding
from dagster_amoro_audit.fleet_status import metadata_of
from dagster_amoro_audit.summaries import Links
from tests.unit.test_status import CALM, orphan

DOCS: Final = Path(__file__).parents[2] / "docs"
DIGESTS: Final = DOCS / "pictures.json"
_COLOURS: Final = 96  # of a picture, which is small then
_DEATH: Final = "its last worker was killed by SIGKILL 42 s after its start"


class Picture(NamedTuple):
    """A picture in `docs`."""

    taken: str  # what the browser's test calls it
    page: Callable[[], str]  # what the page would show of a fleet that is always the same


def fleet() -> str:
    """The page of the fleet while an orphan waits."""
    status = replace(CALM, orphans=(replace(orphan(), death=_DEATH),))
    links = Links(runs={7: "run-7"})
    found = metadata_of(status, links, Finding(passed=True, description="it is fresh"))
    return json.dumps({name: _text(value) for name, value in found.items()})


PICTURES: Final[Mapping[str, Picture]] = {
    "fleet.png": Picture("fleet-1440-light.png", fleet),
}


def digest(picture: Picture) -> str:
    """What tells one state of a page from another."""
    return sha256(picture.page().encode()).hexdigest()[:16]


def keep(folder: Path) -> None:
    """Puts the pictures that were taken into `docs`."""
    for name, picture in PICTURES.items():
        with Image.open(folder / picture.taken) as image:
            few = image.convert("RGB").quantize(_COLOURS)
        few.save(DOCS / name, format="png", optimize=True)
    digests = {name: digest(picture) for name, picture in PICTURES.items()}
    DIGESTS.write_text(json.dumps(digests, indent=2) + "\n")


def _text(value: dg.MetadataValue[Any]) -> str:
    if isinstance(value, dg.TableMetadataValue):
        return json.dumps([dict(record.data) for record in value.records])
    return str(value.value)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
