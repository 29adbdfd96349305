"""The audit of all groups, and what if: real refreshes and runs over what a real loop recorded."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random

import dagster as dg
import pandas as pd
import pytest
import sqlalchemy as sa
from upath import UPath

from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import State
from dagster_amoro.core.policy import Backoff, RestartPolicy
from dagster_amoro.healing.restart import Outcome
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro_audit.fleet_history import (
    read_incidents,
    read_live,
    read_notes,
    read_record,
)
from dagster_amoro_audit.group_reliability import KEY, build_group_reliability
from dagster_amoro_audit.io_managers import FRAME_STORE, FrameIOManager
from dagster_amoro_audit.settling import settle
from dagster_amoro_audit.what_if.advice import records
from dagster_amoro_audit.what_if.job import build_what_if_job
from dagster_amoro_audit.what_if.kept_advice import up_to_date
from dagster_amoro_audit.what_if.replay import Recorded, Replayed, replay
from tests.helpers.fleet import GRACE, START, Fleet, fleet


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with three attempts and a grace period of 30 s."""
    with fleet(tmp_path) as made:
        yield made


def refresh(world: Fleet) -> dg.ExecuteInProcessResult:
    """A real run of the asset."""
    services = world.services
    asset = build_group_reliability(
        services.ledger, services.status, services.policy, lambda: world.now
    )
    store = FrameIOManager(UPath(world.instance.storage_directory()))
    return dg.materialize([asset], instance=world.instance, resources={FRAME_STORE: store})


def what_if(world: Fleet, **config: object) -> dg.ExecuteInProcessResult:
    """A real run of the job."""
    job = build_what_if_job(world.services.ledger, world.services.policy, lambda: world.now)
    return job.execute_in_process(
        run_config={"ops": {"replay_incidents": {"config": config}}},
        instance=world.instance,
        raise_on_error=False,
    )


def answer(result: dg.ExecuteInProcessResult) -> dict[str, dg.MetadataValue]:
    """What a run of the job put beside its output."""
    (output,) = result.filter_events(lambda event: event.is_successful_output)
    return dict(output.step_output_data.metadata)


def refusal(result: dg.ExecuteInProcessResult) -> str:
    """Why a run of the job failed."""
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    message = failure.step_failure_data.user_failure_data
    assert message is not None
    return message.description or ""


def healed(world: Fleet, number: int = 12, group: str = "g") -> None:
    """So many die at once, are restarted after 30 s and are back 10 s later; one had to wait."""
    names = [f"{group}-{nth}" for nth in range(number)]
    for name in names:
        world.worker(name, group)
    world.tick()
    world.later(timedelta(seconds=20))
    world.register(names[0])  # by itself
    world.tick()
    (request,) = world.later(timedelta(seconds=10)).tick()
    assert world.launch(request).success
    world.later(timedelta(seconds=10))
    for name in names[1:]:
        world.register(name)
    world.tick()


def lived(world: Fleet, random: Random) -> None:
    """Workers die, register, are released or fail to start, among ticks and turns of runs."""
    names = [f"w-{nth}" for nth in range(4)]
    retries: list[tuple[str, int]] = []
    world.services.registry.create()
    for _ in range(60):
        present = world.services.registry.present(names)
        for name in names:
            turn_of_fate = random.random()
            if name not in present:
                world.worker(name, random.choice(["g", "h"]))
            elif turn_of_fate < 0.15:
                world.register(name)
            elif turn_of_fate < 0.3:
                world.dies(name)
            elif turn_of_fate < 0.33:
                world.release(name)
        world.container.fail_starts(times=random.choice([0, 0, 1]))
        for request in world.later(timedelta(seconds=random.choice([0, 5, 31, 90]))).tick():
            run = world.submit(request)
            world.later(timedelta(seconds=random.choice([0, 0, 7])))
            retries += [(run.run_id, i.incident_id) for i in world.claim(request, run.run_id)]
        retries = [
            (run_id, number)
            for run_id, number in retries
            if world.services.restarter.restart(number, run_id).outcome is Outcome.FAILED
        ]


def replayed_exactly(world: Fleet) -> list[tuple[str, Recorded]]:
    """Replays what was recorded, incident by incident, and compares it with what happened."""
    incidents = read_incidents(world.services.ledger)
    noted, events = read_record(world.services.ledger, incidents)
    # Every incident has its own number of attempts; what jitter added is recorded as latency.
    unused = replace(world.services.policy, max_retries=99, backoff_jitter=0)
    found = records(noted, events, unused, world.now)
    for (_, recorded), lived_through in zip(found, world.incidents(), strict=True):
        result = replay(recorded, recorded.policy)
        assert result == Replayed(
            outcome=None if lived_through.is_open else lived_through.state,
            attempts=lived_through.attempts,
            closed_at=lived_through.closed_at,
            waited=result.waited,
        )
    return found


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_a_lived_history_replays_exactly_under_its_own_policy(tmp_path: Path, seed: int) -> None:
    """What the real loop did is what the replay of its record gives, incident by incident."""
    random = Random(seed)  # noqa: S311 - not for secrets
    with fleet(tmp_path, max_retries=random.choice([0, 1, 2, 3])) as world:
        lived(world, random)
        assert len(replayed_exactly(world)) > 20


