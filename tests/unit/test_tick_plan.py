"""One look at the registry: what opens, what closes, what is due and which runs that makes."""

import string
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.looks import Look
from dagster_amoro.core.model import (
    EventKind,
    Incident,
    OperatorRequest,
    Orphan,
    ScaleUp,
    ScaleUpState,
    State,
    Transition,
)
from dagster_amoro.core.policy import OnExhausted, Replacement, RestartPolicy, RunState, Verdict
from dagster_amoro.core.registrations import DOUBTFUL
from dagster_amoro.core.tick_inputs import Changes, RegistrySnapshot, TickInputs
from dagster_amoro.core.tick_plan import (
    TickPlan,
    missing,
    obstacle_of,
    plan_tick,
    reconcile,
    run_plans,
)
from tests.helpers.inputs import EMPTY, GRACE, INPUTS, NOW, SETTINGS, group, inputs_of, refilled

SECOND: Final = timedelta(seconds=1)
OF_CURSOR: Final = "0123456789abcdef"  # the token of a cursor
IDS: Final = [f"r{number}" for number in range(6)]
OPEN_STATES: Final = [state for state in State if state.is_open]
REMOVING: Final = {State.GIVING_UP, State.SUPERSEDING, State.RELEASING}


def orphan(resource_id: str = "r0", properties: str | None = "{}") -> Orphan:
    """An orphan of group g that can be restarted."""
    return Orphan(resource_id, "g", "c", 2, 1024, properties)


def survey(*orphans: Orphan) -> RegistrySnapshot:
    """A look that found these orphans."""
    return RegistrySnapshot(
        resources=10, groups=("g",), orphans={o.resource_id: o for o in orphans}
    )


def incident(  # noqa: PLR0913 - what the tests vary
    resource_id: str = "r0",
    *,
    number: int = 1,
    state: State = State.WAITING,
    age: timedelta = GRACE,
    attempts: int = 0,
    group: str = "g",
    note: str | None = None,
) -> Incident:
    """An incident that is due, unless told otherwise."""
    return Incident(
        incident_id=number,
        resource_id=resource_id,
        group_name=group,
        container_name="c",
        thread_count=2,
        detected_at=NOW - age,
        state=state,
        attempts=attempts,
        attempted_at=NOW - age if attempts else None,
        note=note,
    )


def inputs(
    *,
    obstacle: str | None = None,
    runs: dict[str, RunState] | None = None,
    enabled: bool = True,
    max_retries: int = 5,
) -> TickInputs:
    """Containers that can restart, or cannot for this reason; runs as Dagster knows them."""
    return replace(
        INPUTS,
        policy=RestartPolicy(enabled=enabled, max_retries=max_retries, grace_period=GRACE),
        obstacle=lambda _: obstacle,
        runs=runs or {},
    )


def planned(
    seen: RegistrySnapshot, incidents: Sequence[Incident], base: TickInputs = INPUTS
) -> TickPlan:
    """The plan of a tick whose incidents are those of what it saw."""
    return plan_tick(inputs_of(seen, incidents, base))


def steps_of(
    seen: RegistrySnapshot, incidents: Sequence[Incident], present: AbstractSet[str]
) -> list[Transition]:
    """What opens and closes."""
    return reconcile(inputs_of(seen, incidents, present=present))


def verdicts(plan: TickPlan) -> list[Verdict]:
    """What is decided about those that are not due."""
    return [decision.verdict for _, decision in plan.waiting]


# --- What opens and closes -----------------------------------------------------------------------


def test_a_new_orphan_opens_an_incident() -> None:
    """An incident opens for an orphan that has none."""
    (step,) = steps_of(survey(orphan()), [], set())
    assert step.before is None
    assert (step.after.resource_id, step.after.detected_at) == ("r0", NOW)


def test_a_known_orphan_opens_nothing() -> None:
    """An orphan whose incident is open goes on being the same incident."""
    for state in set(OPEN_STATES) - {State.RELEASING}:
        assert steps_of(survey(orphan()), [incident(state=state)], set()) == []


def test_a_resource_whose_row_is_back_is_an_orphan_as_before() -> None:
    """What its attempt started is no longer to be released."""
    (step,) = steps_of(survey(orphan()), [incident(state=State.RELEASING, attempts=1)], set())
    assert (step.after.state, step.after.attempts) == (State.WAITING, 1)


