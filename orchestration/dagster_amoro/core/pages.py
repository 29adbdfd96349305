"""Where in Dagster's UI does one see, or do, a thing? Paths that begin at the web server's root.

Whoever has the address of the web server puts it before them. None acts in Markdown or in HTML,
whatever is in a name.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, quote_plus, unquote

from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.core.texts import is_inert

LAUNCHED_BY: Final = "launchpad"
"""Who wants what is launched, where nobody wrote a name."""

NO_REASON: Final = "none given"
"""Why it is wanted, where nobody wrote that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """The pages of one keeper."""

    keeper: str = ""  # its name, which stands before those of its jobs and in its keys
    key_prefix: Sequence[str] = ()  # before the key of every asset

    @property
    def fleet(self) -> str:
        """The fleet now: what one opens first."""
        return self._asset("amoro", "fleet_status")

    @property
    def checks(self) -> str:
        """What a person should look at."""
        return f"{self._asset('amoro', 'resource')}?view=checks"

    def history(self, partition: str) -> str:
        """What happened to the orphans of a group, by the key of its partition."""
        path = f"{self._asset('orphan_history')}?view=partitions"
        return f"{path}&partition={_quoted(partition)}" if _is_open(unquote(partition)) else path

    def run(self, run_id: str) -> str:
        """A run, with its log."""
        return f"/runs/{_quoted(run_id)}"

    def launchpad(self, verb: str, **values: str) -> str:
        """Where a verb is launched, by its name on the command line, with these values filled in.

        Dagster finds out the code location, and writes the configuration into a new tab. What a
        secret may be in is left for a person to type.
        """
        before = f"{self.keeper}_" if self.keeper else ""
        name = verb.replace("-", "_")
        path = f"/guess/{before}keeper_{name}/playground/setup"
        if not all(map(_is_open, values.values())):
            return path
        given = {**values, "author": LAUNCHED_BY, "reason": NO_REASON}
        lines = [f"   {key}: {_in_yaml(value)}" for key, value in given.items()]
        config = "\n".join(["ops:", f" {before}{name}:", "  config:", *lines])
        return f"{path}?config={quote_plus(config, safe=':', errors='replace')}"

    def _asset(self, *path: str) -> str:
        own = (self.keeper,) if self.keeper else ()
        return "/".join(["/assets", *map(_quoted, (*self.key_prefix, *own, *path))])


def _is_open(text: str) -> bool:
    """Whether it holds nothing that looks like a secret."""
    return hide_assigned(text) == text


def _in_yaml(value: str) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if is_inert(c) else f"\\U{ord(c):08x}" for c in text)


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


FLEET: Final = Pages().fleet
"""The page of the fleet, where there is one keeper."""
