"""How much is restarted at once: waves in which none starves, and nothing in a catastrophe."""

from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from fractions import Fraction
from itertools import count
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagster_amoro.core.limits import CountResources, Limits, blocked_groups, next_batch
from dagster_amoro.core.model import Incident, OperatorRequest, Orphan, State
from dagster_amoro.core.pauses import Pause, Pauses, Scope, Target
from dagster_amoro.core.policy import Decision, Replacement, RestartPolicy, Verdict
from dagster_amoro.core.tick_inputs import RegistrySnapshot
from dagster_amoro.core.tick_plan import (
    NEXT_BATCH,
    TickPlan,
    plan_tick,
)
from tests.helpers.inputs import GRACE, NOW, dynamic, inputs_of, refilled

LETTERS: Final = "abcdef"


def incident(number: int, group: str = "g", age: timedelta = GRACE) -> Incident:
    """An incident that is due, unless told otherwise."""
    return Incident(
        incident_id=number,
        resource_id=f"r{number}",
        group_name=group,
        container_name="c",
        thread_count=1,
        detected_at=NOW - age,
    )


def backlog(groups: str) -> list[Incident]:
    """An incident for each letter, of the group with that name, in that order."""
    return [incident(number, group) for number, group in enumerate(groups)]


def groups_of(incidents: list[Incident]) -> str:
    """The letters of their groups."""
    return "".join(each.group_name for each in incidents)


# --- Waves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("due", "most", "last_served_group", "now", "served_last"),
    [
        ("", 3, None, "", None),
        ("aab", None, None, "aab", None),
        ("aab", 3, "a", "aab", None),  # all of it fits
        ("aab", 2, None, "ab", "b"),
        ("bbaa", 2, None, "ab", "b"),
        ("abc", 2, "a", "bc", "c"),
        ("abc", 2, "b", "ca", "a"),
        ("abc", 2, "bb", "ca", "a"),  # that group has nothing due any more
        ("abc", 2, "z", "ab", "b"),
        ("aaaab", 4, None, "abaa", "a"),
        ("aaaab", 3, "b", "aba", "a"),
    ],
)
def test_groups_give_one_each_in_turn(
    due: str, most: int | None, last_served_group: str | None, now: str, served_last: str | None
) -> None:
    """By their names, beginning behind the group that the wave before served last."""
    found = next_batch(backlog(due), most, last_served_group)
    assert (groups_of(found.now), found.last_served_group) == (now, served_last)


backlogs: Final = st.text(LETTERS, max_size=30).map(backlog)


@given(
    due=backlogs,
    most=st.none() | st.integers(1, 12),
    last_served_group=st.none() | st.text("abcdefg"),
)
def test_a_wave_parts_what_is_due(
    due: list[Incident], most: int | None, last_served_group: str | None
) -> None:
    """No more than `most` go, no fewer than could; each group's first ones first, none is lost."""
    found = next_batch(due, most, last_served_group)
    assert len(found.now) == min(len(due), len(due) if most is None else most)
    assert sorted(found.now + found.later) == sorted(due)
    assert found.later == [each for each in due if each in found.later]
    for group in LETTERS:
        ours = [each for each in due if each.group_name == group]
        chosen = [each for each in found.now if each.group_name == group]
        assert chosen == ours[: len(chosen)]


@given(due=backlogs, sick=st.sets(st.integers(0, 29)), most=st.integers(1, 12))
def test_what_was_set_back_is_in_no_wave_that_leaves_another_out(
    due: list[Incident], sick: set[int], most: int
) -> None:
    """Of those that were not, the wave takes what it would take if there were no others."""
    well = [each for each in due if each.incident_id not in sick]
    ill = [each._replace(setbacks=1) for each in due if each.incident_id in sick]
    found = next_batch([*well, *ill], most, None)
    expected = next_batch(well, most, None).now
    assert [each for each in found.now if not each.setbacks] == sorted(
        expected, key=found.now.index
    )
    assert len(expected) == min(len(well), most)
    if any(each.setbacks for each in found.now):
        assert len(expected) == len(well)
        assert not any(each.setbacks for each in found.now[: len(well)])


