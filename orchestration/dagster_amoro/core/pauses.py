"""What did operators ask to be left alone for now?"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from dagster_amoro.core.formatting import clock_time


class Scope(StrEnum):
    """What a verb can be about."""

    ALL = "all"
    GROUP = "group"
    RESOURCE = "resource"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Everything, a group or a resource."""

    scope: Scope
    name: str = ""  # of the group or the resource

    def __str__(self) -> str:
        """As a message names it: "everything", "group etl", "resource etl-1"."""
        return "everything" if self.scope is Scope.ALL else f"{self.scope} {self.name}"


EVERYTHING = Target(scope=Scope.ALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pause:
    """An operator's word that nothing is to be started or removed there."""

    target: Target
    author: str
    reason: str
    paused_at: datetime
    until: datetime | None  # None: until somebody resumes

    def holds(self, now: datetime) -> bool:
        """Whether its time is not over."""
        return self.until is None or now < self.until

    def __str__(self) -> str:
        """Who paused what, until when and why."""
        until = f" until {clock_time(self.until)}" if self.until else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.target} is paused by {self.author}{until}{reason}"


class Pauses:
    """The pauses that hold at one moment."""

    def __init__(self, pauses: Iterable[Pause] = (), now: datetime | None = None) -> None:
        """Those of `pauses` that hold at `now`."""
        self.holding = {p.target: p for p in pauses if now is not None and p.holds(now)}

    def of_group(self, group_name: str) -> Pause | None:
        """What pauses all of a group; None: nothing does."""
        group = Target(scope=Scope.GROUP, name=group_name)
        return self.holding.get(EVERYTHING) or self.holding.get(group)

    def of(self, resource_id: str, group_name: str) -> Pause | None:
        """What pauses a resource; None: nothing does."""
        if not self.holding:
            return None
        resource = Target(scope=Scope.RESOURCE, name=resource_id)
        return self.of_group(group_name) or self.holding.get(resource)
