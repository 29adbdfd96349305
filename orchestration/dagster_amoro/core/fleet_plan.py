"""What is to be done so that the fleet is as config.yaml declares it? The difference, as a plan.

A row that was declared says so itself, by its property `declared`. Without it a row came another
way, by `scale_out` or since its group was below its min-parallelism: it is never released.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final, NamedTuple

from dagster_amoro.core.errors import PropertiesError
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.groups import MIN_PARALLELISM, Group
from dagster_amoro.core.model import Incident, Orphan, Resource
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.properties import dump_properties, parse_properties

DECLARED: Final = "declared"
"""The property of a declared row: the properties that were declared for it, as JSON.

What else its properties hold is of its last start.
"""
STARTED_BY: Final = "declared-start"
"""The property of a declared row that says which process is to start its worker; empty: one did."""
NOBODY: Final = "nobody"
"""Its value where that did not work."""
DECLARED_GROUP: Final = "declared-group"
"""The property of a declared group."""
RESERVED: Final = frozenset({DECLARED, STARTED_BY, DECLARED_GROUP, MIN_PARALLELISM})
"""Properties that a declaration cannot give to workers."""
_SHOWN: Final = 20  # steps of each kind
_GIVEN_UP: Final = "it was given up, and comes back by restore, or by apply on the command line"


@dataclass(frozen=True, kw_only=True, slots=True)
class DeclaredGroup:
    """A group and its workers, as config.yaml declares them."""

    name: str
    container_name: str  # where it is filled up, if it is below its min-parallelism
    properties: Mapping[str, str] = field(default_factory=dict)  # with its min-parallelism
    workers: tuple[Resource, ...] = ()  # their properties without those of a start


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetRows:
    """What the registry has of a declared fleet, at one moment."""

    groups: Mapping[str, Group] = field(default_factory=dict)  # all there are, by name
    rows: Mapping[str, Orphan] = field(default_factory=dict)  # of declared resources, by id
    registered: Collection[str] = frozenset()  # those of them that an optimizer names


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetInputs:
    """What a plan is made from."""

    stored: FleetRows
    incidents: Mapping[str, Incident] = field(default_factory=dict)  # that are open, by resource
    pauses: Pauses = field(default_factory=Pauses)
    # In whose hands an incident is, so that its resource has to be left alone; None: in nobody's.
    in_hands: Callable[[Incident], str | None] = lambda _: None
    has_ended: Callable[[str], bool] = lambda _: True  # whether a process that applies is over
    heals: bool = True  # whether orphans are restarted by the keeper
    given_up: Collection[str] = frozenset()  # resources that are left to a person


class Action(StrEnum):
    """What is done about a resource."""

    ADD = "add"  # its row and a worker
    CHANGE = "change"  # its row, and its worker is started anew
    START = "start"  # a worker: its row is as declared
    ADOPT = "adopt"  # its row is a declared one from now on, and its worker stays as it is
    RELEASE = "release"  # its worker is stopped, its row removed
    LEAVE = "leave"  # nothing for now, though it is not as declared


class Step(NamedTuple):
    """What is done about one resource, and why."""

    action: Action
    resource_id: str
    group_name: str
    what: str  # what differs, or why it is left
    row: Orphan | None = None  # as it stands; None: there is none
    declared: Resource | None = None  # what it is to be; None: it is not to be

    @property
    def container_name(self) -> str:
        """Of the container that has the most to do."""
        of = self.declared or self.row
        return (of.container_name or "") if of else ""


class GroupStep(NamedTuple):
    """What a group is to be from now on."""

    name: str
    container_name: str
    properties: Mapping[str, str]
    what: str  # what differs
    is_release: bool = False  # it is declared no longer


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetPlan:
    """All that differs from the declaration."""

    groups: tuple[GroupStep, ...] = ()
    steps: tuple[Step, ...] = ()

    def to_do(self, *, release: bool = False) -> "FleetPlan":
        """The part of it that can be done; what is declared no longer only where `release`."""
        not_now = {Action.LEAVE, *(() if release else (Action.RELEASE,))}
        return FleetPlan(
            groups=tuple(each for each in self.groups if release or not each.is_release),
            steps=tuple(each for each in self.steps if each.action not in not_now),
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing differs."""
        return not (self.groups or self.steps)

    @property
    def leaves(self) -> bool:
        """Whether something differs that cannot be done now."""
        return any(step.action is Action.LEAVE for step in self.steps)

    @property
    def summary(self) -> str:
        """How many steps of each kind: "3 to add, 1 to change"."""
        numbers = {each: sum(step.action is each for step in self.steps) for each in Action}
        parts = [f"{number:,} to {each}" for each, number in numbers.items() if number]
        groups = [f"{counted(len(self.groups), 'group')} to change"] if self.groups else []
        return ", ".join([*groups, *parts]) or "the fleet is as declared"


