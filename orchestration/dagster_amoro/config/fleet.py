"""What the section `fleet` says: groups, and their workers by name or by number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Final

from dagster_amoro.config.containers import read_properties
from dagster_amoro.config.sources import RawConfig, kind_of, show
from dagster_amoro.config.values import Reader, parse_text, whole
from dagster_amoro.core.container_settings import ContainerSettings
from dagster_amoro.core.fleet_plan import RESERVED, DeclaredGroup
from dagster_amoro.core.groups import MIN_PARALLELISM
from dagster_amoro.core.model import Resource

_LONGEST_NAME: Final = 100  # characters, as the registry has them
_MOST_WORKERS: Final = 100_000  # of a group that has them by number
_Entry = Mapping[object, object]


def _parse_name(value: object) -> str:
    text = parse_text(value)
    if not 0 < len(text) <= _LONGEST_NAME or not text.isprintable() or text != text.strip():
        raise ValueError("no name of a row")
    return text


_NAME: Final = Reader(
    _parse_name, f"a text of 1 to {_LONGEST_NAME} characters that can be seen, blanks within it"
)
_THREADS: Final = whole(1)
_MEMORY: Final = whole(0)
_PARALLELISM: Final = whole(0)
_WORKERS: Final = whole(0, _MOST_WORKERS)
_SHARED: Final = ("container", "threads", "memory", "properties")
_OF_WORKER: Final = ("id", *_SHARED)  # keys
_OF_GROUP: Final = ("name", "workers", *_SHARED, MIN_PARALLELISM)


def read_fleet(
    raw: RawConfig, section: object, containers: Mapping[str, ContainerSettings]
) -> tuple[DeclaredGroup, ...] | None:
    """The declared groups; None: there is no such section. What is wrong is noted in `raw`."""
    return None if section is None else tuple(_Fleet(raw, containers).read(section))


def reject_fleet(raw: RawConfig, section: object) -> None:
    """Notes that a fleet is declared where an AMS has the say over it."""
    if section is not None:
        found = "there, though the registry is an AMS's (keeper.registry: attached)"
        raw.reject_in_file("fleet", found, "to leave it out: AMS makes groups and adds resources")


class _Fleet:
    """Reads the section; each id, and each name of a group, may be there once."""

    def __init__(self, raw: RawConfig, containers: Mapping[str, ContainerSettings]) -> None:
        self._raw: Final = raw
        self._containers: Final = containers
        self._places: Final[dict[tuple[str, str], str]] = {}  # by key and value

    def read(self, section: object) -> Iterator[DeclaredGroup]:
        entry = self._map(section, "fleet", ("groups",))
        for number, each in enumerate(self._list(entry, "fleet", "groups")):
            yield self._group(each, f"fleet.groups[{number}]")

    def _group(self, given: object, place: str) -> DeclaredGroup:
        entry = self._map(given, place, _OF_GROUP)
        name = self._name(entry, place, "name")
        unsaid = Resource(
            resource_id="", group_name=name, container_name="", thread_count=1, memory_mb=0
        )
        each = self._worker(entry, place, unsaid)
        if entry.get("container") is None:
            self._reject(f"{place}.container", "left out", self._container)
        least = self._value(entry, place, MIN_PARALLELISM, _PARALLELISM, None)
        size = {} if least is None else {MIN_PARALLELISM: str(least)}
        return DeclaredGroup(
            name=name,
            container_name=each.container_name,
            properties=MappingProxyType({**each.properties, **size}),
            workers=tuple(self._workers(entry, place, each)),
        )

    def _workers(self, entry: _Entry, place: str, each: Resource) -> Iterator[Resource]:
        if not isinstance(entry.get("workers"), list):
            number: int = self._value(entry, place, "workers", _WORKERS, 0)
            ids = [f"{each.group_name}-{n}" for n in range(1, number + 1)]
            yield from self._numbered(ids, f"{place}.workers", each)
            return
        for n, given in enumerate(self._list(entry, place, "workers")):
            at = f"{place}.workers[{n}]"
            own = self._map(given if isinstance(given, dict) else {"id": given}, at, _OF_WORKER)
            yield replace(self._worker(own, at, each), resource_id=self._name(own, at, "id"))

    def _numbered(self, ids: Sequence[str], place: str, each: Resource) -> Iterator[Resource]:
        if ids and len(ids[-1]) > _LONGEST_NAME:
            found = f"{len(ids)}, which makes ids such as {ids[-1]!r}"
            self._raw.reject_in_file(place, found, f"ids of up to {_LONGEST_NAME} characters")
            return
        for name in ids:
            self._note("id", name, place)
            yield replace(each, resource_id=name)

    def _worker(self, entry: _Entry, place: str, default: Resource) -> Resource:
        """What an entry says of a worker, or of each one; what it leaves out is the default's."""
        container = self._value(entry, place, "container", self._container, default.container_name)
        properties = {**default.properties, **self._properties(entry, place)}
        return replace(
            default,
            container_name=container,
            thread_count=self._value(entry, place, "threads", _THREADS, default.thread_count),
            memory_mb=self._value(entry, place, "memory", _MEMORY, default.memory_mb),
            properties=MappingProxyType(properties),
        )

    @property
    def _container(self) -> Reader:
        def parse(value: object) -> str:
            if value not in self._containers:
                raise ValueError("not configured")
            return str(value)

        names = ", ".join(self._containers) or "there is none yet"
        return Reader(parse, f"the name of a container: {names}")

    def _properties(self, entry: _Entry, place: str) -> Mapping[str, str]:
        found = read_properties(self._raw, place, entry.get("properties") or {}, lists=False)
        for key in sorted(found.keys() & RESERVED):
            accepts = f"{key} beside properties" if key == MIN_PARALLELISM else "another name"
            self._raw.reject_in_file(f"{place}.properties.{key}", "no property of workers", accepts)
        return found

    def _name(self, entry: _Entry, place: str, key: str) -> str:
        if entry.get(key) is None:
            self._reject(f"{place}.{key}", "left out", _NAME)
        name: str = self._value(entry, place, key, _NAME, "")
        self._note(key, name, f"{place}.{key}")
        return name

    def _note(self, key: str, name: str, place: str) -> None:
        other = self._places.setdefault((key, name), place)
        if name and other != place:
            accepts = f"one that no other {key} is like"
            self._raw.reject_in_file(place, f"{name!r}, as in {other}", accepts)

    def _value(self, entry: _Entry, place: str, key: str, reader: Reader, default: Any) -> Any:  # noqa: ANN401 - what the reader reads
        """What an entry says, or the default; that too where it is not accepted."""
        value = entry.get(key)
        try:
            return default if value is None else reader.parse(value)
        except (ValueError, TypeError):
            self._reject(f"{place}.{key}", show(key, value), reader)
            return default

    def _reject(self, place: str, found: str, reader: Reader) -> None:
        self._raw.reject_in_file(place, found, reader.accepts)

    def _list(self, entry: _Entry, place: str, key: str) -> Sequence[object]:
        given = entry.get(key) or []
        if isinstance(given, list):
            return given
        self._raw.reject_in_file(f"{place}.{key}", kind_of(given), "a list")
        return []

    def _map(self, given: object, place: str, keys: Sequence[str]) -> _Entry:
        """An entry, whose unknown keys are noted."""
        if not isinstance(given, dict):
            self._raw.reject_in_file(place, kind_of(given), f"a map with {', '.join(keys)}")
            return {}
        for key in (str(each) for each in given if each not in keys):
            nearest = get_close_matches(key, keys, n=1)
            hint = f" did you mean {nearest[0]}?" if nearest else ""
            self._raw.note(
                f"{self._raw.source}: {place}.{key} is {show(key, given.get(key))}, but there is "
                f"no such key;{hint} accepted are {', '.join(keys)}"
            )
        return given
