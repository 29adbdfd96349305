"""Where does Dagster keep the frames of the audit? In Parquet files, at any path fsspec knows.

pandas, pyarrow and fsspec are loaded when a frame is stored or read, not with the definitions.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import dagster as dg

from dagster_amoro.asset_keys import folder_name

if TYPE_CHECKING:
    import pandas as pd
    from upath import UPath

    from dagster_amoro_audit.frames import History
    from dagster_amoro_audit.history_store import HistoryFolder

HISTORY_STORE: Final = "history_io_manager"  # the resource that keeps the groups' histories
FRAME_STORE: Final = "frame_io_manager"  # the resource that keeps single frames


class HistoryIOManager(dg.UPathIOManager):
    """Hands out the folders of the groups, through which the asset writes, and loads them."""

    def folder(self, asset: dg.AssetKey, partition: str) -> "HistoryFolder":
        """The files of one group."""
        from dagster_amoro_audit.history_store import HistoryFolder

        return HistoryFolder(self._base_path.joinpath(*asset.path, folder_name(partition)))

    def dump_to_path(self, context: dg.OutputContext, obj: "History", path: "UPath") -> None:
        """Refuses with a DagsterInvariantViolationError: a history is written part by part."""
        raise dg.DagsterInvariantViolationError(f"write to {path.name} through its folder")

    def load_from_path(self, context: dg.InputContext, path: "UPath") -> "History":
        """The whole history of a group; an empty one if it was never refreshed."""
        from dagster_amoro_audit.history_store import HistoryFolder

        return HistoryFolder(path).load()

    def get_path_for_partition(
        self, context: dg.InputContext | dg.OutputContext, path: "UPath", partition: str
    ) -> "UPath":
        """The folder of a partition."""
        return path / folder_name(partition)


class FrameIOManager(dg.UPathIOManager):
    """Stores a pandas frame as one Parquet file, in a folder or an object store."""

    extension = ".parquet"

    def pictures(self, asset: dg.AssetKey) -> "UPath":
        """The folder of an asset's charts, beside its file."""
        *parents, name = asset.path
        return self._base_path.joinpath(*parents, f"{name}.pictures")

    def dump_to_path(self, context: dg.OutputContext, obj: "pd.DataFrame", path: "UPath") -> None:
        """Writes one frame."""
        with path.open("wb") as file:
            obj.to_parquet(file)

    def load_from_path(self, context: dg.InputContext, path: "UPath") -> "pd.DataFrame":
        """Reads one frame."""
        import pandas as pd

        with path.open("rb") as file:
            return pd.read_parquet(file)

    def keep(self, name: str, frame: "pd.DataFrame") -> None:
        """Writes a frame that is no asset beside those that are."""
        path = self._base_path / f"{name}{self.extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            frame.to_parquet(file)

    def kept(self, name: str) -> "pd.DataFrame | None":
        """Such a frame; None: there is none, or none that can be read."""
        import pandas as pd

        try:
            with (self._base_path / f"{name}{self.extension}").open("rb") as file:
                return pd.read_parquet(file)
        except (OSError, ValueError):  # a write was cut off
            return None


MANAGERS: Final[Mapping[str, type[dg.UPathIOManager]]] = {
    HISTORY_STORE: HistoryIOManager,
    FRAME_STORE: FrameIOManager,
}


def io_manager(kind: type[dg.UPathIOManager], base: str | None = None) -> dg.IOManagerDefinition:
    """The resource that keeps histories, or single frames.

    The base is a folder, or a URL that fsspec knows; None: the Dagster instance's storage folder.
    """

    @dg.io_manager(description="Keeps the audit's frames as Parquet files.")
    def manager(context: dg.InitResourceContext) -> dg.UPathIOManager:
        from upath import UPath

        return kind(UPath(base or _instance_folder(context.instance)))

    return manager


def _instance_folder(instance: dg.DagsterInstance | None) -> str:
    if instance is None:
        raise dg.DagsterInvariantViolationError("histories are kept in an instance's folder")
    return instance.storage_directory()
