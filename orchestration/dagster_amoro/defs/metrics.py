"""What does a tick say of itself, so that a deployment that stopped is noticed?

A tick has no metadata in Dagster; its numbers are those of an observation of Amoro's table
`resource`, which the UI plots over time.
"""

from dataclasses import replace
from datetime import datetime

import dagster as dg

from dagster_amoro.asset_keys import DEFAULT, Names
from dagster_amoro.core.groups import min_parallelism
from dagster_amoro.core.messages import ABSTENTIONS, ACTS, AGE, OPEN_INCIDENTS, PAUSED, REFUSED
from dagster_amoro.core.policy import ON_ITS_WAY, Verdict
from dagster_amoro.core.texts import shown
from dagster_amoro.core.tick_inputs import RegistrySnapshot
from dagster_amoro.core.tick_plan import TickPlan
from dagster_amoro.defs.cursor import Cursor, Number, Numbers
from dagster_amoro.healing.tick import TickResult


def of_tick(result: TickResult, deployment: str) -> Numbers:
    """The numbers of a tick that read the registry and acted; `deployment` may be empty."""
    plan = result.plan
    return {
        "resources": result.snapshot.resources,
        "orphans": len(result.snapshot.orphans),
        OPEN_INCIDENTS: len(plan.due) + len(plan.waiting),
        REFUSED: _refused(plan),
        "groups below their min-parallelism": _below_min_parallelism(result.snapshot),
        ABSTENTIONS: 0,
        AGE: 0,
        ACTS: deployment or "this deployment",
        PAUSED: result.pauses,
    }


def of_standby(cursor: Cursor, now: datetime) -> tuple[Numbers, Cursor]:
    """The numbers of a tick that left the fleet to another deployment; what it remembers."""
    # The fleet was looked after until now: whoever takes over counts from here.
    return {ACTS: "watching", ABSTENTIONS: 0}, replace(cursor, abstentions=0, completed_at=now)


def of_abstention(cursor: Cursor, now: datetime) -> tuple[Numbers, Cursor]:
    """The numbers of a tick that concluded nothing; what it remembers."""
    numbers: dict[str, Number] = {ABSTENTIONS: cursor.abstentions + 1, ACTS: "nobody"}
    if cursor.completed_at is not None:
        numbers[AGE] = max((now - cursor.completed_at).total_seconds(), 0.0)
    return numbers, replace(cursor, abstentions=cursor.abstentions + 1)


def news(
    numbers: Numbers, reported: Numbers, message: str, names: Names = DEFAULT
) -> list[dg.AssetObservation]:
    """The observation of the numbers; none where nothing changed: a quiet fleet logs nothing."""
    if dict(numbers) == dict(reported):
        return []
    told = str(shown(message))
    return [dg.AssetObservation(names.resources, description=told, metadata=dict(numbers))]


def _refused(plan: TickPlan) -> int:
    """Restarts that a limit holds back now, and those whose last start failed."""
    held = sum(
        decision.verdict is Verdict.HOLD and incident.incident_id in plan.verdicts
        for incident, decision in plan.waiting
    )
    going_on = [i for i, decision in plan.waiting if decision.verdict is not Verdict.HOLD]
    return held + sum(
        incident.last_error is not None and incident.state in ON_ITS_WAY
        for incident in (*going_on, *plan.due)
    )


def _below_min_parallelism(snapshot: RegistrySnapshot) -> int:
    sized = snapshot.sized.items()
    return sum(snapshot.live.get(name, 0) < (min_parallelism(group) or 0) for name, group in sized)