@given(due=backlogs, most=st.integers(1, 12), first=st.none() | st.sampled_from(LETTERS))
def test_no_group_is_more_than_one_ahead_of_another_that_still_has_something_due(
    due: list[Incident], most: int, first: str | None
) -> None:
    """Over all waves of a backlog, and after each restart within them."""
    served: Counter[str] = Counter()
    left, last_served_group = due, first
    while len(left) > most:  # what fits is all served at once
        rest = Counter(each.group_name for each in left)
        found = next_batch(left, most, last_served_group)
        for each in found.now:
            served[each.group_name] += 1
            rest[each.group_name] -= 1
            waiting = [served[group] for group in LETTERS if rest[group]]
            assert not waiting or max(served.values()) <= min(waiting) + 1
        left, last_served_group = found.later, found.last_served_group


@given(
    arrivals=st.lists(st.text(LETTERS, max_size=8), max_size=25),
    most=st.integers(1, 5),
)
def test_while_a_group_waits_no_other_goes_twice_whatever_keeps_coming(
    arrivals: list[str], most: int
) -> None:
    """New orphans of other groups, at every tick, do not hold it up."""
    numbers = count()
    left: list[Incident] = []
    last_served_group: str | None = None
    gone: dict[str, Counter[str]] = {}  # since each waiting group was served last, how often others
    for arrived in arrivals:
        left = left + [incident(next(numbers), group) for group in arrived]
        for each in left:
            gone.setdefault(each.group_name, Counter())
        found = next_batch(left, most, last_served_group)
        rest = Counter(each.group_name for each in left)
        for each in found.now if found.later else ():  # where all fits, none waits
            rest[each.group_name] -= 1
            gone[each.group_name] = Counter()
            for group in LETTERS:
                if rest[group] and group != each.group_name:
                    gone[group][each.group_name] += 1
                    assert gone[group][each.group_name] <= 1
            if not rest[each.group_name]:
                del gone[each.group_name]
        if not found.later:
            gone.clear()
        left, last_served_group = found.later, found.last_served_group


def test_a_thousand_orphans_in_a_hundred_groups_are_twenty_waves_of_fifty() -> None:
    """Oldest first within each group, and no group waits for more than two waves."""
    everyone = [
        incident(n, f"g{n % 100:02}", GRACE + timedelta(seconds=n * 7919 % 1000))
        for n in range(1000)
    ]
    left, last_served_group, waves = everyone, None, list[TickPlan]()
    while left:
        found = look(left, Limits(max_restarts=50), last_served_group=last_served_group)
        assert len(found.due) == 50
        waves.append(found)
        left, last_served_group = [each for each, _ in found.waiting], found.last_served_group
    assert len(waves) == 20
    for before, after in zip(waves[::2], waves[1::2], strict=True):
        assert len({each.group_name for each in before.due + after.due}) == 100
    for group in {each.group_name for each in everyone}:
        ages = [each.detected_at for w in waves for each in w.due if each.group_name == group]
        assert ages == sorted(ages)
        assert len(ages) == 10


# --- Limits --------------------------------------------------------------------------------------


def refused(
    orphans: Mapping[str, int], resources: Mapping[str, int], limits: Limits
) -> dict[str, str]:
    """What is refused where so many of so many are orphaned, and something is due in each."""
    dead = [name for name, number in orphans.items() for _ in range(number)]
    return blocked_groups(orphans, dead, lambda: resources, limits)


def test_more_than_the_allowed_share_is_refused_in_that_group_only() -> None:
    """In the words of the tick."""
    found = refused({"a": 7, "b": 4}, {"a": 9, "b": 9, "c": 1}, Limits(max_orphaned=0.5))
    assert found == {"a": "7 of 9 orphaned, allowed 50%"}


def test_exactly_the_allowed_share_is_healed() -> None:
    """Five of ten are half of them, six are more."""
    half = Limits(max_orphaned=0.5)
    assert refused({"a": 5}, {"a": 10}, half) == {}
    assert refused({"a": 6}, {"a": 10}, half) == {"a": "6 of 10 orphaned, allowed 50%"}


@given(resources=st.integers(1, 1000), percent=st.integers(1, 99))
@example(resources=100, percent=29)  # 0.29 * 100 is less than 29
def test_exactly_the_allowed_share_is_healed_whatever_it_is(resources: int, percent: int) -> None:
    """A share is written with decimals, which floats do not hold exactly."""
    limits = Limits(max_orphaned=percent / 100)
    most = int(Fraction(percent, 100) * resources)
    assert refused({"a": most}, {"a": resources}, limits) == {}
    assert "a" in refused({"a": most + 1}, {"a": resources}, limits)


