"""What was given, by file or environment, where, and everything that is wrong with it."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Final, NamedTuple

from dagster_amoro.config.jdbc import parse_url
from dagster_amoro.config.models import GROUP, SETTINGS, GroupConfig, settings_of

_BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
_GROUP_KEYS: Final = tuple(setting.key for setting in settings_of(GroupConfig))
_SECTIONS: Final = ("ams", "containers", "fleet", "keeper")
_KEEPER: Final = "keeper."
_KEEPER_KEYS: Final = tuple(key for key in _BY_KEY if key.startswith(_KEEPER))
_WORDS_OF_GROUPS: Final = "|".join(key.rpartition(".")[2] for key in _GROUP_KEYS)
_OF_GROUP: Final = re.compile(rf"keeper\.groups\.(.+)\.({_WORDS_OF_GROUPS})", re.DOTALL)
# A group, and what is no key of one: a word, or what stands below a key.
_NEAR_GROUP: Final = re.compile(
    rf"keeper\.groups(?:\.(.+?)(?:\.(?:{_WORDS_OF_GROUPS})\..*|\.[^.]*)?)?", re.DOTALL
)
_RESTART_PREFIX: Final = "ams.optimizer.auto-restart"
RESTART_KEYS: Final = tuple(key for key in _BY_KEY if key.startswith(_RESTART_PREFIX))
# The nearest of Amoro's own keys is 0.67 alike; a key whose `optimizer` was left out, 0.82.
_ALIKE: Final = 0.8
_URL_KEYS: Final = {"ams.database.url", "keeper.ledger-url"}
_KUBERNETES: Final = re.compile("_(?:SERVICE_HOST|PORT)(?:_|$)")
_SECRET_WORDS: Final = ("password", "passwd", "secret", "token", "credential", "check-in-url")


class _Given(NamedTuple):
    value: object
    origin: str  # the file or the environment variable, as errors name it
    is_inline: bool = False  # written for us alone, so that nothing there is Amoro's own affair


@dataclass(slots=True)
class RawConfig:
    """The keys as they were given, in full and flattened, and what was found wrong so far."""

    source: Path
    given: dict[str, _Given] = field(default_factory=dict)
    encoded: frozenset[str] = frozenset()  # keys whose values only AMS may show
    rejected: set[str] = field(default_factory=set)  # keys
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def values(self) -> dict[str, object]:
        """The values by key; without those that are null, which is Amoro's way of leaving out."""
        given = self.given.items()
        return {key: each.value for key, each in given if each.value is not None}

    def has(self, key: str) -> bool:
        """Whether a key was given, and not as an empty text."""
        return key in self.given and self.given[key].value not in (None, "")

    def shown(self, key: str) -> str:
        """What a key was given, as errors may show it, or that it was left out."""
        given = self.given.get(key)
        if given is None or given.value is None:
            default = _BY_KEY[documented(key)].default
            return f"left out, which means {default}" if default else "left out"
        return "***" if key in self.encoded else show(key, given.value)

    def reject(self, key: str, why: str = "") -> None:
        """Notes that a key cannot have the value that it was given; without a reason, once."""
        if not why and key in self.rejected:
            return
        self.rejected.add(key)
        found, accepts = self._found(key), _BY_KEY[documented(key)].reader.accepts
        self.note(f"{found}{why and ' '}{why}; accepted is {accepts}")

    def reject_beside(self, key: str, other: str) -> None:
        """Notes that two keys do not go together, unless one of them is wrong by itself."""
        if not self.rejected & {key, other}:
            self.reject(key, f"though {other} is {self.shown(other)}")

    def warn(self, key: str, why: str) -> None:
        """Notes that a key has a value that is accepted, but hardly meant."""
        self.warnings.append(f"{self._found(key)}: {why}.")

    def _found(self, key: str) -> str:
        origin = self.given[key].origin if key in self.given else self.source
        return f"{origin}: {key} is {self.shown(key)}"

    def reject_in_file(self, place: str, found: str, accepts: str) -> None:
        """Notes that something in the file, which is not one of the keys, is not accepted."""
        self.note(f"{self.source}: {place} is {found}; accepted is {accepts}")

    def note(self, problem: str) -> None:
        """Adds a problem, once."""
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
            found = (
                f"{show(key, self.given[key].value)} in one place and {show(key, value)} in another"
            )
            self.reject_in_file(key, found, "the nested or the dotted form, not both")
        self.given[key] = _Given(value, str(self.source))

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Lets the environment overrule the sections `ams` and `keeper`."""
        names: defaultdict[str, list[str]] = defaultdict(list)
        for name in sorted(environ):
            if key := environment_key(name):
                names[key].append(name)
        for key, (name, *others) in names.items():
            if others:
                self.note(
                    f"environment variables {' and '.join((name, *others))}: each sets {key}; "
                    "accepted is one of them"
                )
            self.given[key] = _Given(environ[name], f"environment variable {name}")

    def add_inline(self, inline: "RawConfig", sections: Mapping[str, object]) -> None:
        """Lets sections that were given inline overrule everything; `inline` takes them up."""
        for name in sections.keys() - _SECTIONS:
            what = f"{', '.join(_SECTIONS)}"
            inline.reject_in_file(name, kind_of(sections[name]), f"one of the sections {what}")
        for name in ("ams", "keeper"):
            inline.add_section(name, sections.get(name))
        self.problems += inline.problems
        self.given |= {key: each._replace(is_inline=True) for key, each in inline.given.items()}

    def reject_unknown(self) -> None:
        """Notes the keys that do not exist and that Amoro cannot have either."""
        for key, given in self.given.items():
            meant = _keys_meant(key) or (tuple(_BY_KEY) if given.is_inline else ())
            if documented(key) in _BY_KEY or not meant:
                continue
            if given.value is None and _NEAR_GROUP.fullmatch(key):  # a group with nothing in it
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


def group_of(key: str) -> str:
    """The name of the group that a key is for, dots and all; empty: it is no key of groups."""
    match = _OF_GROUP.fullmatch(key)
    return match[1] if match else ""


def documented(key: str) -> str:
    """The key as the schema has it: with a placeholder for the name of a group."""
    match = _OF_GROUP.fullmatch(key)
    return f"keeper.groups.{GROUP}.{match[2]}" if match else key


def _keys_meant(key: str) -> tuple[str, ...]:
    """Which keys of ours an unknown one may have been meant for; none: it is not ours."""
    if group := _NEAR_GROUP.fullmatch(key):
        return tuple(each.replace(GROUP, group[1] or GROUP) for each in _GROUP_KEYS)
    if key.startswith(_KEEPER):
        return _KEEPER_KEYS
    if key.startswith(_RESTART_PREFIX) or get_close_matches(key, RESTART_KEYS, cutoff=_ALIKE):
        return RESTART_KEYS
    return ()


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
        key = re.sub("_+", "-", name.removeprefix("KEEPER_").lower())
        # Keys of groups have no variables: one that seems to be for them must not pass unnoticed.
        # Compared without what they all begin with, which would make short names look alike.
        names = [each.removeprefix(_KEEPER) for each in _KEEPER_KEYS]
        near = get_close_matches(key, names, n=1, cutoff=_ALIKE)
        return f"{_KEEPER}{key}" if near or key.startswith("groups-") else None
    return None


def show(key: str, value: object) -> str:
    """A value as an error may show it: no secrets, on one line, not too long."""
    if key in _URL_KEYS:
        return _shown_url(value)
    text = repr(value)
    if any(word in key.lower() for word in _SECRET_WORDS) or "://" in text or "jdbc:" in text:
        return "***"
    return text if len(text) <= 80 else f"{text[:80]}..."  # noqa: PLR2004 - enough to find it by


def _shown_url(value: object) -> str:
    try:
        url = parse_url(value)
    except ValueError:
        return "***"  # where the password is in it, nobody knows
    hosts = {} if url is None else {key: url.query.get(key, "") for key in ("host", "port")}
    shown = {key: value for key, value in hosts.items() if value}
    return repr("" if url is None else str(url.set(query=shown)))


def kind_of(value: object) -> str:
    """What sort of value it is, without the value."""
    kinds = {dict: "a map", list: "a list", str: "a text", int: "a number", type(None): "null"}
    return kinds.get(type(value), f"a {type(value).__name__}")
