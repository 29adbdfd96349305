"""The ticks and runs of a history: what Dagster would start, each step when it is told to."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from dagster_amoro.core.ams_restart import AmsRestartDetector
from dagster_amoro.core.errors import StoreUnavailableError as UnavailableError
from dagster_amoro.core.policy import RunState
from dagster_amoro.healing import scaling as scale_ups
from dagster_amoro.healing.assembly import Services
from dagster_amoro.healing.restart import Outcome
from dagster_amoro.healing.tick import TickResult
from tests.simulation.actors import Actor, Step
from tests.simulation.rules import Rules
from tests.simulation.world import Run

if TYPE_CHECKING:
    from tests.simulation.container import Launch


class Work(Rules):
    """The fleet, and the ticks and runs that work on it."""

    def _tick(self, keeper: int) -> TickResult:
        commits = self.stage.commits
        done = self._evaluate(keeper)
        assert self.stage.commits - commits <= 1, "a tick is one transaction"
        return done

    def _tick_slowly(self, keeper: int, actor: Actor) -> None:
        del actor
        try:
            done = self._evaluate(keeper)
        except UnavailableError:
            return
        self._request(keeper, done)

    def _evaluate(self, keeper: int) -> TickResult:
        token = f"{keeper}x{self.cursors[keeper]}"
        ticker = self.keepers[keeper].ticker
        return ticker.tick(self._run_states, AmsRestartDetector(), token=token)

    def _run_states(self, owners: Sequence[str]) -> Mapping[str, RunState]:
        by_id: dict[str, RunState | None]
        by_id = {run.run_id: run.state for run in self.runs if run.run_id in owners}
        by_key: dict[str, RunState | None]
        by_key = {run.run_key: run.state for run in self.runs if run.state is RunState.ENDED}
        by_key |= {run.run_key: run.state for run in self.runs if run.state is not RunState.ENDED}
        return {owner: state for owner, state in (by_id | by_key).items() if state is not None}

    def _request(self, keeper: int, done: TickResult) -> None:
        self.cursors[keeper] += bool(done.dispatches or done.scale_ups)
        for order in done.dispatches:
            if order.run_key not in {run.run_key for run in self.runs}:
                self._new_run(order.run_key, keeper)
        for begun in done.scale_ups:
            if begun.run_key not in {run.run_key for run in self.runs}:
                self._new_run(begun.run_key, keeper, scale_ups=True)

    def _new_run(self, run_key: str, keeper: int, *, scale_ups: bool = False) -> None:
        run_id = f"run-{len(self.runs)}"
        self.runs.append(Run(run_id=run_id, run_key=run_key, keeper=keeper, scale_ups=scale_ups))

    def _launch(self, run: Run) -> None:
        run.state = RunState.ACTIVE
        work = self._scale_up if run.scale_ups else self._work
        run.actors = [Actor(run.run_id, partial(work, run, self.keepers[run.keeper]))]

    def _work(self, run: Run, keeper: Services, actor: Actor) -> None:
        """What Dagster does with `restart_orphans`: its orphans are restarted side by side."""
        try:
            incidents = keeper.restarter.claim(run.run_key, run.run_id)
        except UnavailableError:
            return
        for incident in incidents[1:]:
            work = partial(self._restart, run, keeper, incident.incident_id)
            run.actors.append(Actor(f"{run.run_id}/{incident.incident_id}", work))
        if incidents:
            self._restart(run, keeper, incidents[0].incident_id, actor)

    def _restart(self, run: Run, keeper: Services, incident_id: int, actor: Actor) -> None:
        """A step, which is tried again after a while."""
        for tries in range(keeper.policy.max_retries + 1):
            if tries:
                self._sleep(actor, self.now + keeper.policy.grace_period)
            if not self._takes_turn(run, keeper, incident_id, actor):
                break

    def _scale_up(self, run: Run, keeper: Services, actor: Actor) -> None:
        """What Dagster does with `scale_up_groups`: a step for each group."""
        del actor
        try:
            taken = keeper.scaler.claim(run.run_key, run.run_id)
        except UnavailableError:
            return
        for scale_up in taken:
            launches: list[Launch] = []
            self.turns[run.run_id] = (0, launches, scale_up.group_name)
            self.missing[run.run_id] = self._missing(run.run_id)
            try:
                filled = keeper.scaler.scale_up(scale_up.group_name, run.run_id)
            except UnavailableError:
                continue
            finally:
                del self.missing[run.run_id]
                self.starting.pop(run.run_id, None)
            is_started = filled.outcome is scale_ups.ScaleUpOutcome.STARTED
            for launch in launches:
                launch.is_settled = is_started
            if is_started:
                self._check_replaced(scale_up.resource_id)

    def _takes_turn(self, run: Run, keeper: Services, incident_id: int, actor: Actor) -> bool:
        """Takes a turn; returns whether it is to be tried again."""
        launches: list[Launch] = []
        self.turns[actor.name] = (incident_id, launches, "")
        self.stood[actor.name] = self._is_stood_in(
            self.stores.rows("SELECT * FROM keeper_incident WHERE incident_id = ?", incident_id)[0]
        )
        try:
            turn = keeper.restarter.restart(incident_id, run.run_id)
        except UnavailableError:
            return True
        for launch in launches:
            launch.is_settled = turn.outcome is Outcome.STARTED
        return turn.outcome is Outcome.FAILED

    def _go_on(self, actor: Actor, step: Step) -> None:
        if not actor.is_over and not self._is_asleep(actor):
            standing = {launch.resource_id for launch in self._registered()}
            _, before = self.orphans.get(actor.name, (set(), set()))
            self.orphans[actor.name] = before, self.resources.keys() - standing
            self.stage.let(actor, step)
        self._sweep()

    def _finish(self, actor: Actor, step: Step) -> None:
        while not actor.is_over and not self._is_asleep(actor):
            self._go_on(actor, step)
        self._sweep()

    def _sweep(self) -> None:
        """Takes from the stage what is over; Dagster sees runs end that end by themselves."""
        for run in self.runs:
            if run.actors and all(actor.is_over for actor in run.actors):
                killed = any(actor.was_killed for actor in run.actors)
                run.actors = []
                if run.state is RunState.ACTIVE and not killed:
                    run.state = RunState.ENDED
        self.sensing = {
            keeper: actor for keeper, actor in self.sensing.items() if not actor.is_over
        }

    def _run_everything(self, step: Step) -> None:
        self._finish_all(step)
        for run in self._launchable():
            self._launch(run)
            self._finish_all(step)

    def _finish_all(self, step: Step) -> None:
        while awake := self.awake():
            self._finish(awake[0], step)
