"""The difference between a declared fleet and what is there."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.fleet_plan import (
    DECLARED,
    DECLARED_GROUP,
    NOBODY,
    STARTED_BY,
    Action,
    DeclaredGroup,
    FleetInputs,
    FleetPlan,
    FleetRows,
    declared_row,
    lines,
    plan_fleet,
)
from dagster_amoro.core.groups import Group
from dagster_amoro.core.model import Incident, Orphan, Resource
from dagster_amoro.core.pauses import EVERYTHING, Pause, Pauses
from dagster_amoro.core.properties import dump_properties, merge_properties, parse_properties
from tests.helpers.declared import a_group

NOW = datetime(2026, 3, 29, 0, 59, 30, tzinfo=UTC)
NAMES = st.sampled_from(["a", "b", "c", "d"])
PROPERTIES = st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["1", "2"]))


def row_of(resource: Resource) -> Orphan:
    """The row that the registry has of a resource."""
    properties = dump_properties(resource.properties)
    own = (resource.container_name, resource.thread_count, resource.memory_mb, properties)
    return Orphan(resource.resource_id, resource.group_name, *own)


def there(*groups: DeclaredGroup, **startup: str) -> FleetRows:
    """What the registry has once these groups were applied, and their workers have registered."""
    rows = {}
    for group in groups:
        for worker in group.workers:
            row = row_of(declared_row(worker))
            rows[worker.resource_id] = row._replace(
                properties=merge_properties(row.properties, startup)
            )
    stored = {
        each.name: Group(
            name=each.name,
            container_name=each.container_name,
            properties=dump_properties({**each.properties, DECLARED_GROUP: "true"}),
        )
        for each in groups
    }
    return FleetRows(groups=stored, rows=rows, registered=frozenset(rows))


def planned(stored: FleetRows, *fleet: DeclaredGroup, **inputs: Any) -> FleetPlan:  # noqa: ANN401 - of the inputs
    """The plan for a declaration."""
    return plan_fleet(fleet, FleetInputs(stored=stored, **inputs))


def actions(plan: FleetPlan) -> list[tuple[str, str]]:
    """What is done about which resource."""
    return [(str(step.action), step.resource_id) for step in plan.steps]


def an_incident(resource_id: str = "w-1", **changes: Any) -> Incident:  # noqa: ANN401 - of any field
    """An open incident of a resource."""
    return Incident(1, resource_id, "g", "recording", 2, NOW, **changes)


def test_what_is_not_there_is_added() -> None:
    """Groups first, then workers, in the order of the file."""
    plan = planned(FleetRows(), a_group(["w-2", "w-1"]), a_group(["x"], name="h"))
    assert actions(plan) == [("add", "w-2"), ("add", "w-1"), ("add", "x")]
    assert [(each.name, each.what) for each in plan.groups] == [
        ("g", "new, in container recording"),
        ("h", "new, in container recording"),
    ]
    assert plan.summary == "2 groups to change, 3 to add"


def test_what_is_as_declared_is_left_alone() -> None:
    """Whatever its starts have saved in its row."""
    group = a_group(["w-1"], properties={"k": "1"})
    plan = planned(there(group, **{"command-pid": "7"}), group)
    assert plan.is_empty
    assert [*lines(plan)] == ["the fleet is as declared."]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"thread_count": 3}, "threads 2 → 3"),
        ({"memory_mb": 512}, "memory 0 → 512"),
        ({"properties": {"secret": "x"}}, "properties secret"),
        ({"container": "other"}, "container recording → other"),
        ({"thread_count": 1, "memory_mb": 1}, "threads 2 → 1, memory 0 → 1"),
    ],
)
def test_what_is_declared_otherwise_is_changed(changes: dict[str, Any], what: str) -> None:
    """It says what differs; of properties the names alone, since values may be secrets."""
    plan = planned(there(a_group(["w-1"])), a_group(["w-1"], **changes))
    (step,) = plan.steps
    assert (step.action, step.what) == (Action.CHANGE, what)


def test_a_property_that_is_declared_no_longer_is_a_change() -> None:
    """One that a start has saved is none."""
    before = there(a_group(["w-1"], properties={"k": "1"}), pid="7")
    assert actions(planned(before, a_group(["w-1"], properties={"k": "1"}))) == []
    (step,) = planned(before, replace(a_group(["w-1"]), properties={"k": "1"})).steps
    assert step.what == "properties k"


def test_a_worker_that_came_another_way_is_adopted() -> None:
    """Where its row is as declared; else it is changed."""
    row = row_of(a_group(["w-1"]).workers[0])._replace(properties='{"pid":"7"}')
    stored = replace(there(a_group()), rows={"w-1": row}, registered=frozenset({"w-1"}))
    assert actions(planned(stored, a_group(["w-1"]))) == [("adopt", "w-1")]
    assert actions(planned(stored, a_group(["w-1"], thread_count=9))) == [("change", "w-1")]


def test_only_what_was_declared_is_ever_released() -> None:
    """A refill, or what `scale_out` made, is not; nor what cannot be read."""
    stored = there(a_group(["w-1", "w-2"]))
    others = {name: stored.rows["w-2"]._replace(resource_id=name) for name in ("refill", "broken")}
    others["refill"] = others["refill"]._replace(properties='{"Declared":"{}"}')
    others["broken"] = others["broken"]._replace(properties='{"declared":')
    stored = replace(stored, rows={**stored.rows, **others})
    plan = planned(stored, a_group(["w-1"]))
    assert actions(plan) == [("release", "w-2")]
    assert plan.to_do().is_empty
    assert actions(plan.to_do(release=True)) == [("release", "w-2")]
    assert [*lines(plan)][-1] == "What is declared no longer is released with --release alone."


def test_a_group_that_is_declared_no_longer_is_filled_up_no_longer() -> None:
    """With what it has of the declaration; one that was never declared stays as it is."""
    stored = there(a_group(properties={"min-parallelism": "4"}))
    own = Group(name="own", container_name="recording", properties='{"min-parallelism":"2"}')
    stored = replace(stored, groups={**stored.groups, "own": own})
    (step,) = planned(stored).groups
    assert (step.name, step.is_release, step.properties) == ("g", True, {})
    assert planned(stored).to_do().is_empty


def test_a_groups_properties_are_kept_as_declared() -> None:
    """Whoever has changed them meanwhile."""
    stored = there(a_group(properties={"min-parallelism": "4"}))
    (step,) = planned(stored, a_group(properties={"min-parallelism": "6"})).groups
    assert step.what == "properties min-parallelism"
    assert parse_properties(dump_properties(step.properties)) == {
        "min-parallelism": "6",
        DECLARED_GROUP: "true",
    }


START = [("start", "w-1")]
OWNER = "apply host 1 2.0 x"


@pytest.mark.parametrize(
    ("started_by", "incident", "heals", "expected"),
    [
        ("", None, True, []),
        ("", None, False, []),
        (OWNER, None, True, START),
        (NOBODY, None, True, START),
        (OWNER, an_incident(), True, []),
        ("", an_incident(), False, START),
        ("", an_incident(attempts=1), False, []),
        ("", an_incident(attempts=1, last_error="no"), False, START),
        ("", an_incident(claimed_by=OWNER), True, START),
        ("", an_incident(claimed_by="a-run"), True, []),
    ],
)
def test_a_declared_worker_that_was_never_started_is_started(
    started_by: str,
    incident: Incident | None,
    heals: bool,  # noqa: FBT001 - a case
    expected: list[tuple[str, str]],
) -> None:
    """What another apply has begun is finished; what died is the keeper's, where it heals."""
    stored = there(a_group(["w-1"]), **{STARTED_BY: started_by})
    stored = replace(stored, registered=frozenset())
    incidents = {"w-1": incident} if incident else {}
    plan = planned(stored, a_group(["w-1"]), incidents=incidents, heals=heals)
    assert actions(plan) == expected