@pytest.mark.parametrize(
    ("attempts", "message"),
    [
        (0, "an optimizer registered for it by itself"),
        (3, "an optimizer registered for it after attempt 3"),
    ],
)
def test_a_resource_that_stands_again_has_recovered(attempts: int, message: str) -> None:
    """Its row is there and it is no orphan: an optimizer registered, by itself or not."""
    for state in OPEN_STATES:
        known = incident(state=state, attempts=attempts)
        (step,) = steps_of(survey(), [known], {"r0"})
        assert (step.before, step.after.state, step.event.message) == (
            known,
            State.RECOVERED,
            message,
        )


def test_a_resource_whose_row_is_gone_was_released() -> None:
    """Its row is not there: somebody took it back."""
    for state in set(OPEN_STATES) - REMOVING:
        (step,) = steps_of(survey(), [incident(state=state)], set())
        assert step.after.state is State.RELEASED


def test_what_an_attempt_started_is_released_where_its_row_is_gone() -> None:
    """By a run; not while a run has it, which sees it by itself."""
    for state in set(OPEN_STATES) - REMOVING:
        known = incident(state=state, attempts=1)
        (step,) = steps_of(survey(), [known], set())
        assert step.after.state is State.RELEASING
        plan = planned(survey(), [step.after])
        assert list(plan.verdicts.values()) == [Verdict.RELEASE]
    held = known._replace(state=State.CLAIMED, claimed_by="run", claimed_until=NOW + GRACE)
    assert steps_of(survey(), [held], set()) == []
    (dry,) = steps_of(survey(), [known._replace(dry_run=True)], set())
    assert dry.after.state is State.RELEASED  # nothing was started


def registered(known: Incident, tokens: dict[str, str]) -> list[Transition]:
    """The steps where these optimizers stand for a resource, when each was touched last."""
    base = inputs_of(survey(), [known], present={"r0"})
    assert base.changes is not None
    return reconcile(replace(base, changes=replace(base.changes, registrations={"r0": tokens})))


def test_a_registration_that_may_have_been_stopped_counts_once_it_is_touched_again() -> None:
    """So does one that was not there then."""
    known = incident(attempts=1)._replace(doubted='{"old": "12:00"}')
    assert registered(known, {"old": "12:00"}) == []
    assert registered(known, {}) == []
    for tokens in ({"old": "12:01"}, {"old": "12:00", "new": "12:00"}):
        (step,) = registered(known, tokens)
        assert step.after.state is State.RECOVERED
    plan = plan_tick(inputs_of(survey(), [known], present={"r0"}))
    assert plan.due == ()
    assert [decision.reason for _, decision in plan.waiting] == [DOUBTFUL]


def test_a_registration_is_doubted_where_a_run_was_lost_within_its_attempt() -> None:
    """It may have stopped just that; as long as the run has it, the run itself looks."""
    lost = incident(attempts=1, state=State.CLAIMED)._replace(is_attempting=True)
    (step,) = registered(lost, {"one": "12:00"})
    assert (step.after.state, step.after.doubted) == (State.CLAIMED, '{"one": "12:00"}')
    assert (step.after.is_attempting, step.after.attempts_used) == (False, 0)
    held = lost._replace(claimed_by="run", claimed_until=NOW + GRACE)
    assert registered(held, {"one": "12:00"}) == []


def test_a_resource_that_we_are_removing_is_not_taken_for_released() -> None:
    """Its row is gone because a run removes it; that run, or the next one, says how it ends."""
    for state in REMOVING:
        assert steps_of(survey(), [incident(state=state)], set()) == []


@st.composite
def worlds(draw: st.DrawFn) -> tuple[RegistrySnapshot, list[Incident], set[str]]:
    """Orphans, open incidents and rows that are there, in any combination."""
    orphans = draw(st.sets(st.sampled_from(IDS)))
    known = draw(st.lists(st.sampled_from(IDS), unique=True))
    incidents = [
        incident(key, number=number + 1, state=draw(st.sampled_from(OPEN_STATES)))
        for number, key in enumerate(known)
    ]
    present = (
        draw(st.sets(st.sampled_from(sorted(set(IDS) - orphans)))) if set(IDS) > orphans else set()
    )
    return survey(*(orphan(key) for key in sorted(orphans))), incidents, present


