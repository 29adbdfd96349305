"""How frames are kept: one Parquet file per partition, readable with pandas and DuckDB."""

from hashlib import sha256
from typing import Final

import dagster as dg
import pandas as pd
from upath import UPath

_LONGEST_NAME: Final = 120  # bytes of a partition's file name; file systems take 255


class FrameIOManager(dg.UPathIOManager):
    """Stores pandas frames as Parquet under the Dagster instance's storage folder."""

    extension = ".parquet"

    def dump_to_path(self, context: dg.OutputContext, obj: pd.DataFrame, path: UPath) -> None:
        """Writes one frame."""
        with path.open("wb") as file:
            obj.to_parquet(file)

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pd.DataFrame:
        """Reads one frame."""
        with path.open("rb") as file:
            return pd.read_parquet(file)

    def get_path_for_partition(
        self,
        context: dg.InputContext | dg.OutputContext,
        path: UPath,
        partition: str,
    ) -> UPath:
        """The file of a partition; a name too long for a file is cut and told apart by a hash."""
        if len(partition.encode()) <= _LONGEST_NAME:
            return path / partition
        readable = partition.encode()[: _LONGEST_NAME - 17].decode(errors="ignore")
        return path / f"{readable}-{sha256(partition.encode()).hexdigest()[:16]}"


@dg.io_manager(description="Frames as Parquet files, under the instance's storage folder.")
def frame_io_manager(context: dg.InitResourceContext) -> FrameIOManager:
    """The IO manager of the audit's assets."""
    if context.instance is None:
        raise dg.DagsterInvariantViolationError("frames are kept in an instance's storage folder")
    return FrameIOManager(UPath(context.instance.storage_directory()))
