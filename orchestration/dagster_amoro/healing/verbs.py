"""What can operators say, in a terminal and in Dagster's launchpad? A table of verbs.

The command line and the jobs are both built from it. It loads neither Dagster nor SQLAlchemy, so
that help is shown at once.
"""

import os
import pwd
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from dagster_amoro.core.errors import KeeperError, UnknownTargetError
from dagster_amoro.core.pauses import EVERYTHING, Scope, Target
from dagster_amoro.core.values import parse_duration

if TYPE_CHECKING:
    from dagster_amoro.healing.operations import Operations

Values = Mapping[str, str | None]
"""What was typed, by the name of the parameter; None where nothing was. And `KNOWN`."""

KNOWN: Final = "known"
"""The key of who the system says it is, whatever was typed; no parameter has this name."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One thing that a verb takes: an option of the command, a field of the job."""

    name: str
    metavar: str  # how help calls its value
    help: str
    is_required: bool = False
    is_argument: bool = False  # given on the command line by its position, without its name
    # What fills it on the command line where it is left out; empty: nothing. A job runs as nobody.
    default: str = ""
    in_jobs: bool = True


@dataclass(frozen=True, slots=True)
class Command:
    """A command and what it takes."""

    name: str  # on the command line; in the name of a job, underscores take the place of hyphens
    summary: str  # one sentence
    details: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True, slots=True)
class Verb(Command):
    """A command that tells the keeper to do something, and answers with a sentence."""

    act: Callable[["Operations", Values], str]


GROUP: Final = Parameter(
    "group",
    "NAME",
    "The name of a group, as the registry has it. Without group and resource: everything.",
)
RESOURCE: Final = Parameter(
    "resource", "ID", "The id of a resource, as the registry has it, instead of a group."
)
ORPHAN: Final = Parameter(
    "resource",
    "RESOURCE",
    "The id of a resource, as the registry has it. It has to be an orphan.",
    is_required=True,
    is_argument=True,
)
REMOVED: Final = replace(
    ORPHAN, help="The id of a resource that was given up or superseded, as the ledger has it."
)
LOST: Final = replace(
    ORPHAN, help="The id of a resource that was given up, or is kept, as the ledger has it."
)
WORKER: Final = replace(ORPHAN, help="The id of a resource, as the registry has it.")
UNTIL: Final = Parameter(
    "until",
    "TIME",
    "When the pause ends by itself, in ISO 8601 as in 2026-03-29T08:00+02:00; without a zone "
    "it is a local time of the machine that reads it. Left out: when it is resumed.",
)
FOR: Final = Parameter(
    "for", "DURATION", "After how long the pause ends by itself: 90min, 2h.", in_jobs=False
)
AUTHOR: Final = Parameter(
    "author",
    "NAME",
    "Who wants it; the ledger keeps it, with the user that the system knows.",
    is_required=True,
    default="the user of this system",
)
BY: Final = (
    AUTHOR,
    Parameter(
        "reason", "TEXT", "Why it is wanted, in a few words; the ledger keeps it.", is_required=True
    ),
)


def target_of(group: str | None, resource: str | None) -> Target:
    """What a verb is about, by the name that was given; everything where none was given.

    Raises:
        UnknownTargetError: Both names were given, or a name is empty.
    """
    if group is not None and resource is not None:
        raise UnknownTargetError("name a group or a resource, not both")
    name = resource if group is None else group
    if name is None:
        return EVERYTHING
    if not name:
        raise UnknownTargetError("the name of a group or a resource is empty")
    return Target(scope=Scope.RESOURCE if group is None else Scope.GROUP, name=name)


def end_of(now: datetime, until: str | None, span: str | None = None) -> datetime | None:
    """The moment at which something ends, by what was typed; None where nothing was typed.

    `until` is a moment in ISO 8601, without a zone a local time of this machine, or `span` is a
    duration from now, written as in the configuration.

    Raises:
        KeeperError: It cannot be read, or both were given.
    """
    if until is not None and span is not None:
        raise KeeperError("say until when or for how long, not both")
    typed, wanted = until, "until when, as in 2026-03-29T08:00"
    try:
        if until is not None:
            return datetime.fromisoformat(until).astimezone(UTC)
        typed, wanted = span, "for how long"
        return now + parse_duration(span) if span is not None else None
    except (ValueError, OverflowError) as error:
        raise KeeperError(f"{typed!r} does not say {wanted}: {error}") from None


def _target(values: Values) -> Target:
    return target_of(values["group"], values["resource"])


def _resource(values: Values) -> str:
    return values["resource"] or ""


def by(values: Values) -> dict[str, str]:
    """Who wants it, as was typed, with who the system knows it is in parentheses; and why."""
    author, known = (values["author"] or "").strip(), values.get(KNOWN)
    if author and known and author != known:
        author = f"{author} ({known})"
    return {"author": author, "reason": values["reason"] or ""}