@given(
    resources=st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
    dead=st.lists(st.sampled_from("abcx"), max_size=9),
    due=st.sets(st.sampled_from("abcx")),
    shares=st.dictionaries(st.sampled_from("abcx"), st.sampled_from([0.25, 0.5, 1.0])),
    default=st.sampled_from([0.25, 0.5, 1.0]),
    overall=st.sampled_from([0.25, 0.5, 1.0]),
)
def test_refuses_what_a_second_reckoning_refuses(  # noqa: PLR0913, PLR0917 - all that matters
    resources: dict[str, int],
    dead: list[str],
    due: set[str],
    shares: dict[str, float],
    default: float,
    overall: float,
) -> None:
    """A group's own limit comes before the general one, and the limit of all holds for each."""
    limits = Limits(max_orphaned=default, max_orphaned_overall=overall, max_orphaned_of=shares)

    def too_many(part: int, whole: int, limit: float) -> bool:
        return limit < 1 and Fraction(part) > Fraction(limit) * whole

    catastrophe = too_many(len(dead), sum(resources.values()), overall)
    expected = {
        name
        for name in due
        if catastrophe
        or too_many(dead.count(name), resources.get(name, 0), shares.get(name, default))
    }
    assert set(blocked_groups(due, dead, lambda: resources, limits)) == expected


def test_the_limit_of_all_is_told_with_the_numbers_of_all() -> None:
    """Unless the group is over its own, which says more."""
    limits = Limits(max_orphaned=0.75, max_orphaned_overall=0.5)
    assert refused({"a": 4, "b": 3}, {"a": 4, "b": 6, "c": 2}, limits) == {
        "a": "4 of 4 orphaned, allowed 75%",
        "b": "of all groups 7 of 12 orphaned, allowed 50%",
    }


def test_orphans_of_groups_where_nothing_is_due_count_for_all() -> None:
    """They are dead all the same; those without a group too."""
    dead = ["a", None, None, "b"]
    found = blocked_groups({"a"}, dead, lambda: {"a": 4, "b": 2}, Limits(max_orphaned_overall=0.5))
    assert found == {"a": "of all groups 4 of 6 orphaned, allowed 50%"}


def test_a_group_of_one_has_its_own_limit() -> None:
    """It would never be healed otherwise."""
    limits = Limits(max_orphaned=0.5, max_orphaned_of={"single": 1.0})
    assert refused({"single": 1, "other": 1}, {"single": 1, "other": 1}, limits) == {
        "other": "1 of 1 orphaned, allowed 50%"
    }


@pytest.mark.parametrize(("limit", "message"), [(0.125, "12.5%"), (0.001, "0.1%"), (0.29, "29%")])
def test_a_limit_is_told_as_it_was_set(limit: float, message: str) -> None:
    """Whoever reads it looks for it in the configuration."""
    found = refused({"a": 9}, {"a": 9}, Limits(max_orphaned=limit))
    assert found == {"a": f"9 of 9 orphaned, allowed {message}"}


def must_not_count() -> Mapping[str, int]:
    """What must not be asked."""
    raise AssertionError


def test_nothing_is_counted_where_any_share_is_allowed() -> None:
    """Counting is a query; by default there is none. Limits of groups that rest matter not."""
    rest = Limits(max_orphaned_of={"b": 0.5})
    for limits in (Limits(), rest):
        assert blocked_groups({"a"}, ["a"], must_not_count, limits) == {}
    assert blocked_groups(set(), ["a"], must_not_count, Limits(max_orphaned=0.5)) == {}
    for limits in (
        Limits(max_orphaned=0.5),
        Limits(max_orphaned_overall=0.5),
        Limits(max_orphaned_of={"a": 0.5}),
    ):
        with pytest.raises(AssertionError):
            blocked_groups({"a"}, ["a"], must_not_count, limits)


# --- In a tick -----------------------------------------------------------------------------------


