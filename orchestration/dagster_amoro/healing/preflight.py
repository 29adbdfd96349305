"""What would happen here? A report for an operator, before the configuration is trusted.

Nothing is changed: no row, no table, no file, no process.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from typing import Final

from dagster_amoro.ams.client import Ams
from dagster_amoro.config import ContainerSettings, Settings
from dagster_amoro.containers.base import Container
from dagster_amoro.containers.preview import Preview, preview
from dagster_amoro.containers.resolve import opts_out, says_it_restarts
from dagster_amoro.core.ams_restart import settling_time
from dagster_amoro.core.errors import (
    AmsUnavailableError,
    ContainerError,
    KeeperError,
    StoreUnavailableError,
    describe,
)
from dagster_amoro.core.fleet_plan import DeclaredGroup
from dagster_amoro.core.formatting import counted, duration
from dagster_amoro.core.model import Orphan
from dagster_amoro.core.texts import Shown, shown_lines
from dagster_amoro.core.tick_inputs import Obstacle
from dagster_amoro.core.tick_plan import obstacle_of, obstacles_of_groups
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.hosting import Hosting, find_hosting
from dagster_amoro.healing.reading import Recorded, with_starting
from dagster_amoro.healing.restart import resource_of
from dagster_amoro.stores import registry, schema
from dagster_amoro.stores.database import Database, has_tables
from dagster_amoro.stores.dry_run import DryRunRegistry
from dagster_amoro.stores.ledger import count_open
from dagster_amoro.stores.migrations import ensure_known

_LOOKED_AT: Final = 1000  # resources of a container, for the hosts that their rows name
SHOWN: Final = 5  # orphans of a group that are shown with their commands


class Grade(StrEnum):
    """How serious a finding is."""

    GOOD = "ok"
    WARNING = "warning"  # works, and may not be what was meant
    PROBLEM = "problem"  # has to be put right


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined."""

    grade: Grade
    subject: str
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """How a resource would be started."""

    resource_id: str
    command: str  # what would be run or sent; empty: nothing
    obstacle: str  # why nothing would be; empty: it would
    differences: tuple[str, ...] = ()  # from what AMS would run or send


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """What would be done in a group."""

    name: str
    resources: int
    orphans: int
    starting: int  # resources that are too young to be orphans
    restarts: tuple[Start, ...]  # of its orphans; `SHOWN` at most
    example: Start | None  # of a resource that is well, where there is no orphan


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that was found."""

    findings: tuple[Finding, ...]
    groups: tuple[Group, ...]

    @property
    def is_good(self) -> bool:
        """Whether nothing has to be put right."""
        return all(finding.grade is not Grade.PROBLEM for finding in self.findings)


def examine(settings: Settings, services: Services) -> Report:
    """Examines everything that the keeper works with, and changes nothing."""
    findings = list(_findings(settings, services))
    groups: tuple[Group, ...] = ()
    try:
        groups = tuple(_groups(services))
    except KeeperError as error:
        findings.append(_problem("survey", error))
    return Report(findings=tuple(findings), groups=groups)


_Found = Iterator[tuple[Grade, str]]
"""What is found about one subject; a KeeperError is a problem, and the last that is found."""


def _findings(settings: Settings, services: Services) -> Iterator[Finding]:
    ams, database, ledger = services.ams, services.registry.database, services.ledger.database
    hosting = find_hosting(os.environ)
    yield Finding(Grade.GOOD, "configuration", str(settings.source))
    for warning in settings.warnings:
        yield Finding(Grade.WARNING, "configuration", warning)
    yield from _policy(settings, is_attached=ams is not None)
    if ams is None:
        yield Finding(Grade.GOOD, "AMS", "none: the registry is our own")
    else:
        yield from _about("AMS", _ams(ams))
        yield from _about("version of AMS", _version(ams))
    if not settings.containers:
        message = "none is configured, so that nothing can be restarted"
        yield Finding(Grade.PROBLEM, "containers", message)
    for name, entry in settings.containers.items():
        yield from _about(f"container {name}", _container(services, entry, hosting))
    if settings.fleet is not None:
        yield Finding(Grade.GOOD, "fleet", _declared(settings.fleet))
    found = chain(_registry(database, is_ours=ams is None), _file(database, hosting))
    yield from _about(f"registry {_url(database)}", found)
    yield from _about(f"ledger {_url(ledger)}", chain(_ledger(ledger), _file(ledger, hosting)))
    yield from _about("audit", _audit(settings, hosting))


def _declared(fleet: Sequence[DeclaredGroup]) -> str:
    workers = counted(sum(len(group.workers) for group in fleet), "worker")
    groups = counted(len(fleet), "group")
    return f"{workers} in {groups} declared; dagster-amoro apply --dry-run shows what differs"


def _about(subject: str, found: _Found) -> Iterator[Finding]:
    try:
        for grade, message in found:
            yield Finding(grade, subject, message)
    except KeeperError as error:
        yield _problem(subject, error)


def _problem(subject: str, error: KeeperError) -> Finding:
    return Finding(Grade.PROBLEM, subject, describe(error))


def _url(database: Database) -> str:
    return database.url.render_as_string(hide_password=True)


def _policy(settings: Settings, *, is_attached: bool) -> Iterator[Finding]:
    policy, grace = settings.restart, duration(settings.restart.grace_period)
    if policy.enabled:
        look = f"a look every {duration(settings.check_interval)}"
        message = f"{policy.max_retries} attempts, {grace} apart; {look}"
        yield Finding(Grade.GOOD, "auto-restart", message)
    else:
        message = "off (ams.optimizer.auto-restart-enabled): orphans are recorded and left alone"
        yield Finding(Grade.WARNING, "auto-restart", message)
    settling = settling_time(settings.heartbeat_timeout)
    if is_attached and policy.grace_period < settling:
        message = (
            f"{grace} is shorter than the {duration(settling)} that optimizers may take to "
            "register again after a restart of AMS"
        )
        yield Finding(Grade.WARNING, "grace period", message)


def _ams(ams: Ams) -> _Found:
    server = ams.ping()
    yield Grade.GOOD, f"answers at {server.host}:{server.thrift_port}"


def _version(ams: Ams) -> _Found:
    ams.ams_version()
    try:
        yield Grade.GOOD, ams.version()
    except AmsUnavailableError:
        yield Grade.GOOD, "as keeper.ams-version says; AMS does not say it"


def _container(services: Services, entry: ContainerSettings, hosting: Hosting) -> _Found:
    try:
        container = services.containers.get(entry.name)
        if says_it_restarts(container, entry):
            own = getattr(container, "own", container)
            yield Grade.GOOD, entry.implementation
            yield from ((Grade.PROBLEM, each) for each in getattr(own, "problems", list)())
            yield from _programs(own)
            if getattr(own, "is_of_one_host", False):
                yield from _workers(services.registry.database, entry.name, hosting)
        else:
            yield Grade.WARNING, opts_out(entry.name)
    except ContainerError as error:
        yield Grade.PROBLEM, str(error)
    for key in _expandable(entry.properties):
        expanded = "AMS's shell would expand its value; here it is taken as it stands"
        yield Grade.WARNING, f"property {key}: {expanded}, so write down what it expands to"


def _workers(database: Database, container: str, hosting: Hosting) -> _Found:
    """Whether workers that are processes of a host are in the right place on this one."""
    found: list[str | None] = []
    with suppress(StoreUnavailableError):  # what is said of the registry
        if has_tables(database, registry.resource):
            found = registry.some_properties(database, container, _LOOKED_AT)
    yield from ((Grade.WARNING, each) for each in hosting.of_workers(found))


def _programs(container: Container) -> _Found:
    """What a container of ours gives the programs that it runs; their values can be secrets."""
    environment = getattr(container, "environment", None)
    if environment is None or not hasattr(container, "command"):
        return
    yield Grade.GOOD, f"its programs get {', '.join(sorted(environment.variables))}"
    for note in environment.notes:
        yield Grade.WARNING, note
    if ask := getattr(container, "java", None):
        is_same, message = ask()
        yield Grade.GOOD if is_same else Grade.WARNING, message


def _expandable(properties: Mapping[str, str]) -> list[str]:
    """The exports whose values a shell would expand."""
    exports = {key: value for key, value in properties.items() if key.startswith("export.")}
    return [key for key, value in exports.items() if "$" in value or "`" in value]


def _registry(database: Database, *, is_ours: bool) -> _Found:
    if not has_tables(database, registry.resource):
        creator = "; the first tick creates them" if is_ours else " of Amoro's"
        yield Grade.GOOD if is_ours else Grade.PROBLEM, f"has no tables yet{creator}"
        return
    refused = registry.missing_rights(database)
    for right, why in refused.items():
        yield Grade.PROBLEM, f"may not {right}: {why}"
    if not refused:
        yield Grade.GOOD, "may do all that is needed"


def _ledger(database: Database) -> _Found:
    if has_tables(database, schema.incident):
        ensure_known(database)
        yield Grade.GOOD, f"{count_open(database)} open incidents"
    else:
        yield Grade.GOOD, "is not there yet; the first tick creates it"


def _file(database: Database, hosting: Hosting) -> _Found:
    """Whether a database that is a file is in the right place on this host."""
    if database.url.get_backend_name() == "sqlite":
        yield from ((Grade.WARNING, each) for each in hosting.of_files("a database server"))


def _audit(settings: Settings, hosting: Hosting) -> _Found:
    if "://" not in (settings.audit.storage or ""):
        better = "an object store (keeper.audit-storage)"
        yield from ((Grade.WARNING, each) for each in hosting.of_files(better))


def _groups(services: Services) -> Iterator[Group]:
    database = services.registry.database
    if not has_tables(database, registry.resource):
        return
    orphans: dict[str, list[Orphan]] = {}
    timeout = services.registry.heartbeat_timeout
    seen = DryRunRegistry(database, timeout, frozenset).read_snapshot()  # expires no heartbeats
    snapshot = with_starting(seen, Recorded(), services.policy, services.clock())
    starting = Counter(each.group_name or "" for each in snapshot.starting.values())
    for orphan in snapshot.orphans.values():
        orphans.setdefault(orphan.group_name or "", []).append(orphan)
    of_group = obstacles_of_groups(snapshot, services.settings)
    examples = registry.examples(database)
    for name, number in sorted(registry.group_sizes(database).items()):
        dead = orphans.get(name, [])
        example = examples.get(name) if not dead else None
        yield Group(
            name=name,
            resources=number,
            orphans=len(dead),
            starting=starting[name],
            restarts=tuple(_start(services, of_group, orphan) for orphan in dead[:SHOWN]),
            example=_start(services, of_group, example) if example else None,
        )


def _start(services: Services, of_group: Obstacle, orphan: Orphan) -> Start:
    found, containers = Preview(""), services.containers
    try:
        obstacle = of_group(orphan.group_name) or ""
        obstacle = obstacle or obstacle_of(orphan, containers.obstacle, services.settings) or ""
        if not obstacle:
            container = containers.get(orphan.container_name or "")
            found = preview(container, resource_of(orphan))
    except KeeperError as error:
        obstacle = describe(error)
    return Start(
        resource_id=orphan.resource_id,
        command=found.text,
        obstacle=obstacle,
        differences=found.differences,
    )


def render(report: Report) -> Shown:
    """The report as a text for a terminal."""
    width = max(len(finding.grade) for finding in report.findings)
    lines = [
        f"{found.grade:{width}}  {found.subject}: {found.message}" for found in report.findings
    ]
    for group in report.groups:
        lines += ["", *_rendered(group)]
    problems = sum(finding.grade is Grade.PROBLEM for finding in report.findings)
    verdict = f"{problems} to be put right" if problems else "nothing to be put right"
    return shown_lines([*lines, "", f"{verdict}; nothing was changed"])


def _rendered(group: Group) -> Iterator[str]:
    resources, orphans = counted(group.resources, "resource"), counted(group.orphans, "orphan")
    starting = f", {group.starting} starting" if group.starting else ""
    yield f"group {group.name}: {resources}, {orphans}{starting}"
    for start in group.restarts:
        yield from _lines("orphan", start)
    if more := group.orphans - len(group.restarts):
        yield f"  and {counted(more, 'more orphan')}"
    if group.example:
        yield from _lines("if it died,", group.example)


def _lines(what: str, start: Start) -> Iterator[str]:
    if start.obstacle:
        yield f"  {what} {start.resource_id} would be left alone: {start.obstacle}"
        return
    yield f"  {what} {start.resource_id} would be started with"
    yield from (f"    {line}" for line in start.command.splitlines())
    yield from (f"    unlike AMS: {difference}" for difference in start.differences)