def by_declaration(values: Values) -> dict[str, str]:
    """The same for a verb that needs no reason: that it is declared is one."""
    return by({**values, "reason": values["reason"] or "config.yaml declares it"})


def os_user() -> str:
    """The user of this process by the system itself: variables can say anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a user without a name
        return f"uid {os.getuid()}"


def _pause(operations: "Operations", values: Values) -> str:
    until = end_of(operations.clock(), values["until"], values.get("for"))
    return operations.pause(_target(values), **by(values), until=until)


CHECK: Final = Command(
    "check",
    "Shows what would be restarted and how, and changes nothing.",
    "Reads the configuration, connects to the databases, pings AMS, builds every container "
    "and prints, per group, the orphans with the exact commands that would start them. Secrets are "
    "hidden. Exit code 0: all is well; 1: something has to be put right; 2: the configuration "
    "cannot be used.",
    (),
)
STATUS: Final = Command(
    "status",
    "Shows groups, live optimizers and orphans, and what happens next and when.",
    "It also shows which deployment acts, what each group is short of, and what is paused. "
    "It changes nothing.",
    (replace(GROUP, help="The name of a group, as the registry has it. Left out: all groups."),),
)
METRICS: Final = Command(
    "metrics",
    "Prints what Prometheus scrapes: orphans, attempts, recoveries and give-ups of each group.",
    "As OpenMetrics, for whatever serves or pushes it. Reads what the last completed survey and "
    "the ledger say, and changes nothing.",
    (
        Parameter(
            "file",
            "PATH",
            "Writes them there instead, as the textfile collector of the node exporter reads "
            "them: a whole file takes the place of the one before. Its name has to end with .prom.",
            in_jobs=False,
        ),
    ),
)
APPLY: Final = Command(
    "apply",
    "Makes the fleet what the section `fleet` of config.yaml declares.",
    "Adds what is missing and starts it, and starts anew what is declared otherwise than before. "
    "What is with a run at this moment, or paused, is left, and said; so is a start that failed, "
    "which the keeper goes on with. Said again, it goes on where it was. Workers start on the "
    "host on which it runs, where their container is of one host.",
    (
        AUTHOR,
        Parameter("reason", "TEXT", "Why; the ledger keeps it. Left out: it is declared."),
    ),
)
VERBS: Final = (
    Verb(
        "pause",
        "Lets nothing be started or removed.",
        "That holds everywhere, unless a group or a resource is named. Incidents are still "
        "opened and closed. A pause without an end lasts until it is resumed; pausing again "
        "replaces the earlier pause.",
        (GROUP, RESOURCE, UNTIL, FOR, *BY),
        _pause,
    ),
    Verb(
        "resume",
        "Ends a pause: that of everything, unless a group or a resource is named.",
        "",
        (GROUP, RESOURCE, *BY),
        lambda operations, values: operations.resume(_target(values), **by(values)),
    ),
    Verb(
        "restart-now",
        "Has an orphan restarted without waiting for the end of its grace period.",
        "It counts as an attempt, and is made even where the attempts are used up.",
        (ORPHAN, *BY),
        lambda operations, values: operations.restart_now(_resource(values), **by(values)),
    ),
    Verb(
        "reset",
        "Gives a resource, or all of a group, a fresh budget of attempts.",
        "The scale-up rounds of a group count no longer either. It also works where a "
        "resource recovered so lately that its attempts would still count.",
        (
            replace(GROUP, help="The name of a group: all its orphans, and its scale-up rounds."),
            RESOURCE,
            *BY,
        ),
        lambda operations, values: operations.reset(_target(values), **by(values)),
    ),
    Verb(
        "give-up",
        "Has an orphan given up without further attempts.",
        "It is released, and its row moves from the registry to the ledger, from where the "
        "verb restore puts it back.",
        (ORPHAN, *BY),
        lambda operations, values: operations.give_up(_resource(values), **by(values)),
    ),
    Verb(
        "restore",
        "Puts the row of a resource that was given up or superseded back as it was.",
        "A new incident is opened for it, so that it is restarted after its grace period.",
        (REMOVED, *BY),
        lambda operations, values: operations.restore(_resource(values), **by(values)),
    ),
    Verb(
        "acknowledge",
        "Says that somebody looks after a resource that was given up, or is kept.",
        "The check nothing_given_up passes for it from then on; nothing else changes.",
        (LOST, *BY),
        lambda operations, values: operations.acknowledge(_resource(values), **by(values)),
    ),
    Verb(
        "scale-in",
        "Stops a worker for good, and removes its row.",
        "At once and here: where its container is of one host, on the host of the worker. Its "
        "incident is closed, if it has one. What is declared comes back with the next apply.",
        (WORKER, *BY),
        lambda operations, values: operations.scale_in(_resource(values), **by(values)),
    ),
)