@given(worlds())
def test_every_resource_gets_at_most_one_step_and_the_right_one(
    world: tuple[RegistrySnapshot, list[Incident], set[str]],
) -> None:
    """Opened, recovered, released or left: exactly by whether orphan, known and present."""
    seen, incidents, present = world
    steps = steps_of(seen, incidents, present)
    kinds = {step.after.resource_id: step.event.kind for step in steps}
    assert len(kinds) == len(steps)
    states = {known.resource_id: known.state for known in incidents}
    for key in IDS:
        if key in seen.orphans:
            is_back = states.get(key) is State.RELEASING
            known = EventKind.ROW_IS_BACK if is_back else None
            expected = known if key in states else EventKind.DETECTED
        elif key not in states:
            expected = None
        elif key in present:
            expected = EventKind.RECOVERED
        else:
            expected = None if states[key] in REMOVING else EventKind.RELEASED
        assert kinds.get(key) == expected


@given(worlds())
def test_the_rows_to_ask_for_are_those_of_incidents_without_an_orphan(
    world: tuple[RegistrySnapshot, list[Incident], set[str]],
) -> None:
    """Only where an incident's resource is no orphan any more does it matter why."""
    seen, incidents, _ = world
    expected = [i.resource_id for i in incidents if i.resource_id not in seen.orphans]
    assert missing(seen, incidents) == expected


@given(worlds())
def test_a_second_look_at_the_same_world_takes_no_step(
    world: tuple[RegistrySnapshot, list[Incident], set[str]],
) -> None:
    """Once the steps are taken there is nothing left to take."""
    seen, incidents, present = world
    steps = steps_of(seen, incidents, present)
    moved = {step.before.incident_id for step in steps if step.before}
    still_open = [known for known in incidents if known.incident_id not in moved]
    opened = [step.after for step in steps if step.after.is_open]
    assert steps_of(seen, still_open + opened, present) == []


def test_what_was_looked_up_of_a_new_orphan_is_in_its_incident() -> None:
    """The attempts that count, and the newest resource of its group."""
    known = Changes(
        present={"r0"}, prior_attempts={"r1": 2, "r2": 1}, newest_starts={"g": "2026", "h": "x"}
    )
    found = reconcile(inputs_of(survey(orphan("r1")), [incident()], changes=known))
    assert [each.event.kind for each in found] == [EventKind.DETECTED, EventKind.RECOVERED]
    assert (found[0].after.prior_attempts, found[0].after.newest_start) == (2, "2026")


def test_nothing_opens_where_the_incidents_are_those_of_what_was_seen() -> None:
    """A tick that wrote its steps down does not take them again, races that it lost included."""
    assert reconcile(inputs_of(survey(orphan("r1")), [incident()])) == []


# --- What stands in the way ----------------------------------------------------------------------


def no_obstacle(_: str | None) -> str | None:
    """Containers that can restart everything."""
    return None


def test_a_readable_row_of_a_willing_container_can_be_restarted() -> None:
    """Also where the row has no properties, no memory and no group."""
    assert obstacle_of(orphan(), no_obstacle, SETTINGS) is None
    assert obstacle_of(Orphan("r0", None, "c", 1, None, None), no_obstacle, SETTINGS) is None


def test_the_obstacle_of_its_container_is_the_orphans() -> None:
    """The container is asked by the name that the row has, NULL too, and has the first word."""
    bad = Orphan("r0", "g", None, None, None, "{")
    assert obstacle_of(bad, lambda name: f"no container {name!r}", SETTINGS) == "no container None"


def test_a_row_that_cannot_be_read_is_an_obstacle() -> None:
    """What cannot be read cannot be passed to a container."""
    assert "properties cannot be read" in (
        obstacle_of(orphan(properties="{"), no_obstacle, SETTINGS) or ""
    )


def test_a_row_without_a_thread_count_is_an_obstacle() -> None:
    """Nobody knows how large it should be."""
    obstacle = obstacle_of(orphan()._replace(thread_count=None), no_obstacle, SETTINGS)
    assert obstacle == "its thread_count is NULL"


# --- What is due ---------------------------------------------------------------------------------


