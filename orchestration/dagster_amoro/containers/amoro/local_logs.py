"""What did an optimizer of this host write before it ended?

`optimizer.sh`, in Amoro 0.7 to master, sends what the optimizer says on its error output to
`optimizer.log.err`, which it empties before, and has it keep its logs in the same folder.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from dagster_amoro.containers.output import end_of
from dagster_amoro.containers.programs import excerpt
from dagster_amoro.core.errors import describe
from dagster_amoro.core.secrets import Mask

LOG_FOLDER: Final = "OPTIMIZER_LOG_DIR_NAME"  # the variable by which AMS names the folder

_ERRORS: Final = "optimizer.log.err"
_SHOWN: Final = 1500  # characters of each file
_State = tuple[int, int]  # when a file was written to, in nanoseconds, and how long it was


class OptimizerLogs:
    """The files of an optimizer that is about to be started, or that has ended."""

    def __init__(
        self, ams_home: str, environment: Mapping[str, str], *, since_now: bool = True
    ) -> None:
        """Remembers what there is already, of earlier starts; all of it counts if not so."""
        logs = environment.get("AMORO_LOG_DIR") or Path(ams_home, "logs")
        self._folder: Final = Path(logs, environment[LOG_FOLDER])
        self._before: Final = self._files() if since_now else {}

    def written(self, mask: Mask) -> str:
        """The end of what was written since, without secrets: its errors, and its newest log."""
        now = self._files()
        new = {path: state for path, state in now.items() if self._before.get(path) != state}
        errors = [path for path in new if path.name == _ERRORS]
        logs = sorted((path for path in new if path.name != _ERRORS), key=lambda path: new[path])
        shown = "\n".join(self._ends([*errors, *logs[-1:]], mask))
        return shown or f"its logs in {self._folder} say nothing"

    def _ends(self, paths: list[Path], mask: Mask) -> Iterator[str]:
        for path in paths:
            # What the script empties before is all new, however long it was.
            begin = 0 if path.name == _ERRORS else self._before.get(path, (0, 0))[1]
            try:
                text = excerpt(end_of(path, begin), mask, _SHOWN)
            except OSError as error:
                text = f"(cannot be read: {describe(error)})"
            if text:
                yield f"the end of {path}:\n{text}"

    def _files(self) -> dict[Path, _State]:
        found = {}
        for path in (self._folder / _ERRORS, *self._folder.glob("*.log")):
            with suppress(OSError):  # not there, or gone meanwhile
                state = path.stat()
                if path.is_file() and not path.name.startswith("gc"):  # Java's garbage collector's
                    found[path] = (state.st_mtime_ns, state.st_size)
        return found
