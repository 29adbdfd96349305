"""Why a worker died is known before anything is tried: the refresh of the audit asks."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import psutil
import pytest
import sqlalchemy as sa

from dagster_amoro import CommandContainer, Resource
from dagster_amoro.asset_keys import FLEET
from dagster_amoro.containers.isolated import IsolatedContainers
from dagster_amoro.core import transitions
from dagster_amoro.core.errors import StoreUnavailableError
from dagster_amoro.core.model import Incident, State
from dagster_amoro.core.post_mortem import PostMortem
from dagster_amoro.healing.post_mortems import PostMortems
from dagster_amoro.healing.restart import resource_of
from dagster_amoro.testing import RecordingContainer
from tests.helpers import hanging
from tests.helpers.fleet import Fleet, Shelf, fleet
from tests.helpers.hangs import marked, settings
from tests.helpers.waiting import wait_until
from tests.integration.test_post_mortem import SLEEP, properties

pytestmark = pytest.mark.long

KILLED = PostMortem("killed", "its last worker was killed by SIGKILL 1 h after its start", "bye")


class Telling(RecordingContainer):
    """Tells of ends what a test says, and counts how often it was asked."""

    def __init__(self, tell: Callable[[Resource], PostMortem | None]) -> None:
        super().__init__("telling")
        self.tell, self.asked = tell, 0

    def post_mortem(self, resource: Resource) -> PostMortem | None:
        """As the test says."""
        self.asked += 1
        return self.tell(resource)


def raises(_: Resource) -> PostMortem:
    """It is broken."""
    raise RuntimeError("password=hunter22 was refused")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet with one orphan, which a tick has seen."""
    with fleet(tmp_path) as made:
        yield made


def orphaned(world: Fleet, container: RecordingContainer, *resources: str) -> None:
    """Its orphans are of this container, and a tick has seen them."""
    world.services = replace(world.services, containers=Shelf(recording=container))
    for name in resources or ["w-1"]:
        world.worker(name)
    world.tick()


def of(world: Fleet, resource_id: str = "w-1") -> Incident:
    """The open incident of a resource."""
    found = world.services.ledger.open_incident(resource_id)
    assert found is not None
    return found


@contextmanager
def worker_in(world: Fleet, folder: Path) -> Iterator[psutil.Process]:
    """A real worker, started once, of which the registry knows."""
    entry = settings(CommandContainer, properties(folder, SLEEP))
    own = CommandContainer("c", entry.properties)
    with marked(folder), closing(IsolatedContainers({"c": entry})) as made:
        world.services = replace(world.services, containers=made)
        bare = Resource(
            resource_id="w-1", group_name="g", container_name="c", thread_count=1, memory_mb=0
        )
        started = bare.with_properties(own.request_resource(bare))
        world.worker(container_name="c", properties=started.properties)
        yield psutil.Process(int(started.properties["command-pid"]))
        left = world.services.registry.read_resource("w-1").orphan
        assert left is not None
        own.release_resource(resource_of(left))


def test_a_worker_that_was_killed_is_known_while_its_grace_period_runs(
    tmp_path: Path, world: Fleet
) -> None:
    """After one tick and one refresh; what attempts find later changes nothing."""
    with worker_in(world, tmp_path) as worker:
        worker.kill()
        wait_until(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE)
        world.tick()
        before = of(world)
        assert before.cause is None
        assert world.refresh("g").success
        known = of(world)
        assert known.cause == "killed"
        assert known.death is not None
        assert known.death.startswith("its last worker was killed by SIGKILL ")
        assert known._replace(cause=None, death=None) == before
        assert world.kinds() == ["detected"]
        kept = world.history("g").incidents.iloc[0]
        assert (kept["cause"], kept["death"]) == (known.cause, known.death)
        (request,) = world.later().tick()
        assert world.launch(request).success
        assert of(world)[-2:] == known[-2:]
        assert f"attempt 1 begins; {known.death}" in {
            each.message for each in world.services.ledger.events(known.incident_id)
        }