def test_what_is_due_is_due_and_all_else_waits() -> None:
    """A restart and a giving up are due; grace periods and claims are waited for."""
    due, exhausted = incident(), incident("r1", number=2, attempts=5)
    young = incident("r2", number=3, age=GRACE - SECOND)
    claimed = incident("r3", number=4)._replace(claimed_by="run", claimed_until=NOW + SECOND)
    everyone = [due, exhausted, young, claimed]
    seen = survey(*(orphan(known.resource_id) for known in everyone))
    result = planned(seen, everyone, inputs())
    assert set(result.due) == {due, exhausted}
    assert [known for known, _ in result.waiting] == [young, claimed]
    assert result.reports == ()


def test_a_claim_of_a_run_that_ended_is_no_claim() -> None:
    """The tick does not wait for it to lapse."""
    known = incident()._replace(claimed_by="run", claimed_until=NOW + GRACE)
    result = planned(survey(orphan()), [known], inputs(runs={"run": RunState.ENDED}))
    assert result.due == (known,)


def test_a_claim_under_another_lease_is_no_claim() -> None:
    """The run of whoever acted before can act no more."""
    known = incident()._replace(claimed_by="run", claimed_until=NOW + GRACE, fence=1)
    around = inputs(runs={"run": RunState.QUEUED})
    assert planned(survey(orphan()), [known], replace(around, fence=1)).due == ()
    assert planned(survey(orphan()), [known], replace(around, fence=2)).due == (known,)
    assert planned(survey(orphan()), [known], around).due == ()


def test_what_others_took_the_place_of_or_is_to_be_kept_is_due_with_its_verdict() -> None:
    """A run does both, and writes them down."""
    known = incident(attempts=5)
    around = inputs()
    keeping = replace(around, policy=replace(around.policy, on_exhausted=OnExhausted.KEEP))
    for chosen, verdict in ((around, Verdict.GIVE_UP), (keeping, Verdict.KEEP)):
        result = planned(survey(orphan()), [known], chosen)
        assert (result.due, result.verdicts) == ((known,), {1: verdict})
    live = refilled(inputs_of(survey(orphan()), [known], around), Replacement.LIVE)
    result = plan_tick(live)
    assert (result.due, result.verdicts) == (tuple(live.incidents), {1: Verdict.SUPERSEDE})


def test_the_longest_due_come_first() -> None:
    """By when their grace period ended, which an attempt begins anew; then by number."""
    old = incident("r0", number=4, age=GRACE * 3)
    attempted = incident("r1", number=1, age=GRACE, attempts=1)._replace(
        detected_at=NOW - GRACE * 9
    )
    middle, twin = (incident(f"r{n}", number=n, age=GRACE * 2) for n in (2, 3))
    everyone = [attempted, twin, middle, old]
    seen = survey(*(orphan(known.resource_id) for known in everyone))
    assert planned(seen, everyone, inputs()).due == (old, middle, twin, attempted)


def test_a_removal_that_was_begun_is_due_without_its_row() -> None:
    """The row is gone from the registry, the incident still needs its end."""
    known = incident(state=State.GIVING_UP, attempts=5, age=timedelta(0))
    assert planned(survey(), [known], inputs(obstacle="opts out")).due == (known,)


def test_nothing_is_due_while_auto_restart_is_off() -> None:
    """Incidents are kept, held, and not even reported."""
    everyone = [incident(state=state, number=n) for n, state in enumerate(OPEN_STATES)]
    result = planned(survey(orphan()), everyone, inputs(enabled=False, obstacle="opts out"))
    assert (result.due, result.reports) == ((), ())
    assert verdicts(result) == [Verdict.HOLD] * len(everyone)


# --- What is reported ----------------------------------------------------------------------------


def test_an_orphan_that_cannot_be_restarted_is_reported_once() -> None:
    """The second look at an unchanged world has nothing to say."""
    first = planned(survey(orphan()), [incident()], inputs(obstacle="opts out"))
    (report,) = first.reports
    assert (report.after.state, report.after.note) == (State.UNSUPPORTED, "opts out")
    assert first.due == ()
    second = planned(survey(orphan()), [report.after], inputs(obstacle="opts out"))
    assert second.reports == ()
    assert verdicts(second) == [Verdict.REPORT]


