"""The checks of the audit: what each is for, and how to have them made by hand.

They are those of `amoro/resource`, which is the fleet. Dagster takes an answer for outdated when
its asset was materialized since; that one never is, and a refresh of a history changes no answer.
`audit_sensor` looks by itself, and reports what changed; see `audit_sensor.py`.
"""

from collections.abc import Iterator
from typing import Any, Final

import dagster as dg

from dagster_amoro.asset_keys import DEFAULT, Names
from dagster_amoro.core.texts import shown
from dagster_amoro_audit.findings import Finding
from dagster_amoro_audit.inspection import Inspector, location_of

_DESCRIPTIONS: Final = {
    "nothing_given_up": "Fails when a resource was given up, or kept without attempts left, until "
    "it is restored or acknowledged (the verbs restore and acknowledge), or for "
    "keeper.alert-given-up-for. Its row is kept, in the ledger or in the registry; find out why it "
    "could not be started.",
    "no_incident_overdue": "Fails when an orphan is open for longer than all its attempts take: "
    "grace period x (max-retries + 1), or more with exponential backoff. A run may hang, or nobody "
    "may restart it. What is paused, or kept without attempts left, is not counted.",
    "restarts_are_not_refused": "Fails when restarts are refused: by a limit "
    "(keeper.max-orphaned-fraction), by a container whose last start failed, or because a group "
    "was not scaled up in max-keeping-attempts rounds. Pauses are named, and are no refusal.",
    "restarts_succeed": "Warns when fewer restarted resources of the last day came back than "
    "keeper.alert-restart-success. Look at their last errors.",
    "no_resource_flaps": "Warns when a resource was orphaned keeper.alert-flapping times within a "
    "day: it comes back and dies again.",
    "groups_at_min_parallelism": "Fails when the live threads of a group are fewer than its "
    "min-parallelism.",
    "groups_not_doubled": "Warns when a group has more live threads than its min-parallelism since "
    "AMS refilled it for a resource that came back. Release one of its resources, or wait for it.",
    "survey_is_fresh": "Fails when orphan_sensor is stopped, failing or abstaining for longer than "
    "three check intervals: then nobody looks after the fleet.",
}


def build_checks(inspector: Inspector, names: Names = DEFAULT) -> dg.AssetChecksDefinition:
    """All checks, which one run makes together when somebody asks for it."""
    specs = [
        dg.AssetCheckSpec(name, asset=names.resources, description=description)
        for name, description in _DESCRIPTIONS.items()
    ]

    @dg.multi_asset_check(
        name=names.of("audit_checks"),
        specs=specs,
        can_subset=True,
        description="Looks for what a person should look at.",
    )
    def audit_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
        selected = {key.name for key in context.selected_asset_check_keys}
        looks = inspector.looks(context.instance, location_of(context.run))
        for name, look in looks.items():
            if name in selected:
                yield dg.AssetCheckResult(
                    check_name=name, asset_key=names.resources, **_said(look())
                )

    return audit_checks


def evaluation(name: str, found: Finding, names: Names = DEFAULT) -> dg.AssetCheckEvaluation:
    """What a check found, as an event that needs no run."""
    return dg.AssetCheckEvaluation(names.resources, name, **_said(found))


def _said(found: Finding) -> dict[str, Any]:
    return {
        "passed": found.passed,
        "description": str(shown(found.description)),
        "metadata": found.metadata,
        "severity": found.severity,
    }
