"""What is a keeper's own called in Dagster: its assets, partitions, jobs, sensors and runs?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from types import MappingProxyType
from typing import Final
from urllib.parse import quote, unquote

import dagster as dg

from dagster_amoro.core.pages import Pages
from dagster_amoro.core.texts import is_inert
from dagster_amoro.core.values import NAME_ACCEPTS, parse_keeper_name

AUDIT: Final = "audit"  # the asset group of what the audit makes
REGISTRY: Final = "amoro"  # the asset group of the registry's tables
KEEPER_TAG: Final = "amoro/keeper"  # of a run: the name of its keeper, where that has one
LEDGER_TAG: Final = "amoro/ledger"  # of a run: the identity of the ledger that it acts for

_NAMELESS: Final = "%"  # no name is quoted to this
_UNSAFE: Final = frozenset("%/\\|")
_LONGEST_FOLDER: Final = 120  # bytes; file systems take 255
_CUT: Final = "%-"  # before the hash of a name that was cut; a `%` in a key has digits after it


@dataclass(frozen=True, kw_only=True, slots=True)
class Translation(dg.Resolvable):
    """How what we define is marked, so that it fits into the conventions of a deployment."""

    key_prefix: Sequence[str] = ()  # before the key of every asset
    group_name: str | None = None  # of every asset; None: `audit` and `amoro`
    owners: Sequence[str] = ()  # of every asset: e-mail addresses, or `team:name`
    tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # of every asset
    run_tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    # Dagster's pool whose slots a run that restarts or scales up takes. None: it takes none.
    pool: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The names of one keeper, apart from those of any other in the same deployment.

    A ValueError says that something cannot be called by this name.
    """

    keeper: str = ""  # the one whose names have nothing before them, where there is only one
    translation: Translation = field(default_factory=Translation)

    def __post_init__(self) -> None:
        try:
            parse_keeper_name(self.keeper)
        except ValueError:
            raise ValueError(f"name is {self.keeper!r}; accepted is {NAME_ACCEPTS}") from None

    def of(self, name: str) -> str:
        """The name of a job, an op, a sensor, a schedule or a resource."""
        return f"{self.keeper}_{name}" if self.keeper else name

    def key(self, *path: str) -> dg.AssetKey:
        """The key of an asset."""
        own = (self.keeper,) if self.keeper else ()
        return dg.AssetKey([*self.translation.key_prefix, *own, *path])

    def group(self, name: str) -> str:
        """The asset group of what would be in the group of this name."""
        return self.translation.group_name or self.of(name)

    @property
    def run_tags(self) -> dict[str, str]:
        """The tags of every run, by which those of one keeper are told from others'."""
        own = {KEEPER_TAG: self.keeper} if self.keeper else {}
        return {**self.translation.run_tags, **own}

    @property
    def pages(self) -> Pages:
        """Where in Dagster's UI all this is seen."""
        return Pages(keeper=self.keeper, key_prefix=self.translation.key_prefix)

    @property
    def groups(self) -> dg.DynamicPartitionsDefinition:
        """The partitions: one for each optimizer group."""
        return dg.DynamicPartitionsDefinition(name=self.of("optimizer_group"))

    @property
    def resources(self) -> dg.AssetKey:
        """The registry's table of what is wanted."""
        return self.key("amoro", "resource")

    @property
    def optimizers(self) -> dg.AssetKey:
        """The registry's table of what is alive."""
        return self.key("amoro", "optimizer")

    @property
    def fleet(self) -> dg.AssetKey:
        """How the fleet does now; its page is `pages.fleet`."""
        return self.key("amoro", "fleet_status")

    @property
    def events(self) -> dg.AssetKey:
        """The ledger's events."""
        return self.key("orphan_events")

    @property
    def history(self) -> dg.AssetKey:
        """The history of a group."""
        return self.key("orphan_history")

    @property
    def reliability(self) -> dg.AssetKey:
        """The figures of all groups."""
        return self.key("group_reliability")


DEFAULT: Final = Names()
RESOURCES: Final = DEFAULT.resources
OPTIMIZERS: Final = DEFAULT.optimizers
FLEET: Final = DEFAULT.fleet
EVENTS: Final = DEFAULT.events
HISTORY: Final = DEFAULT.history
GROUPS: Final = DEFAULT.groups


def partition_key(group_name: str) -> str:
    """The partition of a group: its name, with what Dagster or a file system takes amiss quoted.

    Percent-quoted are slashes, `|`, `%` itself, dots that could mean a folder (or Dagster's `...`
    for ranges) and what could act on a page, so that names stay distinct and harmless.
    """
    if not group_name:
        return _NAMELESS
    quoted = "".join(c if c not in _UNSAFE and is_inert(c) else _quoted(c) for c in group_name)
    quoted = quoted.replace("..", "%2E%2E")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def _quoted(character: str) -> str:  # half a character is in no registry, and stays what it is
    return character if "\ud800" <= character <= "\udfff" else quote(character, safe="")


def group_name(key: str) -> str:
    """The group of a partition."""
    return "" if key == _NAMELESS else unquote(key)


def folder_name(key: str) -> str:
    """The folder of a partition: its key, where that is short and no part of a URL's syntax.

    A key that is too long for a file system is cut and told apart by a hash. A `::` would chain
    two URLs in fsspec.
    """
    name = key.replace("::", "%3A%3A")
    if len(name.encode()) <= _LONGEST_FOLDER:
        return name
    digest = f"{_CUT}{sha256(name.encode()).hexdigest()[:32]}"
    return name.encode()[: _LONGEST_FOLDER - len(digest)].decode(errors="ignore") + digest
