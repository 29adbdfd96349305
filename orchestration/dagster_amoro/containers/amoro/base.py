"""What Amoro's own kinds of container have in common: how AMS builds an optimizer's command line.

The rules are those of `AbstractOptimizerContainer` in Amoro 0.7 to master. Values are put into
argument lists, never through a shell.
"""

import logging
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

from dagster_amoro.containers.base import unusable, without_prefix
from dagster_amoro.containers.environment import HADOOP, Environment, build, chosen
from dagster_amoro.containers.output import file_stem, home_folder
from dagster_amoro.core.ams_version import AmsVersion, AskAmsVersion, parse_version
from dagster_amoro.core.errors import (
    ConfigError,
    ContainerError,
    ReleaseFailedError,
    StartFailedError,
    describe,
)
from dagster_amoro.core.model import Resource
from dagster_amoro.core.secrets import Mask
from dagster_amoro.core.texts import shown

_logger: Final = logging.getLogger(__name__)
_LIVE: Final = re.compile(r"[\s|&;<>()$`\\\"'*?\[]|\A[~#]")  # to a shell, where nothing is quoted
_SHELL_WORD: Final = re.compile(r"'[^']*'|\"[^\"$`\\]*\"")  # quoted as a whole, nothing in it live


class OptimizerContainer:
    """A container of Amoro; the base of those in this package.

    Properties that AMS gives every container, and that the configuration adds here as well:
    `ams-home`, `ams-optimizing-uri`, `master-slave-mode-enabled`; and of our own `ams-version`,
    the version of AMS where it is not to be asked (the latest, if there is nobody to ask).

    A start keeps to what the row says first and the container second, as AMS does. Neither
    `memory_mb` nor the thread count of a resource is checked: AMS stored them. Nothing is connected
    to or looked for before the container is used.

    Raises:
        ConfigError: A property is missing or cannot be used.
    """

    def __init__(
        self, name: str, properties: Mapping[str, str], ask_ams_version: AskAmsVersion | None = None
    ) -> None:
        self.name: Final = name
        self.properties: Final = dict(properties)
        self._ask_ams_version: Final = ask_ams_version
        self._ams_version: Final = self._configured_ams_version()
        self.required("ams-optimizing-uri")  # so that what is missing is said before any attempt
        exports = without_prefix("export.", self.properties)
        self.exports: Final = {key: unquoted(value) for key, value in exports.items()}

    @property
    def supports_auto_restart(self) -> bool:
        """Always; a ContainerError where nobody knows how this version of AMS starts optimizers."""
        return self.ams_version is not None

    @property
    def ams_version(self) -> AmsVersion:
        """How AMS starts optimizers; a ContainerError where nobody knows."""
        if self._ams_version is not None:
            return self._ams_version
        return self._ask_ams_version() if self._ask_ams_version else AmsVersion.V0_9

    def request_resource(self, resource: Resource) -> Mapping[str, str]:
        """Starts the optimizer; returns the start-up properties to save, most of them AMS's own.

        Raises:
            StartFailedError: It was not started, or ended at once; the message says why.
        """
        notes = self.environment.notes
        for note in notes:
            _logger.warning("container %r: %s", self.name, shown(note))
        try:
            return self._start(resource)
        except ContainerError as error:
            raise StartFailedError("\n".join([str(error), *notes])) from None
        except OSError as error:  # of the folder for logs, or of a jar
            raise StartFailedError(describe(error)) from None

    def release_resource(self, resource: Resource) -> None:
        """Ends the optimizer, but nothing of another one, whose properties AMS can save in its row.

        Raises:
            ReleaseFailedError: It may still be running.
        """
        try:
            self._end(resource)
        except ContainerError as error:
            raise ReleaseFailedError(str(error)) from None

    def _start(self, resource: Resource) -> Mapping[str, str]:
        raise NotImplementedError

    def _end(self, resource: Resource) -> None:
        raise NotImplementedError

    @property
    def environment(self) -> Environment:
        """What the programs of this container get, as far as it is the same for all of them.

        AMS's own environment, which it hands on, is not known here: what this host gives programs
        stands for it. The rest is what AMS sets: the folder of its configuration, in which
        `optimizer.sh` looks for `env.sh` and for how to log, and `export.*`.
        """
        home = self.properties.get("ams-home")
        conf = {"AMORO_CONF_DIR": str(Path(home, "conf"))} if home else {}
        exports = {f"export.{key}": {key: value} for key, value in self.exports.items()}
        return build(chosen(HADOOP), {"keeper.ams-home": conf, **exports})

    def own_variables(self, resource: Resource) -> Mapping[str, str]:  # noqa: ARG002 - of one kind
        """What of the environment of the resource's start is set here, not passed on."""
        return self.environment.own

    def differences(self, resource: Resource) -> list[str]:
        """In what a start of the resource differs from the one that AMS would make."""
        changed = changed_by_shell(self.arguments(resource))
        return [f"AMS's shell would not pass on as they stand: {changed}"] if changed else []

    def exports_of_ams(self) -> list[str]:
        """In what AMS's shell would set the `export.*` otherwise, for which it has a shell."""
        if not self.exports:
            return ["AMS would start nothing: without any export.* its command line begins with &&"]
        changed = [key for key, value in self.exports.items() if changed_by_shell([value])]
        return [f"AMS's shell would set otherwise: {', '.join(changed)}"] if changed else []

    def required(self, key: str) -> str:
        """A property of the container; a ConfigError says that it is missing or empty."""
        if value := self.properties.get(key):
            return value
        raise ConfigError(f"container {self.name!r}: property {key!r} is required")

    def not_accepted(self, key: str, accepted: str) -> ConfigError:
        """The error of a property that cannot be used."""
        value = self.properties[key]
        return ConfigError(f"container {self.name!r}: property {key!r} is {value!r}{accepted}")

    @property
    def ams_home(self) -> str:
        """Where Amoro is installed on this host; a ConfigError where nobody said so."""
        if home := self.properties.get("ams-home"):
            return home
        raise ConfigError(
            f"container {self.name!r}: where Amoro is installed is not known; "
            "set keeper.ams-home to its folder"
        )

    def mask(self, resource: Resource) -> Mask:
        """Hides the secrets of the container and of the resource."""
        return Mask(self.properties, resource.properties)

    def log_of(self, resource: Resource) -> Path:
        """The file for the output of a program that may outlive us, by resource."""
        stem = file_stem(self.name, resource.resource_id)
        return (home_folder("optimizers") / f"{stem}.log").absolute()

    def options(self, prefix: str, resource: Resource) -> dict[str, str]:
        """The properties with this prefix, without it; the resource's before the container's."""
        return without_prefix(prefix, {**self.properties, **resource.properties})

    def arguments(self, resource: Resource) -> list[str]:
        """The optimizer's own arguments, in AMS's order.

        Raises:
            StartFailedError: AMS would need a property that is not there, or a value cannot be an
                argument of a program.
        """
        given = resource.properties
        found = [
            *("-a", given.get("ams-optimizing-uri") or self.required("ams-optimizing-uri")),
            *("-p", str(resource.thread_count), "-g", resource.group_name),
            *_option("-hb", given, "heart-beat-interval"),
        ]
        latest = self.ams_version >= AmsVersion.V0_9_0
        if latest:
            found += _option("-st", given, "shutdown-timeout-ms")
        if is_true(given.get("extend-disk-storage")):
            found += ["-eds", "-dsp", required_of(resource, "disk-storage-path")]
            found += _option("-msz", given, "memory-storage-size")
        if latest and is_true(given.get("cache-enabled")):
            found += [
                "-ce",
                *_option("-cmts", given, "cache-max-total-size"),
                *_option("-cmes", given, "cache-max-entry-size"),
                *_option("-ct", given, "cache-timeout"),
            ]
        if resource.resource_id:
            found += ["-id", resource.resource_id]
        if latest and is_true(self.properties.get("master-slave-mode-enabled")):
            found.append("-msm")
        return usable(found)

    def _configured_ams_version(self) -> AmsVersion | None:
        version = self.properties.get("ams-version")
        try:
            return parse_version(version) if version else None
        except ValueError as error:
            accepted = f": {error}; accepted is a version such as 0.8.1"
            raise self.not_accepted("ams-version", accepted) from None