def plan_fleet(fleet: Sequence[DeclaredGroup], inputs: FleetInputs) -> FleetPlan:
    """What differs between a declaration and what is there."""
    declared = {worker.resource_id for group in fleet for worker in group.workers}
    steps = (_step(worker, inputs) for group in fleet for worker in group.workers)
    gone = (row for name, row in inputs.stored.rows.items() if name not in declared)
    return FleetPlan(
        groups=(*_groups(fleet, inputs.stored.groups), *_gone_groups(fleet, inputs.stored.groups)),
        steps=(*(step for step in steps if step), *_releases(gone, inputs)),
    )


def declared_row(declared: Resource, started_by: str = "") -> Resource:
    """A resource as its row has it before its first start, with its mark."""
    mark = {DECLARED: dump_properties(declared.properties), STARTED_BY: started_by}
    return replace(declared, properties={**declared.properties, **mark})


# --- Workers -------------------------------------------------------------------------------------


def _step(declared: Resource, inputs: FleetInputs) -> Step | None:
    """What is to be done about a declared worker; None: nothing."""
    name = declared.resource_id
    row = inputs.stored.rows.get(name)
    step = Step(Action.ADD, name, declared.group_name, _described(declared), row, declared)
    if row is not None:
        try:
            found = _difference(row, declared, inputs)
        except PropertiesError as error:
            return step._replace(action=Action.LEAVE, what=str(error))
        if found is None:
            return None
        step = step._replace(action=found[0], what=found[1])
    elif name in inputs.given_up:
        return step._replace(action=Action.LEAVE, what=_GIVEN_UP)
    return _unless_held(step, inputs)


def _difference(row: Orphan, declared: Resource, inputs: FleetInputs) -> tuple[Action, str] | None:
    properties = parse_properties(row.properties)
    mark = known = _mark(properties)
    if known is None:  # what else it has is of its starts
        known = {key: properties[key] for key in declared.properties if key in properties}
    if differences := ", ".join(_differences(row, declared, known)):
        return Action.CHANGE, differences
    if mark is None:
        return Action.ADOPT, "its row is as declared already"
    if row.resource_id not in inputs.stored.registered and _is_unstarted(row, properties, inputs):
        return Action.START, "it has no worker"
    return None


def _is_unstarted(row: Orphan, properties: Mapping[str, str], inputs: FleetInputs) -> bool:
    """Whether an apply was to start it and is over, or nobody else would start it."""
    incident = inputs.incidents.get(row.resource_id)
    if incident is not None:
        return may_start(incident, heals=inputs.heals)
    return bool(properties.get(STARTED_BY))


def may_start(incident: Incident, *, heals: bool) -> bool:
    """Whether a resource with this incident is an apply's to start, and not the keeper's.

    An apply has begun that, and is over; or the keeper restarts no orphans.
    """
    is_idle = not incident.attempts or incident.last_error is not None
    return incident.is_in_apply or (not heals and is_idle)


def _differences(row: Orphan, declared: Resource, known: Mapping[str, str]) -> Iterator[str]:
    pairs = {
        "group": (row.group_name, declared.group_name),
        "container": (row.container_name, declared.container_name),
        "threads": (row.thread_count, declared.thread_count),
        "memory": (row.total_memory or 0, declared.memory_mb),
    }
    for what, (before, after) in pairs.items():
        if before != after:
            yield f"{what} {before} \N{RIGHTWARDS ARROW} {after}"
    yield from _changed(known, declared.properties)


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """The names of properties that differ; their values may be secrets."""
    names = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    if names:
        yield f"properties {', '.join(names)}"