def look(  # noqa: PLR0913 - what the tests vary
    incidents: list[Incident],
    limits: Limits,
    *,
    counted: CountResources = must_not_count,
    last_served_group: str | None = None,
    pauses: Pauses | None = None,
    replacement: Replacement = Replacement.NONE,
    is_dynamic: bool = False,
    max_retries: int = 5,
) -> TickPlan:
    """What a tick makes of these incidents, all of them orphans."""
    orphans = {
        each.resource_id: Orphan(each.resource_id, each.group_name, "c", 1, 0, "{}")
        for each in incidents
    }
    sized = {name: dynamic(name) for name in {each.group_name for each in incidents}}
    seen = RegistrySnapshot(
        resources=9, groups=(), orphans=orphans, sized=sized if is_dynamic else {}
    )
    around = inputs_of(
        seen,
        incidents,
        policy=RestartPolicy(enabled=True, max_retries=max_retries, grace_period=GRACE),
        limits=limits,
        count=counted,
        last_served_group=last_served_group,
        pauses=pauses or Pauses(),
    )
    return plan_tick(refilled(around, replacement))


def test_what_does_not_go_with_this_wave_waits_for_the_next() -> None:
    """It says why, and the tick remembers which group it served last."""
    found = look(backlog("aabb"), Limits(max_restarts=3), last_served_group="a")
    assert groups_of(list(found.due)) == "bab"
    assert [decision for _, decision in found.waiting] == [Decision(Verdict.WAIT, NEXT_BATCH)]
    assert found.last_served_group == "b"


def test_what_is_refused_takes_no_place_in_the_wave() -> None:
    """Other groups are healed meanwhile."""
    found = look(
        backlog("aaabb"),
        Limits(max_restarts=2, max_orphaned=0.5),
        counted=lambda: {"a": 3, "b": 9},
    )
    assert groups_of(list(found.due)) == "bb"
    assert {decision for _, decision in found.waiting} == {
        Decision(Verdict.HOLD, "3 of 3 orphaned, allowed 50%")
    }


def test_guards_are_about_restarts_that_nobody_asked_for() -> None:
    """Removals and what operators want pass, and are counted in no wave."""
    everyone = [
        incident(1)._replace(state=State.GIVING_UP),
        incident(2)._replace(operator_request=OperatorRequest.RESTART),
        incident(3)._replace(operator_request=OperatorRequest.GIVE_UP),
        incident(4)._replace(attempts=5, attempted_at=NOW - GRACE),
        incident(5),
        incident(6),
    ]
    found = look(everyone, Limits(max_restarts=1))
    assert {each.incident_id for each in found.due} == {1, 2, 3, 4, 5}
    held = look(everyone, Limits(max_orphaned=0.5), counted=lambda: {"g": 6})
    assert {each.incident_id for each in held.due} == {1, 2, 3, 4}


def test_what_is_held_or_waits_is_not_counted_against_a_limit_but_is_dead() -> None:
    """An orphan in its grace period is an orphan; where nothing is due nothing is counted."""
    young = [incident(n, age=timedelta(0)) for n in range(3)]
    assert look(young, Limits(max_orphaned=0.5)).due == ()
    found = look([*young, incident(9)], Limits(max_orphaned=0.5), counted=lambda: {"g": 6})
    assert found.due == ()


def test_what_is_paused_is_held_in_the_words_of_the_pause() -> None:
    """A resource, its group or everything; the others go on."""
    pause = Pause(
        target=Target(scope=Scope.GROUP, name="a"),
        author="ann",
        reason="moving hosts",
        paused_at=NOW,
        until=None,
    )
    found = look(backlog("ab"), Limits(), pauses=Pauses([pause], NOW))
    assert groups_of(list(found.due)) == "b"
    assert [decision for _, decision in found.waiting] == [
        Decision(Verdict.HOLD, "group a is paused by ann: moving hosts")
    ]


def test_a_group_that_belongs_to_another_is_reported() -> None:
    """Its orphans are told once and left alone."""
    found = look(backlog("a"), Limits(), is_dynamic=True)
    assert found.due == ()
    assert ["dynamic allocation" in (step.after.note or "") for step in found.reports] == [True]


def test_an_orphan_that_others_took_the_place_of_is_due_whatever_the_guards_say() -> None:
    """Nothing is started for it."""
    found = look(backlog("a"), Limits(max_orphaned=0.1), replacement=Replacement.LIVE)
    assert found.verdicts == {0: Verdict.SUPERSEDE}
    assert len(found.due) == 1
    waits = look(backlog("a"), Limits(), replacement=Replacement.COMING)
    assert waits.due == ()