def as_text(arguments: Iterable[str], quote: Callable[[str], str] = shlex.quote) -> str:
    """Arguments as the one text that AMS makes of them, which begins with a space.

    `quote` keeps a value together that whoever reads the text would split; AMS does not.
    """
    quirk = {"-ce": "-ce "}  # AMS's own space
    return "".join(f" {quirk.get(each) or quote(each)}" for each in arguments)


def changed_by_shell(words: Iterable[str]) -> str:
    """Those of the words, in a row, that a shell would split, expand or drop; AMS quotes none."""
    return ", ".join(map(repr, (each for each in words if not each or _LIVE.search(each))))


def is_true(text: str | None) -> bool:
    """A switch as AMS reads it: `true` in any case, and nothing else, is true."""
    return text is not None and text.lower() == "true"


def optimizer_name(resource: Resource) -> str:
    """What AMS calls an optimizer's Deployment, pod or cluster on Kubernetes."""
    return f"amoro-optimizer-{resource.resource_id}"


def required_of(resource: Resource, key: str) -> str:
    """A property of the resource; a StartFailedError says that its row has none."""
    value = resource.properties.get(key)
    if value is None:
        raise StartFailedError(
            f"property {key!r} is missing in the resource's row and is required to start it; "
            "it is copied from the group when AMS creates the resource"
        )
    return value


def usable(arguments: list[str]) -> list[str]:
    """The arguments, if a program can be given them; a StartFailedError says why not."""
    for before, each in pairwise(("", *arguments)):
        if unusable(each):  # its value may be a secret
            which = f"the argument after {before!r}" if before.startswith("-") else "an argument"
            raise StartFailedError(
                f"{which} holds a NUL character or half a character (a lone surrogate) and "
                "cannot be put on a command line"
            )
    return arguments


def _option(option: str, properties: Mapping[str, str], key: str) -> list[str]:
    return [option, properties[key]] if key in properties else []


def unquoted(value: str) -> str:
    """An exported value as AMS's shell would have set it, where it is quoted as a whole."""
    return value[1:-1] if _SHELL_WORD.fullmatch(value) else value