def test_what_another_apply_is_starting_is_left() -> None:
    """As long as its process lives, whatever is declared here."""
    stored = replace(there(a_group(["w-1"]), **{STARTED_BY: OWNER}), registered=frozenset())
    for fleet in ([a_group(["w-1"])], [a_group(["w-1"], thread_count=9)], []):
        plan = planned(stored, *fleet, has_ended=lambda owner: owner != OWNER)
        (step,) = plan.steps
        assert (step.action, step.what) == (Action.LEAVE, "another apply is starting it")
        assert plan.leaves
    stored = replace(stored, registered=frozenset({"w-1"}))
    assert planned(stored, a_group(["w-1"]), has_ended=lambda _: False).steps == ()


def test_what_others_have_in_hand_is_left() -> None:
    """With the reason; and so is what is paused, of whatever kind the step is."""
    fleet = a_group(["w-1", "w-3"], thread_count=4)
    stored, incidents = there(a_group(["w-1", "w-2"])), {"w-1": an_incident()}
    plan = planned(stored, fleet, incidents=incidents, in_hands=lambda _: "a run has it in hand")
    changed, *_ = plan.steps
    assert (changed.action, changed.what) == (Action.LEAVE, "a run has it in hand")
    pause = Pause(target=EVERYTHING, author="ann", reason="a move", paused_at=NOW, until=None)
    plan = planned(stored, fleet, pauses=Pauses([pause], NOW))
    assert {step.what for step in plan.steps} == {"everything is paused by ann: a move"}
    assert plan.to_do(release=True).steps == ()


def test_what_was_given_up_stays_so_where_nobody_looks() -> None:
    """A person may add it anew."""
    plan = planned(FleetRows(), a_group(["w-1"]), given_up={"w-1"})
    assert actions(plan) == [("leave", "w-1")]
    assert actions(planned(FleetRows(), a_group(["w-1"]))) == [("add", "w-1")]


