"""How does a fleet become what config.yaml declares? In steps, each of which may be said again.

Rows come first. Whoever has added a row starts its worker, and the row says so. Whatever was there
before is started as an orphan is restarted, by `Restarter`, while its incident is in the hands of
this process: so no tick, no run and no other apply starts it as well. Whoever is killed at any
place leaves what the next apply, or the keeper, goes on with.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from dagster_amoro.containers.calls import stop
from dagster_amoro.core.errors import ConfigError, ContainerError, KeeperError, describe
from dagster_amoro.core.fleet_plan import (
    DECLARED,
    NOBODY,
    STARTED_BY,
    Action,
    DeclaredGroup,
    FleetInputs,
    FleetPlan,
    Step,
    declared_row,
    may_start,
    plan_fleet,
)
from dagster_amoro.core.groups import group_obstacle
from dagster_amoro.core.messages import DRY_RUN
from dagster_amoro.core.model import Event, EventKind, Incident, Orphan, Resource
from dagster_amoro.core.pauses import Pauses
from dagster_amoro.core.policy import holds_claim
from dagster_amoro.core.properties import dump_properties
from dagster_amoro.core.transitions import (
    Hold,
    by_of,
    give_back,
    observed,
    signed,
    take_over,
    take_up,
)
from dagster_amoro.healing.owners import has_ended, new_owner
from dagster_amoro.healing.releases import Releaser
from dagster_amoro.healing.restart import Outcome, Restarter, resource_of
from dagster_amoro.healing.restart_pool import ContainerThreads
from dagster_amoro.healing.starts import start_new

if TYPE_CHECKING:
    from concurrent.futures import Future

_TRIES: Final = 3  # to take in hand what a tick moves at the same moment
_SHOWN: Final = 20  # steps that could not be done
_CHANGED: Final = "changed"  # why a worker ended that is started anew
_BY_OTHERS: Final = "a run or another apply has it in hand, or has started it by now"
_MEANWHILE: Final = "it was changed by others at the same moment"
_GOOD: Final = frozenset({Outcome.STARTED, Outcome.RECOVERED})
_DONE: Final = {
    Action.ADD: "added",
    Action.CHANGE: "changed",
    Action.START: "started",
    Action.ADOPT: "adopted",
    Action.RELEASE: "released",
}


class Done(NamedTuple):
    """What came of a step."""

    step: Step
    is_good: bool
    message: str  # what happened, and what happens next


class Applied(NamedTuple):
    """What came of a plan."""

    done: tuple[Done, ...]
    is_dry_run: bool = False  # then nothing was done

    @property
    def is_good(self) -> bool:
        """Whether every step was taken."""
        return all(each.is_good for each in self.done)

    def lines(self) -> Iterator[str]:
        """What could not be done, and how many steps were."""
        if self.is_dry_run:
            yield f"{DRY_RUN}keeper.mode is dry-run."
            return
        bad = [each.message for each in self.done if not each.is_good]
        yield from bad[:_SHOWN]
        numbers = Counter(_DONE[each.step.action] for each in self.done if each.is_good)
        parts = [f"{number:,} {what}" for what, number in numbers.items()]
        parts += [f"{len(bad):,} left, which the next apply goes on with"] if bad else []
        yield f"{', '.join(parts) or 'Done'}."


@dataclass(frozen=True, kw_only=True, slots=True)
class Applier:
    """Makes a fleet what was declared."""

    fleet: tuple[DeclaredGroup, ...] | None  # None: nothing was declared
    restarter: Restarter
    releaser: Releaser

    def plan(self, *, unattended: bool = False) -> FleetPlan:
        """What differs from the declaration now.

        `unattended`: nobody looks at it, so what was given up stays so.

        Raises:
            ConfigError: There is no declaration, or the registry is an AMS's.
            StoreUnavailableError: A store did not answer.
        """
        if self.releaser.attached:
            raise ConfigError("the fleet of an attached registry is made in AMS, not here")
        if self.fleet is None:
            raise ConfigError("config.yaml declares no fleet: it has no section `fleet`")
        ledger, now = self.restarter.ledger, self.restarter.clock()
        # Before the registry, as a tick does: what recovers in between is registered there.
        incidents = {each.resource_id: each for each in ledger.open_incidents()}
        ids = [worker.resource_id for group in self.fleet for worker in group.workers]
        stored = self.restarter.registry.read_fleet(ids)
        missing = [each for each in ids if each not in stored.rows]
        inputs = FleetInputs(
            stored=stored,
            incidents=incidents,
            pauses=Pauses(ledger.pauses(), now),
            in_hands=lambda incident: _in_hands(incident, now),
            has_ended=has_ended,
            heals=self.restarter.policy.enabled,
            given_up=ledger.removed_of(missing) if unattended else frozenset(),
        )
        return plan_fleet(self.fleet, inputs)

    def apply(self, plan: FleetPlan, *, author: str, reason: str) -> Applied:
        """Does what a plan has `to_do`; steps of different resources side by side.

        Raises:
            KeeperError: Nobody wants it, or a store did not answer at the beginning; nothing was
                begun.
        """
        by, restarter, owner = by_of(author, reason), self.restarter, new_owner()
        if restarter.ledger.dry_run or plan.is_empty:
            return Applied((), is_dry_run=restarter.ledger.dry_run)
        self._note(plan, by)
        new = [each.declared for each in plan.steps if each.action is Action.ADD and each.declared]
        rows = [declared_row(each, owner) for each in new]
        work = self._work(plan, by, owner, restarter.registry.declare(plan.groups, rows))
        threads = ContainerThreads(restarter.containers, restarter.max_concurrent_starts)
        begun: list[Future[Done]] = []
        try:
            begun.extend(threads.submit(each.container_name, work.do, each) for each in plan.steps)
            return Applied(tuple(each.result() for each in begun))
        finally:
            threads.close(begun)

    def _note(self, plan: FleetPlan, by: Mapping[str, str]) -> None:
        """Tells of each group what is about to be done, before anything is."""
        by_group: dict[str, Counter[str]] = {each.name: Counter() for each in plan.groups}
        for step in plan.steps:
            by_group.setdefault(step.group_name, Counter())[str(step.action)] += 1
        with self.restarter.ledger.transaction() as ledger:
            for name, numbers in by_group.items():
                parts = [f"{number:,} to {action}" for action, number in numbers.items()]
                what = f"made what config.yaml declares: {', '.join(parts) or 'its properties'}"
                details = {**by, **numbers}
                event = Event(
                    kind=EventKind.APPLIED,
                    at=self.restarter.clock(),
                    message=signed(what, by),
                    details=details,
                )
                ledger.add_event(event, group_name=name)

    def _work(
        self, plan: FleetPlan, by: Mapping[str, str], owner: str, added: Collection[str]
    ) -> "_Work":
        registry, policy = self.restarter.registry, self.restarter.policy
        groups = {step.group_name for step in plan.steps}
        return _Work(
            # A person wants these starts, whether orphans are restarted or not.
            restarter=replace(self.restarter, policy=replace(policy, enabled=True)),
            releaser=self.releaser,
            by=by,
            owner=owner,
            heals=policy.enabled,
            added=added,
            newest_starts=registry.newest_starts(groups),
            capacity=registry.capacity(groups),
            fence=self.restarter.ledger.fence(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """Takes the steps of one plan."""

    restarter: Restarter
    releaser: Releaser
    by: Mapping[str, str]
    owner: str  # this process, as the ledger has it
    heals: bool  # whether the keeper restarts orphans
    added: Collection[str]  # resources whose rows are new
    newest_starts: Mapping[str, str]  # by group, for the incidents that open
    capacity: Mapping[str, tuple[int, int]]  # by group
    fence: int | None  # of the lease in force

    def do(self, step: Step) -> Done:
        """Takes a step; whatever is in its way concerns that one alone."""
        try:
            match step:
                case Step(Action.ADD, declared=Resource() as declared):
                    return self._add(step, declared)
                case Step(
                    Action.START | Action.CHANGE, row=Orphan() as row, declared=Resource() as new
                ):
                    return self._restart(step, row, new)
                case Step(Action.ADOPT, row=Orphan() as row, declared=Resource() as declared):
                    return self._adopt(step, row, declared)
                case Step(Action.RELEASE):
                    done = self.releaser.release(step.resource_id, **self.by)
                    return Done(step, is_good=True, message=done)
        except KeeperError as error:
            return _left(step, describe(error))
        return _left(step, step.what)

    def _add(self, step: Step, declared: Resource) -> Done:
        new, of = declared_row(declared, self.owner), self.restarter
        if step.resource_id not in self.added or not self._is_untouched(new):
            return _left(step, _BY_OTHERS)
        try:
            start_new(of.registry, of.containers, new, {STARTED_BY: ""})
        except ContainerError as error:
            failed = {STARTED_BY: NOBODY}
            of.registry.save_startup(new.resource_id, dump_properties(new.properties), failed)
            return _left(step, describe(error))
        return Done(step, is_good=True, message=f"{step.resource_id} was started.")

    def _is_untouched(self, new: Resource) -> bool:
        """Whether nobody has started it since its row was added: a queue can be long."""
        row = self.restarter.registry.read_resource(new.resource_id, to_act=True).row
        if row is None or row["properties"] != dump_properties(new.properties):
            return False
        incident = self.restarter.ledger.open_incident(new.resource_id)
        return incident is None or not _in_hands(incident, self.restarter.clock())

    def _restart(self, step: Step, row: Orphan, declared: Resource) -> Done:
        """Starts what was started before, or may have been, if anything could start it."""
        group = self.restarter.registry.group(declared.group_name)
        obstacle = group_obstacle(group, self.restarter.settings)
        obstacle = obstacle or self.restarter.containers.obstacle(declared.container_name)
        if obstacle is not None:
            return _left(step, obstacle)
        do = self._start if step.action is Action.START else self._change
        return do(step, row, declared)

    def _start(self, step: Step, row: Orphan, declared: Resource) -> Done:
        incident = self._hold(
            declared,
            "it is declared and has no worker",
            takes=lambda found: may_start(found, heals=self.heals),
        )
        if incident is None:
            return _left(step, _BY_OTHERS)
        registry, over = self.restarter.registry, {STARTED_BY: ""}
        if not registry.save_startup(row.resource_id, row.properties, over):
            return self._let_go(step, incident, _MEANWHILE)
        return self._restarted(step, incident)

    def _change(self, step: Step, row: Orphan, declared: Resource) -> Done:
        """Stops the worker as it was started, before its row says how the next one is."""
        ledger, registry = self.restarter.ledger, self.restarter.registry
        container = self.restarter.containers.get(row.container_name or "")
        started = resource_of(row)
        why = f"its declaration changed ({step.what})"
        incident = self._hold(declared, why, cause=_CHANGED)
        if incident is None:
            return _left(step, _BY_OTHERS)
        if notes := stop(container, started, row.resource_id).notes:
            return self._let_go(step, incident, "; ".join(notes))
        current, new = ledger.incident(incident.incident_id), declared_row(declared)
        is_held = current is not None and current.claimed_by == self.owner
        if not (is_held and registry.redeclare(row.resource_id, row.properties, new)):
            return self._let_go(step, incident, _MEANWHILE)
        return self._restarted(step, incident)

    def _adopt(self, step: Step, row: Orphan, declared: Resource) -> Done:
        mark = {DECLARED: dump_properties(declared.properties), STARTED_BY: ""}
        if self.restarter.registry.save_startup(row.resource_id, row.properties, mark):
            message = f"{row.resource_id} is a declared one from now on."
            return Done(step, is_good=True, message=message)
        return _left(step, _MEANWHILE)

    def _hold(
        self,
        declared: Resource,
        why: str,
        *,
        cause: str | None = None,
        takes: Callable[[Incident], bool] = lambda _: True,
    ) -> Incident | None:
        """Takes a resource in hand, so that nobody else starts it; None: others have it."""
        ledger, group, name = self.restarter.ledger, declared.group_name, declared.resource_id
        for _ in range(_TRIES):
            now = self.restarter.clock()
            until = now + self.restarter.settings.claim_timeout
            hold = Hold(self.owner, self.by, now, until, self.fence)
            found = ledger.open_incident(name)
            if found is None:
                newest = self.newest_starts.get(group)
                own = (declared.container_name, declared.thread_count, declared.memory_mb)
                orphan = Orphan(name, group, *own, properties=None)
                step = take_up(orphan, hold, why, cause=cause, newest_start=newest)
                step = observed(step, self.capacity.get(group), self.restarter.policy)
            elif _in_hands(found, now) or not takes(found):
                return None
            else:
                step = take_over(found, hold, why)
            with ledger.transaction() as transaction:
                (held,) = transaction.apply([step])
            if held is not None:
                return held
        return None

    def _restarted(self, step: Step, incident: Incident) -> Done:
        result = self.restarter.restart(incident.incident_id, self.owner)
        if result.outcome is Outcome.FAILED and result.incident is not None:
            self._give_back(result.incident, "the keeper goes on with it")
        return Done(step, result.outcome in _GOOD, result.message)

    def _let_go(self, step: Step, incident: Incident, why: str) -> Done:
        self._give_back(incident, why)
        return _left(step, why)

    def _give_back(self, incident: Incident, why: str) -> None:
        with self.restarter.ledger.transaction() as ledger:
            ledger.apply([give_back(incident, why, self.restarter.clock())])


def _in_hands(incident: Incident, now: datetime) -> str | None:
    """In whose hands an incident is that may still act; None: in nobody's."""
    if incident.state.is_removing:
        return "its removal is under way"
    if not holds_claim(incident, {}, now):
        return None
    if not incident.is_in_apply:
        return "a run has it in hand"
    return None if has_ended(incident.claimed_by or "") else "another apply has it in hand"


def _left(step: Step, why: str) -> Done:
    return Done(step, is_good=False, message=f"{step.resource_id} was left: {why}.")