def test_an_orphan_with_another_obstacle_is_reported_again() -> None:
    """What a person has to mend is something else now."""
    known = incident(state=State.UNSUPPORTED, note="opts out")
    result = planned(survey(orphan(properties="{")), [known], inputs())
    assert [step.before for step in result.reports] == [known]


def test_an_orphan_in_the_hands_of_a_run_is_not_reported_over_its_head() -> None:
    """The run finds the obstacle itself; only when it is gone does the tick report."""
    known = incident()._replace(claimed_by="run", claimed_until=NOW + SECOND)
    assert planned(survey(orphan()), [known], inputs(obstacle="x")).reports == ()
    ended = inputs(obstacle="x", runs={"run": RunState.ENDED})
    assert len(planned(survey(orphan()), [known], ended).reports) == 1


def test_an_orphan_whose_obstacle_is_gone_is_restarted() -> None:
    """A container that opts in again, a row that was mended."""
    known = incident(state=State.UNSUPPORTED, note="opts out")
    assert planned(survey(orphan()), [known], inputs()).due == (known,)


@given(
    incidents=st.lists(
        st.builds(
            incident,
            resource_id=st.sampled_from(IDS),
            state=st.sampled_from(OPEN_STATES),
            age=st.sampled_from([timedelta(0), GRACE, GRACE * 2]),
            attempts=st.integers(0, 6),
            note=st.sampled_from([None, "opts out"]),
        ),
        unique_by=lambda known: known.resource_id,
    ),
    orphans=st.sets(st.sampled_from(IDS)),
    obstacle=st.none() | st.just("opts out"),
    enabled=st.booleans(),
)
def test_every_incident_is_due_or_waits(
    *, incidents: list[Incident], orphans: set[str], obstacle: str | None, enabled: bool
) -> None:
    """None is forgotten and none is told twice; what is reported waits as well."""
    numbered = [known._replace(incident_id=number) for number, known in enumerate(incidents)]
    around = inputs(obstacle=obstacle, enabled=enabled)
    seen = survey(*(orphan(key) for key in orphans))
    result = planned(seen, numbered, around)
    found = [*result.due, *(known for known, _ in result.waiting)]
    assert sorted(found) == numbered
    assert {step.before for step in result.reports} <= {known for known, _ in result.waiting}
    reported = {step.before.incident_id: step.after for step in result.reports if step.before}
    after = [reported.get(known.incident_id, known) for known in numbered]
    assert planned(seen, after, around).reports == ()


# --- Which runs that makes -----------------------------------------------------------------------


def numbered(groups: Sequence[str]) -> list[Incident]:
    """An incident for each of these groups, numbered from one."""
    return [
        incident(f"r{number}", number=number, group=group)
        for number, group in enumerate(groups, start=1)
    ]


def test_nothing_due_makes_no_run() -> None:
    """No empty runs."""
    assert run_plans([], 10) == []


def test_groups_share_runs_in_the_order_in_which_they_are_due() -> None:
    """Each run is as full as may be, and knows its groups."""
    a1, b2, a3, c4, b5 = due = numbered("abacb")
    assert [(run.groups, run.incidents) for run in run_plans(due, 10)] == [
        (["a", "b", "c"], (a1, b2, a3, c4, b5))
    ]
    assert [(run.groups, run.incidents) for run in run_plans(due, 3)] == [
        (["a", "b"], (a1, b2, a3)),
        (["c", "b"], (c4, b5)),
    ]


def set_back(*times: int) -> list[Incident]:
    """An incident for each number, set back so often."""
    return [
        known._replace(setbacks=each)
        for known, each in zip(numbered("g" * len(times)), times, strict=True)
    ]


def test_what_was_set_back_goes_last_and_from_the_second_time_alone() -> None:
    """The longest due of all has no place before others then."""
    due = set_back(2, 0, 1, 0, 3)
    seen = survey(*(orphan(known.resource_id) for known in due))
    assert [known.incident_id for known in planned(seen, due, inputs()).due] == [2, 4, 1, 3, 5]
    runs = planned(seen, due, inputs()).dispatches
    assert [[known.incident_id for known in run.incidents] for run in runs] == [[2, 4, 3], [1], [5]]