@pytest.mark.parametrize(
    ("tell", "death"),
    [
        (lambda _: None, "its container does not tell how its workers end"),
        (raises, "how its last worker ended cannot be learned: RuntimeError: password=*** "),
        (lambda _: PostMortem("unknown", "nobody saw it\x1b[31m"), r"nobody saw it\x1b[31m"),
    ],
)
def test_what_cannot_be_learned_is_asked_once(
    world: Fleet, tell: Callable[[Resource], PostMortem | None], death: str
) -> None:
    """That is an answer too; but the attempt asks again, and may find more."""
    container = Telling(tell)
    orphaned(world, container)
    for _ in range(2):
        assert world.services.post_mortems.learn(["other"]) == 0
        world.services.post_mortems.learn(["g"])
    assert container.asked == 1
    assert of(world).cause == "unknown"
    assert str(of(world).death).startswith(death)
    container.tell = lambda _: KILLED
    (request,) = world.later().tick()
    assert world.launch(request).success
    assert of(world)[-2:] == KILLED[:2]


def test_an_attempt_does_not_know_less(world: Fleet) -> None:
    """Whoever restarts it may see nothing of it by then."""
    container = Telling(lambda _: KILLED)
    orphaned(world, container)
    assert world.services.post_mortems.learn(["g"]) == 1
    container.tell = lambda _: PostMortem("unknown", "it is gone", "its log")
    (request,) = world.later().tick()
    assert world.launch(request).success
    assert of(world)[-2:] == KILLED[:2]
    events = world.services.ledger.events(1)
    (tried,) = (each for each in events if each.kind == "attempt")
    assert tried.details["cause"] == "killed"
    assert tried.details["log"] == "its log"


def test_whoever_has_it_in_hand_keeps_it(world: Fleet) -> None:
    """A tick, a run and a renewal that read it before go on with it, and lose no cause."""
    container = Telling(lambda _: KILLED)
    orphaned(world, container)
    (request,) = world.later().tick()
    (claimed,) = world.claim(request, "run-1")
    assert claimed.cause is None
    assert world.services.post_mortems.learn(["g"]) == 1
    container.tell = lambda _: None
    assert of(world).is_renewal_of(claimed)
    result = world.services.restarter.restart(claimed.incident_id, "run-1")
    assert result.outcome == "started"
    assert of(world)[-2:] == KILLED[:2]


def test_a_step_that_was_read_before_keeps_what_was_learned_since(world: Fleet) -> None:
    """It writes the whole incident, as it was read, one step on."""
    orphaned(world, Telling(lambda _: KILLED))
    before = of(world)
    assert world.services.post_mortems.learn(["g"]) == 1
    step = transitions.report(before, "it opts out", world.now)
    moved = world.services.ledger.apply(step)
    assert moved == of(world)
    assert of(world)[-2:] == KILLED[:2]
    closed = transitions.close(before, State.RECOVERED, "it is back", world.now)
    assert world.services.ledger.apply(closed) is None


def test_it_is_not_asked_once_somebody_tried_to_heal_it(world: Fleet) -> None:
    """Its last worker is another one by then."""
    container = Telling(lambda _: None)
    orphaned(world, container)
    (request,) = world.later().tick()
    assert world.launch(request).success
    container.tell, container.asked = lambda _: KILLED, 0
    assert world.services.post_mortems.learn(["g"]) == 0
    assert (container.asked, of(world).cause) == (0, None)


@pytest.mark.parametrize("happens", [Fleet.release, Fleet.register])
def test_it_is_not_asked_about_what_is_no_orphan_any_more(
    world: Fleet, happens: Callable[[Fleet], object]
) -> None:
    """The next tick closes its incident."""
    container = Telling(lambda _: KILLED)
    orphaned(world, container)
    happens(world)
    assert world.services.post_mortems.learn(["g"]) == 0
    assert container.asked == 0