@pytest.mark.long
@pytest.mark.parametrize("backoff", Backoff)
@pytest.mark.parametrize("seed", range(2))
def test_attempts_that_were_carried_over_do_not_change_the_replay(
    tmp_path: Path, seed: int, backoff: Backoff
) -> None:
    """A worker that was not stable has fewer attempts left; its detection says how many."""
    random = Random(seed)  # noqa: S311 - as above
    with fleet(tmp_path, max_retries=4) as world:
        policy = replace(
            world.services.policy,
            stable_after=timedelta(minutes=20),
            backoff=backoff,
            backoff_cap=timedelta(minutes=5),
            backoff_jitter=0.5,
        )
        world.services = replace(world.services, policy=policy)
        lived(world, random)
        found = replayed_exactly(world)
        prior_attempts = [incident.prior_attempts for incident in world.incidents()]
        assert len(set(prior_attempts)) > 2
        allowed = [recorded.policy.max_retries for _, recorded in found]
        assert allowed == [max(4 - number, 0) for number in prior_attempts]


def test_a_dry_run_is_no_record_of_a_group(tmp_path: Path, database_url: sa.URL) -> None:
    """What it did not do is neither counted nor replayed, also not once it is over."""
    with fleet(tmp_path, url=database_url, max_retries=1) as world:
        acting, in_dry_run = world.services, world.services.in_dry_run()
        healed(world, 2)
        for name, group in (("given-up", "h"), ("goes-on", "i")):
            world.services = acting
            world.worker(name, group)
            world.services = in_dry_run
            world.tick()
            for request in world.later().tick():
                world.launch(request)
        given_up, goes_on = world.incidents()[2:]
        assert (given_up.state, goes_on.attempts) == (State.EXHAUSTED, 1)
        assert read_incidents(world.services.ledger)["incident"].tolist() == [1, 2]

        world.services = acting
        world.release("given-up")
        world.tick()
        for request in world.later().tick():
            world.launch(request)
        assert world.container.requested[-1] == "goes-on"
        incidents = read_incidents(world.services.ledger)
        assert incidents["incident"].tolist() == [1, 2, goes_on.incident_id]
        _, events = read_record(world.services.ledger, incidents, group="i")
        assert events["kind"].tolist() == ["detected", "attempt"]
        assert events["attempt"].tolist()[-1] == 2


@pytest.mark.long
def test_the_asset_shows_figures_and_advice(world: Fleet) -> None:
    """A dozen died and came back, one by itself; then one more died."""
    healed(world)
    world.dies("g-3")
    world.tick()
    result = refresh(world.later())
    assert result.success
    frame = result.asset_value(KEY)
    hour = frame[frame["window"] == "hour"].iloc[0]
    assert (hour["incidents"], hour["self_recovered"], hour["recovered_first"]) == (13, 1, 11)
    assert (hour["open"], hour["median_seconds"], hour["p95_seconds"]) == (1, 40, 40)
    assert hour["full_strength"] == pytest.approx(1 - 70 / 3600)
    missing, wanted = 2 * (20 + 11 * 40 + 30), 24 * 3600
    assert hour["strength"] == pytest.approx(1 - missing / wanted)
    (made,) = result.asset_materializations_for_node("group_reliability")
    assert made.metadata["dagster/row_count"].value == 4
    assert str(made.metadata["recommendation"].value).startswith("The grace period of 30 s suits")
    assert made.metadata["policy in force"].value == "3 attempts, grace period 30 s"
    for name, rows in {"reliability": 4, "other grace periods": 8}.items():
        table = made.metadata[name]
        assert isinstance(table, dg.TableMetadataValue)
        assert len(table.records) == rows


def test_the_asset_of_an_empty_ledger_is_empty(world: Fleet) -> None:
    """And says that there is too little history."""
    result = refresh(world)
    assert result.asset_value(KEY).empty
    (made,) = result.asset_materializations_for_node("group_reliability")
    assert made.metadata["recommendation"].value == (
        "Too little history: 0 closed incidents, 10 needed."
    )
    assert "other grace periods" not in made.metadata