def test_what_was_set_back_goes_last_though_nothing_limits_it() -> None:
    """Removals and what operators ordered are not counted, and keep others waiting no less."""
    due = set_back(0, 1, 1)
    due[1] = due[1]._replace(operator_request=OperatorRequest.RESTART)
    due[2] = due[2]._replace(attempts=5, attempted_at=NOW - GRACE)
    seen = survey(*(orphan(known.resource_id) for known in due))
    assert planned(seen, due, inputs()).due[0].incident_id == 1


def test_what_is_given_up_is_in_no_run_of_what_is_restarted() -> None:
    """Such a run fails, so that somebody hears of it; the others' does not."""
    due = set_back(0, 0, 0, 1)
    due[0] = due[0]._replace(attempts=5, attempted_at=NOW - GRACE * 2)
    due[3] = due[3]._replace(state=State.GIVING_UP)
    seen = survey(*(orphan(known.resource_id) for known in due))
    runs = planned(seen, due, inputs()).dispatches
    assert [[known.incident_id for known in run.incidents] for run in runs] == [[2, 3], [1, 4]]


@given(st.lists(st.integers(0, 3), max_size=12), st.integers(1, 4))
def test_a_run_is_full_or_the_last_and_holds_nothing_that_was_set_back_twice_beside_others(
    times: list[int], most: int
) -> None:
    """Whatever was set back how often."""
    due = set_back(*times)
    result = run_plans(due, most)
    assert sorted(known for run in result for known in run.incidents) == due
    shared = [run for run in result if max(known.setbacks for known in run.incidents) < 2]
    assert all(len(run.incidents) == most for run in shared[:-1])
    assert all(len(run.incidents) == 1 for run in result if run not in shared)
    assert result[: len(shared)] == shared


@pytest.mark.parametrize(
    ("due", "most", "sizes"),
    [(5, 5, [5]), (6, 5, [5, 1]), (10, 5, [5, 5]), (11, 5, [5, 5, 1]), (3, 1, [1, 1, 1])],
)
def test_a_large_group_is_several_runs(due: int, most: int, sizes: list[int]) -> None:
    """Full ones first; only the last has fewer."""
    result = run_plans(numbered("g" * due), most)
    assert [len(run.incidents) for run in result] == sizes


@given(st.lists(st.sampled_from("abc")), st.integers(1, 7))
def test_what_is_due_is_in_exactly_one_run(groups: list[str], most: int) -> None:
    """In its order, and in the run of its key."""
    due = numbered(groups)
    result = run_plans(due, most)
    assert sorted(known for run in result for known in run.incidents) == due
    for run in result:
        assert 1 <= len(run.incidents) <= most
        assert {known.group_name for known in run.incidents} == set(run.groups)
        assert list(run.incidents) == sorted(run.incidents)


def test_a_hand_over_gives_each_incident_to_the_run() -> None:
    """Under the order's key, until the moment given."""
    (run,) = run_plans(numbered("gg"), 10)
    steps = run.dispatch(NOW + GRACE, NOW)
    assert tuple(step.before for step in steps) == run.incidents
    for step in steps:
        assert (step.after.claimed_by, step.after.claimed_until) == (run.run_key, NOW + GRACE)
        assert (step.after.state, step.after.fence) == (State.DISPATCHED, None)
    assert {step.after.fence for step in run.dispatch(NOW + GRACE, NOW, 7)} == {7}


# More than a fleet of a million resources gets to in its life, and some.
histories: Final = st.lists(
    st.tuples(st.integers(1, 10**9), st.integers(0, 9999), st.integers(0, 99_998)),
    min_size=1,
    max_size=30,
    unique_by=lambda history: history[0],
)


def key_of(history: list[tuple[int, int, int]], token: str | None = None) -> str:
    """The run key of one run for incidents with these numbers, attempts and dispatches."""
    due = [
        incident(number=number, attempts=attempts)._replace(dispatches=dispatches)
        for number, attempts, dispatches in history
    ]
    (run,) = run_plans(due, len(due), token)
    return run.run_key


@given(histories, st.none() | st.just(OF_CURSOR))
def test_a_run_key_fits_its_column(history: list[tuple[int, int, int]], token: str | None) -> None:
    """`claimed_by` has 100 characters; the key is printable and says which incident it is about."""
    key = key_of(history, token)
    assert len(key) <= 100
    assert set(key) <= set(string.ascii_letters + string.digits + " .,-")
    number, attempts, dispatches = history[0]
    assert f" {number}.{attempts}.{dispatches + 1}" in key