def test_a_container_or_properties_that_cannot_be_used_say_why(world: Fleet) -> None:
    """Once, as with everything else."""
    orphaned(world, Telling(lambda _: KILLED), "w-1", "w-2")
    world.worker("w-3", container_name="gone")
    world.properties("[", "w-2")
    world.tick()
    assert world.services.post_mortems.learn(["g"]) == 3
    assert of(world).cause == "killed"
    assert "properties" in str(of(world, "w-2").death)
    assert "container 'gone' is not configured" in str(of(world, "w-3").death)


def test_what_hangs_holds_up_no_other(world: Fleet, tmp_path: Path) -> None:
    """A question that hangs is over in time, and so are all of them together."""
    entry = settings(
        hanging.HangingContainer,
        {
            "hangs-at": "post_mortem",
            "hangs": "in_a_lock",
            "folder": str(tmp_path),
            "status-timeout": "2s",
        },
    )
    with marked(tmp_path), closing(IsolatedContainers({"c": entry})) as made:
        world.services = replace(world.services, containers=made)
        for name in ("sick-1", "w-2"):
            world.worker(name, container_name="c", properties={"password": "hunter22"})
        world.tick()
        assert world.refresh("g").success
        assert "was not over within 2 s" in str(of(world, "sick-1").death)
        assert of(world, "w-2").cause == r"odd\x1b[31m"
        assert "hunter22" not in str(of(world, "w-2"))


def test_all_questions_together_have_a_deadline(world: Fleet) -> None:
    """What was begun by then is noted as not learned; what was not is asked the next time."""
    over, begun = threading.Event(), threading.Semaphore(0)

    def hang(_: Resource) -> PostMortem:
        begun.release()
        over.wait(60)
        return KILLED

    container = Telling(hang)
    orphaned(world, container, *map(str, range(6)))
    asking = PostMortems(
        ledger=world.services.ledger,
        registry=world.services.registry,
        containers=world.services.containers,
        longest=timedelta(seconds=2),
    )
    try:
        assert asking.learn(["g"]) == 4
    finally:
        over.set()
    deaths = [each.death for each in world.incidents()]
    assert deaths == 2 * [None] + 4 * ["how its last worker ended was not learned within 2 s"]
    assert world.services.post_mortems.learn(["g"]) == 2


def test_of_very_many_the_newest_are_asked_about_first(world: Fleet) -> None:
    """The others the next time."""
    orphaned(world, Telling(lambda _: KILLED), *map(str, range(120)))
    learned = [world.services.post_mortems.learn(["g"]) for _ in range(3)]
    assert learned == [100, 20, 0]


def test_where_a_registry_does_not_answer_nothing_is_asked(world: Fleet) -> None:
    """The refresh goes on; it reads the ledger alone."""
    container = Telling(lambda _: KILLED)
    orphaned(world, container)
    world.execute(sa.text("ALTER TABLE resource RENAME TO aside"))
    with pytest.raises(StoreUnavailableError):
        world.services.registry.read_resource("w-1")
    assert world.refresh("g").success
    assert (container.asked, of(world).cause) == (0, None)


def test_a_dry_run_asks_too(world: Fleet) -> None:
    """To ask changes nothing."""
    world.worker()
    shelf = Shelf(recording=Telling(lambda _: KILLED))
    world.services = replace(world.services, containers=shelf).in_dry_run()
    world.tick()
    assert world.services.post_mortems.learn(["g"]) == 1
    assert of(world).death == KILLED.text


def test_the_page_of_the_fleet_knows_why_though_no_history_was_refreshed(world: Fleet) -> None:
    """Where it is made by another run than the history of the group, or before it."""
    orphaned(world, Telling(lambda _: KILLED))
    made = world.definitions
    result = dg.materialize(
        list(made.assets or ()),  # type: ignore[arg-type]
        selection=[FLEET],
        instance=world.instance,
        resources=made.resources,
    )
    assert result.success
    (page,) = result.asset_materializations_for_node("amoro__fleet_status")
    assert "killed by SIGKILL" in str(page.metadata["now"].value)
    assert of(world).cause == "killed"
