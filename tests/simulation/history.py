"""Everything that can happen to a fleet, and how its history ends."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import TypeVar

from dagster_amoro.core.errors import StoreUnavailableError as UnavailableError
from dagster_amoro.core.policy import RestartPolicy, RunState, TickSettings
from dagster_amoro.core.post_mortem import UNKNOWN
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.tick import TickResult
from dagster_amoro.stores import day_sums
from dagster_amoro_audit.fleet_history import read_live
from dagster_amoro_audit.reliability import causes_of_death
from dagster_amoro_audit.settling import settle, settled_from
from tests.simulation.actors import Actor, StartOutcome, Step, Telling
from tests.simulation.databases import Row
from tests.simulation.deeds import BOTH, MOSTLY, OUTCOMES, WHICH, Act, Mishap, can_happen
from tests.simulation.work import Work
from tests.simulation.world import BROKEN, DAY, SECOND, START, Answering

_T = TypeVar("_T")


class History(Work):
    """One history: a fleet, its keepers, and everything that happens to them."""

    @can_happen(
        0,
        0,
        size=(1, 2, 3),
        groups=(1, 2),
        missed=(0, 1, 2, 3),
        max_retries=(0, 1, 2, 3),
        grace=(60, 60, 0),
        claim=(600, 600, 30),
        most=(1, 2, 3),
        heals=BOTH,
        min_parallelism=(0, 0, 1, 2, 3),
        attached=BOTH,
        stable=BOTH,
    )
    def begins(  # noqa: PLR0913 - what differs from history to history
        self,
        *,
        size: int,
        groups: int,
        missed: int,
        max_retries: int,
        grace: int,
        claim: int,
        most: int,
        heals: bool,
        min_parallelism: int,
        attached: bool,
        stable: bool,
    ) -> None:
        """A fleet, some of whose workers have died, and two daemons that look after it."""
        self.heals = heals
        self.attached = attached
        sized = bool(min_parallelism) and not attached
        registries = self.stores.standalone if sized else self.stores.registries
        self.stage.committed = self.check_resources
        self.keepers = [
            Services(
                registry=registry,
                ledger=ledger,
                containers=self.containers,
                policy=RestartPolicy(
                    enabled=True,
                    max_retries=max_retries,
                    grace_period=grace * SECOND,
                    stable_after=3600 * SECOND * stable,
                ),
                settings=TickSettings(
                    check_interval=SECOND,
                    round_interval=SECOND,
                    claim_timeout=claim * SECOND,
                    max_restarts_per_run=most,
                ),
                clock=lambda: self.now,
                ams=Answering() if min_parallelism and attached else None,  # type: ignore[arg-type]
            )
            for registry, ledger in zip(registries, self.stores.ledgers, strict=True)
        ]
        if min_parallelism:
            self.min_parallelisms = {f"g{number}": min_parallelism for number in range(groups)}
            for group in self.min_parallelisms:
                self._write("INSERT INTO resource_group VALUES (?, 'c', '{}')", group)
            self._write_floors()
        for number in range(size):
            self.names.append(f"r{number}")
            self._declare(f"r{number}", f"g{number % groups}", age=DAY)
            launch = self.container.launch(f"r{number}", f"g{number % groups}")
            launch.is_settled = True
            self._set_properties(f"r{number}", json.dumps({"launch": launch.launch_id}))
            launch.is_alive = number >= missed
            launch.has_registered = True
            if launch.is_alive:
                self._register(launch)

    @can_happen(8, 2, keeper=range(2), waits=MOSTLY, launches=MOSTLY)
    def ticks(self, keeper: int, *, waits: bool, launches: bool) -> None:
        """A tick, and another one by the other daemon, to which nothing is left to do.

        At once or after the grace period; the runs stay in the queue for now or are launched.
        """
        self.now += self.policy.grace_period if waits else timedelta(0)
        self._request(keeper, self._tick(keeper))
        for _ in range(
            2 if self.min_parallelisms else 0
        ):  # what is hopeless is known to the next tick
            self._request(keeper, self._tick(keeper))
        before = self.stores.dump()
        again = self._tick(1 - keeper)
        assert again.plan.dispatches == (), "a second tick requests runs"
        assert again.scale_ups == again.plan.scaling_again, "a second tick refills"
        assert self.stores.dump() == before, "a second tick changes something"
        for run in self._launchable() if launches else []:
            self._launch(run)

    @can_happen(1, 2, seconds=(60, 1, 30, 600, 3000))
    def time_passes(self, seconds: int) -> None:
        """The clock of both daemons goes on."""
        self.now += seconds * SECOND

    @can_happen(1, 1, keeper=range(2), fails_in=range(15))
    def tick_fails(self, keeper: int, fails_in: int) -> None:
        """A store fails during a tick, which then has changed nothing."""
        before = self.stores.dump()
        self.stage.step = Step(fails_in=fails_in)
        try:
            done = self._tick(keeper)
        except UnavailableError:
            assert self.stores.dump() == before, "a tick that abstained has written"
        else:
            self._request(keeper, done)
        finally:
            self.stage.step = Step()

    @can_happen(1, 1, keeper=range(2), at_once=BOTH)
    def tick_is_cut_off(self, keeper: int, *, at_once: bool) -> None:
        """Dagster gets nothing of a tick that has committed; its next one requests these runs.

        That comes at once, or when it may.
        """
        lost = self._tick(keeper)
        if at_once:
            done = self._tick(keeper)
            assert set(_keys(lost)) <= set(_keys(done)), "a run is not requested again"
            self._request(keeper, done)

    @can_happen(1, 1, lambda self: len(self.sensing) < 2, keeper=range(2))
    def tick_begins(self, keeper: int) -> None:
        """A tick that others may interrupt at every step."""
        if keeper not in self.sensing:
            name = f"tick of {keeper} at {self.now:%H:%M:%S}"
            self.sensing[keeper] = Actor(name, partial(self._tick_slowly, keeper))

    @can_happen(6, 3, lambda self: self._launchable(), which=WHICH)
    def run_is_launched(self, which: int) -> None:
        """Dagster launches a run from its queue."""
        self._launch(_pick(self._launchable(), which))

    @can_happen(1, 1, lambda self: self.runs, which=WHICH, mishap=tuple(Mishap))
    def dagster_errs(self, which: int, mishap: Mishap) -> None:
        """Dagster, or who uses it, does what the restarts do not expect."""
        run = _pick(self.runs[::-1], which)
        if mishap is Mishap.EXECUTED_AGAIN:
            self._new_run(run.run_key, run.keeper, scale_ups=run.scale_ups)
        else:
            run.state = RunState.ENDED if mishap is Mishap.ENDED else None

    @can_happen(0, 10, lambda self: self.awake(), which=WHICH, steps=range(1, 16), outcome=OUTCOMES)
    def actor_goes_on(self, which: int, steps: int, outcome: StartOutcome) -> None:
        """A tick or a run makes some steps."""
        actor = _pick(self.awake(), which)
        for _ in range(steps):
            self._go_on(actor, Step(outcome=outcome))

    @can_happen(
        0,
        3,
        lambda self: self.awake(),
        which=WHICH,
        outcome=OUTCOMES,
        refuses=BOTH,
        fails_in=(None, None, 0, 1, 2, 3),
        answer_is_lost=BOTH,
    )
    def actor_stumbles(
        self,
        *,
        which: int,
        outcome: StartOutcome,
        refuses: bool,
        fails_in: int | None,
        answer_is_lost: bool,
    ) -> None:
        """A tick or a run makes a step on which something goes wrong."""
        step = Step(
            outcome=outcome, refuses=refuses, fails_in=fails_in, answer_is_lost=answer_is_lost
        )
        self._go_on(_pick(self.awake(), which), step)

    @can_happen(0, 3, lambda self: self.awake(), which=WHICH, steps=range(1, 16), works=BOTH)
    def call_hangs(self, which: int, steps: int, *, works: bool) -> None:
        """A run goes on into a call of the container, which is ended at its deadline.

        It may have started or stopped the worker by then.
        """
        actor = _pick(self.awake(), which)
        outcome = StartOutcome.STARTS if works else StartOutcome.FAILS
        for _ in range(steps):
            self._go_on(actor, Step(outcome=outcome, refuses=not works, hangs=True))

    @can_happen(0, 3, lambda self: self.awake(), which=WHICH, steps=range(1, 16))
    def start_is_slow(self, which: int, steps: int) -> None:
        """A run goes on into a start that takes nearly as long as it may, and works."""
        for _ in range(steps):
            if awake := self.awake():
                self._go_on(_pick(awake, which), Step(is_slow=True))

    @can_happen(2, 2, keeper=range(2), tells=tuple(Telling))
    def audit_asks(self, keeper: int, tells: Telling) -> None:
        """A refresh of the audit asks why workers died, which changes nothing else.

        From now on the container says this of all ends, to attempts too.
        """
        self.container.tells = tells
        before = self.stores.dump()
        groups = {row["group_name"] for row in before["keeper_incident"]}
        asked = {each["incident_id"] for each in before["keeper_incident"] if _is_new(each)}
        learned = self.keepers[keeper].post_mortems.learn(sorted(groups))
        after = self.stores.dump()
        changed = [each for each in after["keeper_incident"] if each["cause"] is not None]
        changed = [each for each in changed if each["incident_id"] in asked]
        assert learned == len(changed), "causes are not counted right"
        for each in changed:
            each.update(cause=None, death=None)
        assert after == before, "to ask why a worker died has changed something"

    @can_happen(2, 2)
    def workers_beat(self) -> None:
        """All workers that live show it."""
        self._beat()

    @can_happen(0, 6, lambda self: self._ending(), which=WHICH)
    def stopped_worker_registers(self, which: int) -> None:
        """A worker that was told to end while it boots registers, and ends."""
        self._register(_pick(self._ending(), which))

    @can_happen(1, 1, lambda self: self._actors(), which=WHICH)
    def actor_dies(self, which: int) -> None:
        """The process of a tick or a run is killed, and nobody is told."""
        actor = _pick(self._actors(), which)
        processes = [run.actors for run in self.runs if actor in run.actors]
        for each in processes[0] if processes else [actor]:
            for launch in self.turns.get(each.name, (0, [], ""))[1]:
                launch.is_lost = launch.is_lost or not launch.is_settled
            self.stage.kill(each)
        self._sweep()

    @can_happen(2, 1, outcome=OUTCOMES, waits=MOSTLY)
    def all_goes_its_way(self, outcome: StartOutcome, *, waits: bool) -> None:
        """A tick, after the grace period or at once, and every run that is there goes through."""
        self.now += self.policy.grace_period if waits else timedelta(0)
        self._request(0, self._tick(0))
        self._run_everything(Step(outcome=outcome))

    @can_happen(4, 3, lambda self: self._workers(), which=WHICH, lives=BOTH)
    def worker_changes(self, which: int, *, lives: bool) -> None:
        """A worker registers, or its row is removed because it died or is out of contact."""
        launch = _pick(self._workers()[::-1], which)
        if launch.token is None:
            self._register(launch)
        else:
            launch.is_alive = launch.is_alive and lives
            self._unregister(launch)

    @can_happen(2, 3, which=WHICH, act=tuple(Act))
    def operator_acts(self, which: int, act: Act) -> None:
        """Somebody changes a resource's row, or its properties, at any moment."""
        key = _pick(self.names, which)
        if key not in self.resources:
            self._declare(key, "g0")
            self._lose(key)
            self.redeclared.add(key)
            return
        text = self.resources[key]["properties"]
        if act is Act.REMOVE:
            self._remove(key)
        elif text == BROKEN:
            self._set_properties(key, self.intact.pop(key))
        elif act is Act.BREAK:
            self.intact[key] = text
            self._set_properties(key, BROKEN)
        else:
            old = json.loads(text)
            self._set_properties(key, json.dumps({**old, "n": str(int(old.get("n", 0)) + 1)}))

    @can_happen(1, 1, opts_out=BOTH)
    def configuration_is_loaded(self, *, opts_out: bool) -> None:
        """The container opts out, or auto-restart is off; then all is as before.

        Runs under way go on with the old one.
        """
        changed = self.containers.opts_out or not self.policy.enabled
        self.containers.opts_out = opts_out and not changed
        self._switch(on=changed or opts_out)

    @can_happen(1, 1, lambda self: self.min_parallelisms, min_parallelism=range(4))
    def floor_changes(self, min_parallelism: int) -> None:
        """An operator wants another number of threads, or AMS resets it."""
        self.min_parallelisms = dict.fromkeys(self.min_parallelisms, min_parallelism)
        self._write_floors()

    @can_happen(3, 3, lambda self: self.attached and self.min_parallelisms, which=WHICH)
    def ams_refills(self, which: int) -> None:
        """AMS starts and records a resource for the threads that have no optimizer."""
        group = _pick(list(self.min_parallelisms), which)
        missing = self.min_parallelisms[group] - self._live(group)
        if missing > 0:
            key = f"a{self.births}"
            launch = self.container.launch(key, group, missing)
            launch.is_settled = True
            self._declare(key, group, missing)
            self._set_properties(key, json.dumps({"launch": launch.launch_id}))
            self.new_resources[key] = self._newest_event()

    def ends(self) -> None:
        """The world has been quiet for long enough: nothing is stuck."""
        self._goes_quiet()
        self.rules_hold()
        self._nothing_is_stuck()
        self._causes_are_counted()

    def _causes_are_counted(self) -> None:
        """The figures count causes as is done row by row: now, and from the sums of a day later."""
        expected: Counter[tuple[str, str, bool]] = Counter()
        for row in self.stores.rows("SELECT * FROM keeper_incident"):
            key = row["group_name"], row["cause"] or UNKNOWN, row["closed_at"] is None
            expected[key] += 1
        ledger, later = self.stores.ledgers[0], self.now + 2 * DAY
        nothing = settled_from(day_sums.Sums(None, [], []))
        sums = settle(ledger, later, lambda _: None)
        for settled, now in ((nothing, self.now), (sums, later)):
            incidents = read_live(ledger, (settled.until or START - DAY))
            found: Counter[tuple[str, str, bool]] = Counter()
            for of in causes_of_death(incidents, settled, now).to_dict("records"):
                found[of["group"], of["cause"], True] += of["open"]
                found[of["group"], of["cause"], False] += of["incidents"] - of["open"]
            assert +found == expected, f"causes of death are {found}, and not {expected}"

    def clear(self) -> None:
        """Nobody is left at work."""
        self.stage.committed = lambda: None
        for actor in self._actors():
            self.stage.kill(actor)

    def _goes_quiet(self) -> None:
        self._switch(on=True)
        for _ in range((16 if self.min_parallelisms else 4) * (self.policy.max_retries + 3)):
            self._run_everything(Step())
            self._expire()
            done = self._tick(0)
            busy = self._actors() or done.dispatches or done.scale_ups
            if not busy and not self._unfinished() and not self._scaling_up():
                break
            self._request(0, done)
            self._run_everything(Step())
            for launch in self._unregistered() if self.heals else []:
                self._register(launch)
            self._beat()
            self.now += self.policy.grace_period + self.keepers[0].settings.claim_timeout + SECOND

    def _nothing_is_stuck(self) -> None:
        for launch in self.container.launches:
            if launch.is_alive and not launch.is_lost:
                assert launch.launch_id == self._named(launch.resource_id), f"{launch} is forgotten"
        assert self._unfinished() == []
        for group, min_parallelism in (
            self.min_parallelisms.items() if self.heals and not self.attached else ()
        ):
            stopped = "SELECT * FROM keeper_scale_up WHERE group_name = ? AND state = 'stopped'"
            reached = self._live(group) >= min_parallelism or self.stores.rows(stopped, group)
            assert reached or self.containers.opts_out, (
                f"{group} does not reach its min-parallelism"
            )


def _is_new(incident: Row) -> bool:
    """Whether it is open, nobody tried to heal it, and nobody asked why its worker died."""
    return (incident["closed_at"], incident["cause"], incident["attempts"]) == (None, None, 0)


def _keys(done: TickResult) -> list[str]:
    keys = [run.run_key for run in done.dispatches]
    return keys + [run.run_key for run in done.scale_ups]


def _pick(candidates: Sequence[_T], which: int) -> _T:
    return candidates[which % len(candidates)]