def test_a_row_that_cannot_be_read_is_left() -> None:
    """And the reason is said; a mark that cannot be is somebody else's property."""
    stored = there(a_group(["w-1"]))
    broken = {"w-1": stored.rows["w-1"]._replace(properties="{")}
    (step,) = planned(replace(stored, rows=broken), a_group(["w-1"])).steps
    assert step.action is Action.LEAVE
    assert step.what.startswith("properties cannot be read")
    foreign = {"w-1": stored.rows["w-1"]._replace(properties='{"declared":"[1"}')}
    assert actions(planned(replace(stored, rows=foreign), a_group(["w-1"]))) == [("adopt", "w-1")]


def test_many_steps_are_counted_instead_of_listed() -> None:
    """A screen is enough."""
    shown = [*lines(planned(FleetRows(), a_group([f"w-{n}" for n in range(1000)])))]
    assert len(shown) < 30
    assert "+ and 980 more to add" in shown
    assert shown[-1] == "1 group to change, 1,000 to add."


# --- Whatever is declared, and whatever is there ------------------------------------------------


@st.composite
def fleets(draw: st.DrawFn) -> tuple[DeclaredGroup, ...]:
    """Up to three groups with distinct workers."""
    ids = draw(st.lists(NAMES, unique=True))
    groups = draw(st.lists(st.sampled_from(["g", "h", "i"]), unique=True, min_size=1))
    found = []
    for number, name in enumerate(groups):
        mine = [each for at, each in enumerate(ids) if at % len(groups) == number]
        made = a_group(mine, name=name, properties=draw(PROPERTIES))
        workers = [
            replace(worker, thread_count=draw(st.integers(1, 2)), properties=draw(PROPERTIES))
            for worker in made.workers
        ]
        found.append(replace(made, workers=tuple(workers)))
    return tuple(found)


@st.composite
def registries(draw: st.DrawFn) -> FleetRows:
    """What an earlier declaration, people and starts have left."""
    earlier = there(*draw(fleets()), **draw(st.dictionaries(st.just("pid"), st.just("7"))))
    rows = dict(earlier.rows)
    for name in draw(st.lists(st.sampled_from([*rows] or ["a"]), unique=True)):
        if draw(st.booleans()):
            rows.pop(name, None)
        else:
            properties = draw(st.sampled_from(["{}", '{"k":"1"}', None, ""]))
            rows[name] = Orphan(name, "g", "recording", 2, 0, properties)
    return replace(earlier, rows=rows)


def after(stored: FleetRows, plan: FleetPlan) -> FleetRows:
    """What the registry has once a plan was carried out and everything has registered."""
    rows, groups = dict(stored.rows), dict(stored.groups)
    for group in plan.groups:
        properties = dump_properties(group.properties)
        groups[group.name] = Group(
            name=group.name, container_name=group.container_name, properties=properties
        )
    for step in plan.steps:
        if step.action is Action.RELEASE:
            del rows[step.resource_id]
        elif step.action is Action.ADOPT and step.row and step.declared:
            mark = {DECLARED: dump_properties(step.declared.properties)}
            merged = merge_properties(step.row.properties, mark)
            rows[step.resource_id] = step.row._replace(properties=merged)
        elif step.declared:
            rows[step.resource_id] = row_of(declared_row(step.declared))
    return FleetRows(groups=groups, rows=rows, registered=frozenset(rows))


@given(fleets(), registries(), st.booleans())
def test_a_plan_that_was_carried_out_leaves_nothing_to_do(
    fleet: tuple[DeclaredGroup, ...],
    stored: FleetRows,
    release: bool,  # noqa: FBT001 - a case
) -> None:
    """Whatever was there: the second plan is empty, but for what is not to be released."""
    done = after(stored, planned(stored, *fleet).to_do(release=release))
    assert planned(done, *fleet).to_do(release=release).is_empty
    for group in fleet:
        for worker in group.workers:
            row = done.rows[worker.resource_id]
            assert row[:4] == row_of(worker)[:4]
            assert worker.properties.items() <= parse_properties(row.properties).items()


@given(fleets(), registries())
def test_a_part_of_a_plan_is_completed_by_the_next_one(
    fleet: tuple[DeclaredGroup, ...], stored: FleetRows
) -> None:
    """Cut off after any step, the next plan has what was left, and nothing is done twice."""
    whole = planned(stored, *fleet).to_do(release=True)
    for number in range(len(whole.steps) + 1):
        begun = FleetPlan(groups=whole.groups, steps=whole.steps[:number])
        rest = planned(after(stored, begun), *fleet).to_do(release=True)
        left = {step.resource_id for step in whole.steps[number:]}
        assert {step.resource_id for step in rest.steps} <= left
        assert planned(after(after(stored, begun), rest), *fleet).to_do(release=True).is_empty