@pytest.mark.long
def test_advice_is_computed_anew_when_what_it_rests_on_has_changed(world: Fleet) -> None:
    """By a tenth of its incidents, by the policy in force, or within a day; not for less."""
    healed(world, 30)
    folder = UPath(world.instance.storage_directory())
    store, asked = FrameIOManager(folder), []

    def advise(policy: RestartPolicy) -> bool:
        """Whether it was computed anew."""
        before = store.kept("grace_period_advice")
        found = up_to_date(store, world.services.ledger, policy, world.now)
        asked.append(found)
        return before is None or before.attrs != found.attrs

    policy = world.services.policy
    assert [advise(policy), advise(policy)] == [True, False]
    pd.testing.assert_frame_equal(asked[0], asked[1])
    for name, is_new in (("g-3", False), ("g-4", False), ("g-5", False), ("g-6", True)):
        world.dies(name)
        world.tick()
        assert advise(policy) is is_new
    assert not advise(policy)
    assert advise(replace(policy, max_retries=1))
    assert advise(policy)
    world.later(timedelta(days=1))
    assert not advise(policy)  # there are no news
    world.register("g-3")
    world.tick()
    assert advise(policy)
    (folder / "grace_period_advice.parquet").write_bytes(b"cut o")
    assert advise(policy)


def test_what_if_answers_in_a_sentence_and_a_table(world: Fleet) -> None:
    """Half the patience would have restarted one in vain, and the others sooner."""
    healed(world)
    result = what_if(world, grace_period="15s", max_retries=1)
    assert result.success
    message = answer(result)
    assert message["answer"].value == (
        "With a grace period of 15 s instead of 30 s and 1 attempt instead of 3, 1 of 12 orphans "
        "would have been restarted though they came back by themselves, and the 11 that needed a "
        "restart would have been back 15 s sooner (median)."
    )
    assert isinstance(message["figures"], dg.TableMetadataValue)
    assert len(message["figures"].records) == 4


def test_what_if_looks_at_one_group_where_it_is_asked_to(world: Fleet) -> None:
    """Little history is said to be little; the policy in force is compared with itself."""
    healed(world, 2)
    healed(world, 3, "h")
    message = answer(what_if(world, grace_period="30s", group="h"))
    assert str(message["answer"].value).startswith(
        "From little history: With the policy in force, 0 of 3 orphans"
    )


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"grace_period": "soon"}, "grace_period is 'soon': accepted is a whole number with one"),
        ({"grace_period": "800d"}, "grace_period is '800d': a year is the most"),
        ({"grace_period": "1min", "max_retries": -1}, "max_retries is -1: accepted is 0 to 1000"),
        ({"grace_period": "1min", "group": "x"}, "there are no incidents of group 'x' to replay"),
    ],
)
def test_what_if_refuses_what_it_cannot_answer(
    world: Fleet, config: dict[str, object], says: str
) -> None:
    """A failure that says what is accepted."""
    healed(world, 2)
    result = what_if(world, **config)
    assert not result.success
    assert refusal(result).startswith(f"Nothing was replayed: {says}")


def test_what_is_read_has_the_types_of_the_audit(tmp_path: Path, database_url: sa.URL) -> None:
    """On every backend, the newest incidents of a group included."""
    with fleet(tmp_path, url=database_url) as world:
        healed(world, 3)
        healed(world, 2, "h")
        ledger = world.services.ledger
        incidents = read_incidents(ledger)
        assert incidents["incident"].tolist() == [1, 2, 3, 4, 5]
        assert read_incidents(ledger, group="g", newest=2)["incident"].tolist() == [2, 3]
        assert set(incidents["outcome"]) == {"recovered"}
        assert incidents["detected"].min() == pd.Timestamp(START)
        for column in ("detected", "closed"):
            assert str(incidents[column].dtype) == "datetime64[us, UTC]"
        notes = read_notes(ledger, START, world.now + GRACE).drop(columns="event")
        (last,) = notes.tail(1).to_dict("records")
        assert last == {"group": "h", "at": world.now, "wanted": 4, "live": 0}
        _, events = read_record(ledger, incidents, group="h")
        assert events["kind"].tolist() == ["detected", "detected", "attempt"]
        assert events["grace_seconds"].tolist()[:2] == [30, 30]


@pytest.mark.parametrize(
    "read",
    [
        read_incidents,
        partial(read_live, since=START),
        partial(read_notes, since=START, until=START + GRACE),
        lambda ledger: settle(ledger, START, print),
    ],
)
def test_a_ledger_that_does_not_answer_is_said_to_be_unavailable(
    world: Fleet, read: Callable[[Ledger], pd.DataFrame]
) -> None:
    """Without the statement that failed."""
    healed(world, 2)
    for table in ("keeper_incident", "keeper_event"):
        world.execute(sa.text(f"DROP TABLE {table}"))
    with pytest.raises(StoreUnavailableError, match="the ledger cannot be read") as failure:
        read(world.services.ledger)
    assert "SELECT" not in str(failure.value)