def test_the_key_of_the_largest_run_fits_its_column() -> None:
    """A hundred thousand orphans in one run do not make it longer than that."""
    assert len(key_of([(10**9 + n, 9999, 99_998) for n in range(100_000)], OF_CURSOR)) <= 100


@given(histories, st.integers(0, 29), st.integers(0, 2))
def test_a_run_key_is_used_for_one_hand_over_only(
    history: list[tuple[int, int, int]], which: int, part: int
) -> None:
    """One more attempt or dispatch, or another incident, of any member makes another key."""
    which %= len(history)
    changed = list(history)
    one = list(changed[which])
    one[part] += 2 * 10**9 if part == 0 else 1
    changed[which] = (one[0], one[1], one[2])
    assert key_of(changed) != key_of(history)
    assert key_of([*history, (3 * 10**9, 0, 0)]) != key_of(history)
    if len(history) > 1:
        assert key_of(history[1:]) != key_of(history) != key_of(history[:-1])


@given(histories)
def test_a_run_key_depends_on_nothing_else(history: list[tuple[int, int, int]]) -> None:
    """Two daemons that see the same make the same key, whatever else they know."""
    due = [
        incident(number=number, attempts=attempts, age=GRACE * 2, note="x")._replace(
            dispatches=dispatches, version=5, claimed_by="run", state=State.CLAIMED
        )
        for number, attempts, dispatches in history
    ]
    (run,) = run_plans(due, 1000)
    assert run.run_key == key_of(history)


@given(st.lists(st.sampled_from("abc"), min_size=1), st.integers(1, 7))
def test_the_runs_of_one_tick_have_different_keys(groups: list[str], most: int) -> None:
    """Dagster launches each of them."""
    result = run_plans(numbered(groups), most)
    assert len({run.run_key for run in result}) == len(result)


# --- What a tick gave out before it was cut off --------------------------------------------------


def given_out(
    *numbers: int, token: str | None = OF_CURSOR, fence: int | None = None
) -> list[Incident]:
    """Incidents as a tick with this token dispatched them, in one run."""
    due = [incident(f"r{number}", number=number) for number in numbers]
    (run,) = run_plans(due, len(due), token)
    return [step.after for step in run.dispatch(NOW + GRACE, NOW, fence)]


def again(incidents: Sequence[Incident], **changes: Any) -> list[tuple[str | None, int]]:  # noqa: ANN401 - of inputs
    """The key of each run that the next tick requests again, and how many incidents it has."""
    seen = survey(*(orphan(known.resource_id) for known in incidents))
    result = planned(seen, incidents, replace(inputs(), **{"token": OF_CURSOR, **changes}))
    assert result.dispatches == ()
    assert not result.writes
    return [(run.run_key, len(run.incidents)) for run in result.again]


def test_a_run_that_was_never_requested_is_requested_again_under_its_key() -> None:
    """With what it was given, each run once, and nothing is written."""
    first, second = given_out(1, 2), given_out(3)
    assert again([*first, *second]) == [
        (first[0].claimed_by, 2),
        (second[0].claimed_by, 1),
    ]


def test_however_late_the_next_tick_comes_it_requests_what_was_never_requested() -> None:
    """A claim that nobody could know of does not lapse."""
    late = given_out(1)
    assert again(late, now=NOW + GRACE * 100) == [(late[0].claimed_by, 1)]


@pytest.mark.parametrize(
    ("incidents", "changes"),
    [
        (given_out(1), {"token": None}),  # the cursor was lost
        (given_out(1), {"token": OF_CURSOR[::-1]}),  # the tick was not cut off
        (given_out(1, token=None), {}),
        ([each._replace(claimed_by="run") for each in given_out(1)], {}),  # its run has it
        ([each._replace(claimed_by=f"x{OF_CURSOR}") for each in given_out(1)], {}),
        *[
            (given_out(1), {"runs": {str(given_out(1)[0].claimed_by): state}})
            for state in (RunState.QUEUED, RunState.STARTING, RunState.ACTIVE)
        ],
    ],
)
def test_what_was_requested_or_is_not_known_is_waited_for(
    incidents: list[Incident], changes: dict[str, Any]
) -> None:
    """Only the tick that got no further is made good for."""
    assert again(incidents, **changes) == []