def _mark(properties: Mapping[str, str]) -> dict[str, str] | None:
    """The properties that were declared for a row; None: it was not declared."""
    try:
        return parse_properties(properties[DECLARED]) if DECLARED in properties else None
    except PropertiesError:  # somebody else has this property
        return None


def _is_declared(row: Orphan) -> bool:
    try:
        return _mark(parse_properties(row.properties)) is not None
    except PropertiesError:
        return False


def _releases(rows: Iterable[Orphan], inputs: FleetInputs) -> Iterator[Step]:
    for row in filter(_is_declared, rows):
        group = row.group_name or ""
        step = Step(Action.RELEASE, row.resource_id, group, "it is declared no longer", row)
        yield _unless_held(step, inputs)


def _unless_held(step: Step, inputs: FleetInputs) -> Step:
    pause = inputs.pauses.of(step.resource_id, step.group_name)
    incident = inputs.incidents.get(step.resource_id)
    owner = parse_properties(step.row.properties).get(STARTED_BY) if step.row else None
    if pause:
        why: str | None = str(pause)
    elif owner and not inputs.has_ended(owner):
        why = "another apply is starting it"
    else:
        why = inputs.in_hands(incident) if incident else None
    return step._replace(action=Action.LEAVE, what=why) if why else step


def _described(declared: Resource) -> str:
    memory = f" and {declared.memory_mb:,} MiB" if declared.memory_mb else ""
    threads = counted(declared.thread_count, "thread")
    return f"{threads}{memory} in container {declared.container_name}"


# --- Groups --------------------------------------------------------------------------------------


def _groups(fleet: Iterable[DeclaredGroup], stored: Mapping[str, Group]) -> Iterator[GroupStep]:
    for group in fleet:
        wanted = {**group.properties, DECLARED_GROUP: "true"}
        step = GroupStep(group.name, group.container_name, wanted, "")
        row = stored.get(group.name)
        if row is None:
            yield step._replace(what=f"new, in container {group.container_name}")
        elif differences := ", ".join(_group_differences(row, step)):
            yield step._replace(what=differences)


def _group_differences(row: Group, step: GroupStep) -> Iterator[str]:
    if row.container_name != step.container_name:
        yield f"container {row.container_name} \N{RIGHTWARDS ARROW} {step.container_name}"
    yield from _changed(_properties_of(row), step.properties)


def _gone_groups(
    fleet: Iterable[DeclaredGroup], stored: Mapping[str, Group]
) -> Iterator[GroupStep]:
    """Groups that are declared no longer: nothing is to fill them up any more."""
    declared = {group.name for group in fleet}
    for name in sorted(stored.keys() - declared):
        if DECLARED_GROUP in _properties_of(stored[name]):
            what = "it is declared no longer, and its size is kept no longer"
            yield GroupStep(name, stored[name].container_name or "", {}, what, is_release=True)


def _properties_of(group: Group) -> dict[str, str]:
    try:
        return parse_properties(group.properties)
    except PropertiesError:
        return {}


# --- For people ----------------------------------------------------------------------------------

_SIGNS: Final = {
    Action.ADD: "+",
    Action.CHANGE: "~",
    Action.START: ">",
    Action.ADOPT: "=",
    Action.RELEASE: "-",
    Action.LEAVE: "!",
}


def lines(plan: FleetPlan, *, release: bool = False) -> Iterator[str]:
    """The difference as a person reads it: a line for a step, then how many there are."""
    for group in plan.groups[:_SHOWN]:
        yield f"{'-' if group.is_release else '~'} group {group.name}: {group.what}"
    for action in Action:
        steps = [step for step in plan.steps if step.action is action]
        for step in steps[:_SHOWN]:
            yield f"{_SIGNS[action]} {step.resource_id} of group {step.group_name}: {step.what}"
        if more := len(steps) - _SHOWN:
            yield from [f"{_SIGNS[action]} and {more:,} more to {action}"] if more > 0 else []
    yield f"{plan.summary}."
    if not release and plan.to_do() != plan.to_do(release=True):
        yield "What is declared no longer is released with --release alone."
