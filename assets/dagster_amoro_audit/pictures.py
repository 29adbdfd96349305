"""Where are the charts? In image files beside the frames, each in the place of the one before.

So a refresh stores no image in Dagster's own storage, which would keep every one for ever.
"""

from collections.abc import Mapping
from typing import NamedTuple

import dagster as dg
from upath import UPath

from dagster_amoro.core.texts import shown
from dagster_amoro_audit.history_store import write_whole


class Pictures(NamedTuple):
    """The folder of the charts of one partition, or of one asset."""

    path: UPath  # need not exist yet

    def keep(self, images: Mapping[str, bytes | None]) -> dg.PathMetadataValue:
        """Writes each PNG under its name; None: there is nothing to show, nor from before.

        Returns:
            Where they are, without a password that may stand in a URL.
        """
        for name, image in images.items():
            file = self.path / f"{name}.png"
            if image is None:
                file.unlink(missing_ok=True)
            else:
                write_whole(file, image)
        return dg.MetadataValue.path(str(shown(str(self.path))))