def test_a_run_that_ended_is_not_requested_again() -> None:
    """Dagster would not launch its key a second time."""
    (known,) = given_out(1)
    around = replace(inputs(runs={str(known.claimed_by): RunState.ENDED}), token=OF_CURSOR)
    result = planned(survey(orphan("r1")), [known], around)
    assert (result.again, result.due) == ((), (known,))


def test_what_was_given_out_under_another_lease_is_given_out_anew() -> None:
    """Its run could do nothing."""
    (known,) = given_out(1, fence=1)
    result = planned(survey(orphan("r1")), [known], replace(inputs(), token=OF_CURSOR, fence=2))
    assert (result.again, result.due) == ((), (known,))
    assert again([known], fence=1) == [(known.claimed_by, 1)]


def test_what_is_paused_is_requested_again_as_well() -> None:
    """Its run gives it back, so that it is free when the pause ends."""
    (known,) = given_out(1)
    assert again([known], policy=replace(INPUTS.policy, enabled=False)) == [(known.claimed_by, 1)]


def test_a_run_of_scale_ups_that_was_never_requested_is_requested_again() -> None:
    """With all of its groups, which it is waited for in."""
    rounds = {
        name: ScaleUp(
            name,
            4,
            rounds=1,
            state=ScaleUpState.REQUESTED,
            claimed_by=f"scale-up x of 2 {OF_CURSOR}",
            claimed_until=NOW - GRACE,
            next_at=NOW,
        )
        for name in ("a", "b")
    }
    sized = {name: group(name, min_parallelism="4") for name in rounds}
    seen = RegistrySnapshot(resources=0, groups=("a", "b"), orphans={}, sized=sized)
    lost = plan_tick(inputs_of(seen, scale_ups=rounds, token=OF_CURSOR))
    assert [(run.run_key, run.scale_ups) for run in lost.scaling_again] == [
        (f"scale-up x of 2 {OF_CURSOR}", tuple(rounds.values()))
    ]
    assert [each.acts for each in lost.scaling] == [False, False]
    requested = plan_tick(inputs_of(seen, scale_ups=rounds, token=OF_CURSOR[::-1]))
    assert requested.scaling_again == ()
    assert [each.starts for each in requested.scaling] == [True, True]


def test_the_keys_of_a_tick_end_with_its_token() -> None:
    """So that the next one knows them."""
    due = [incident("r1", number=1), incident("r2", number=2)._replace(setbacks=2)]
    seen = survey(*(orphan(known.resource_id) for known in due))
    result = planned(seen, due, replace(inputs(), token=OF_CURSOR))
    assert [run.run_key.rpartition(" ")[2] for run in result.dispatches] == [OF_CURSOR, OF_CURSOR]


def test_a_dispatch_that_nobody_claims_again_and_again_waits_longer() -> None:
    """Its claim of ten minutes has lapsed; the next dispatch comes ten minutes later."""
    (known,) = (each._replace(unused_dispatches=1) for each in given_out(1, token=None))
    seen = survey(orphan("r1"))
    timeout = INPUTS.settings.claim_timeout
    lapsed = known._replace(claimed_until=NOW - timeout + SECOND)
    result = planned(seen, [lapsed], inputs())
    assert [decision.until for _, decision in result.waiting] == [NOW + SECOND]
    over = known._replace(claimed_until=NOW - timeout)
    assert planned(seen, [over], inputs()).due == (over,)
    other = replace(inputs(), fence=7)  # another deployment's trouble
    assert planned(seen, [lapsed], other).due == (lapsed,)


def test_what_is_starting_does_not_count_as_seen_alive() -> None:
    """If it never registers, what came after it came in its place."""
    sized = {"g": group(min_parallelism="4")}
    started = Orphan("new", "g", "c", 2, 0, "{}")
    seen = replace(EMPTY, sized=sized, newest={"g": "2"})
    young = replace(seen, starting={"new": started})
    looks = {"g": Look("g", "1")}
    assert plan_tick(inputs_of(young, looks=looks, present=set())).looks == ()
    (step,) = plan_tick(inputs_of(seen, looks=looks, present=set())).looks
    assert step == (Look("g", "1"), Look("g", "2"))
    (first,) = plan_tick(inputs_of(young, present=set())).looks
    assert first.after == Look("g", "2")
