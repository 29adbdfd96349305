"""What was given, by file or environment, and everything that is wrong with it."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from dagster_amoro.config.keys import (
    DATABASE_URL,
    LEDGER_URL,
    Setting,
    for_group,
    group_in,
    is_known,
    is_of_groups,
    keys_meant,
    resembles_one,
)
from dagster_amoro.config.urls import parse_url
from dagster_amoro.config.values import InvalidValueError

_T = TypeVar("_T")

_LONGEST_VALUE: Final = 80  # characters of a value that an error shows
_KUBERNETES: Final = re.compile("_(?:SERVICE_HOST|PORT)(?:_|$)")
_SECRET_WORDS: Final = ("password", "passwd", "secret", "token", "credential")


@dataclass(frozen=True, slots=True)
class _Given:
    value: object
    origin: str  # the file or the environment variable, as errors name it


@dataclass(slots=True)
class RawConfig:
    """The keys as they were given, in full and flattened, and what was found wrong so far."""

    source: Path
    given: dict[str, _Given] = field(default_factory=dict)
    decoders: dict[str, Callable[[object], str]] = field(default_factory=dict)  # by key
    rejected: set[str] = field(default_factory=set)  # keys
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def get(self, setting: Setting[_T]) -> _T:
        """The value of a key, its default where it is left out or not accepted."""
        given = self.given.get(setting.key)
        if given is not None and given.value is not None:  # null is Amoro's way of leaving out
            try:
                decode = self.decoders.get(setting.key)
                return setting.parse(decode(given.value) if decode else given.value)
            except InvalidValueError as flaw:
                self.reject(setting, str(flaw))
            except ValueError:
                self.reject(setting)
        return setting.parse(setting.default)

    def has(self, setting: Setting[object]) -> bool:
        """Whether a key was given, and not as an empty text."""
        given = self.given.get(setting.key)
        return given is not None and given.value is not None and given.value != ""

    def by_group(self, setting: Setting[_T | None]) -> Mapping[str, _T]:
        """The values that groups were given, by name; without those that were given none."""
        names = filter(None, (group_in(key, setting) for key in self.given))
        found = ((name, self.get(for_group(setting, name))) for name in names)
        return MappingProxyType({name: value for name, value in found if value is not None})

    def shown(self, setting: Setting[object]) -> str:
        """What a key was given, as errors may show it, or that it was left out."""
        given = self.given.get(setting.key)
        if given is None or given.value is None:
            return "left out" + (f", which means {setting.default}" if setting.default else "")
        return "***" if setting.key in self.decoders else show(setting.key, given.value)

    def reject(self, setting: Setting[object], why: str = "") -> None:
        """Notes that a key cannot have the value that it was given; without a reason, once."""
        if not why and setting.key in self.rejected:
            return
        self.rejected.add(setting.key)
        reason = f" {why}" if why else ""
        self.note(f"{self._found(setting)}{reason}; accepted is {setting.accepts}")

    def warn(self, setting: Setting[object], why: str) -> None:
        """Notes that a key has a value that is accepted, but hardly meant."""
        self.warnings.append(f"{self._found(setting)}: {why}.")

    def _found(self, setting: Setting[object]) -> str:
        given = self.given.get(setting.key)
        origin = given.origin if given else self.source
        return f"{origin}: {setting.key} is {self.shown(setting)}"

    def reject_in_file(self, place: str, found: str, accepts: str) -> None:
        """Notes that something in the file, which is not one of the keys, is not accepted."""
        self.note(f"{self.source}: {place} is {found}; accepted is {accepts}")

    def note(self, problem: str) -> None:
        """Adds a problem, once: a bad value may be met again where its default fails as well."""
        if problem not in self.problems:
            self.problems.append(problem)

    def add_section(self, name: str, section: object) -> None:
        """Takes up a section of the file; an empty one is none."""
        if not isinstance(section, dict):
            if section is not None:
                self.reject_in_file(name, kind_of(section), "a map")
            return
        try:
            for key, value in _flatten(section, name):
                self._add(key, value)
        except RecursionError:
            self.reject_in_file(name, "nested without end", "a map that does not hold itself")

    def _add(self, key: str, value: object) -> None:
        if key in self.given:
            first, second = show(key, self.given[key].value), show(key, value)
            found = f"{first} in one place and {second} in another"
            self.reject_in_file(key, found, "the nested or the dotted form, not both")
        self.given[key] = _Given(value, str(self.source))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Lets the environment overrule the sections `ams` and `keeper`."""
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(environ):
            if key := environment_key(name):
                names[key].append(name)
        for key, same in names.items():
            if len(same) > 1:
                self.note(
                    f"environment variables {' and '.join(same)}: each sets {key}; "
                    "accepted is one of them"
                )
            self.given[key] = _Given(environ[same[0]], f"environment variable {same[0]}")

    def reject_unknown(self) -> None:
        """Notes the keys that do not exist and that Amoro cannot have either."""
        for key, given in self.given.items():
            if is_known(key) or not (meant := keys_meant(key)):
                continue
            if given.value is None and is_of_groups(key):  # a group with nothing in it
                continue
            nearest = get_close_matches(key, meant, n=1)
            hint = f" did you mean {nearest[0]}?" if nearest else ""
            self.note(
                f"{given.origin}: {key} is {show(key, given.value)}, but there is no such key;"
                f"{hint} accepted are {', '.join(sorted(meant))}"
            )


def _flatten(section: Mapping[object, object], prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in section.items():
        path = f"{prefix}.{key}"
        if isinstance(value, dict):
            yield from _flatten(value, path)
        else:
            yield path, value


def environment_key(name: str) -> str | None:
    """The key that an environment variable sets; None: it is not ours.

    For `ams` it is Amoro's rule: one underscore is a dot, two or more are a hyphen. The keys of
    `keeper` that have a variable have no dots, so there any number is a hyphen. Only what is one of
    them, or resembles one, counts, and not the variables that Kubernetes makes of the names of
    services.
    """
    if name.startswith("AMS"):
        text = name.removeprefix("AMS_").lower()
        return "ams." + re.sub("__+", "-", text).replace("_", ".")
    if name.startswith("KEEPER_") and not _KUBERNETES.search(name):
        key = "keeper." + re.sub("_+", "-", name.removeprefix("KEEPER_").lower())
        return key if resembles_one(key) else None
    return None


def show(key: str, value: object) -> str:
    """A value as an error may show it: no secrets, on one line, not too long."""
    if key in {DATABASE_URL.key, LEDGER_URL.key}:
        return _shown_url(value)
    text = repr(value)
    if any(word in key.lower() for word in _SECRET_WORDS) or "://" in text or "jdbc:" in text:
        return "***"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def _shown_url(value: object) -> str:
    try:
        url = parse_url(value)
    except ValueError:
        return "***"  # where the password is in it, nobody knows
    return repr("" if url is None else str(url.set(query={})))


def kind_of(value: object) -> str:
    """What sort of value it is, without the value."""
    kinds = {dict: "a map", list: "a list", str: "a text", int: "a number", type(None): "null"}
    return kinds.get(type(value), f"a {type(value).__name__}")
