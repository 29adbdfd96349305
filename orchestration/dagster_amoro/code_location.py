"""What a code location is made of: settings in, Dagster definitions out."""

from typing import Final

import dagster as dg

from dagster_amoro import telling
from dagster_amoro.asset_keys import DEFAULT, Names, Translation
from dagster_amoro.config import AuditSettings, Settings
from dagster_amoro.core.errors import ConfigError
from dagster_amoro.defs.fleet_sensor import build_fleet_sensor
from dagster_amoro.defs.operator_jobs import build_operator_jobs
from dagster_amoro.defs.restart_job import build_restart_job
from dagster_amoro.defs.scale_up_job import build_scale_up_job
from dagster_amoro.defs.sensor import PRIORITY_TAG, build_orphan_sensor
from dagster_amoro.healing.assembly import Services
from dagster_amoro_audit import io_managers as stores
from dagster_amoro_audit.alert_sensor import Alerter, Send, build_sensor
from dagster_amoro_audit.audit_sensor import build_audit_sensor
from dagster_amoro_audit.checks import build_checks
from dagster_amoro_audit.fleet_status import build_fleet_status
from dagster_amoro_audit.group_reliability import build_group_reliability
from dagster_amoro_audit.inspection import Inspector
from dagster_amoro_audit.lineage import sources
from dagster_amoro_audit.orphan_history import build_orphan_history
from dagster_amoro_audit.prune import build_prune_job, build_prune_schedule
from dagster_amoro_audit.what_if.job import build_what_if_job

AUDIT_TAGS: Final = {
    "dagster-amoro/audit": "true",
    PRIORITY_TAG: "-10",
    "dagster/max_runtime": "3600",
}
"""Of the audit's runs: nobody waits for them, and the first is for a limit in dagster.yaml.

A run that ended with its code server looks to Dagster as if it went on. With the last one run
monitoring ends it after an hour (in seconds), so that it does not hold that limit for ever.
"""


def build_definitions(
    settings: Settings, *, name: str | None = None, translation: Translation | None = None
) -> dg.Definitions:
    """Everything that Dagster needs to keep a fleet alive, to use as it is or to merge.

    Nothing is connected to before the first tick, run or check. What the settings warn of is
    logged.

    Args:
        settings: What `load_settings` has read.
        name: Where one deployment has several keepers, what this one is called: letters, digits and
            underscores. Its jobs, sensors and resources begin with it, and the keys of its assets.
            Empty: none of them does. None: `keeper.dagster-name`.
        translation: How the assets and runs are marked. None: with nothing but the asset groups
            `audit` and `amoro`.

    Raises:
        ConfigError: The driver of a database is not installed, or the name cannot be used.
    """
    names = _names(settings, name, translation)
    for warning in settings.warnings:
        telling.warn(warning)
    return definitions_of(Services.connect(settings), settings.audit, names)


def definitions_of(
    services: Services, audit: AuditSettings, names: Names = DEFAULT
) -> dg.Definitions:
    """The definitions that act with these services, as `build_definitions` makes them."""
    ledger, policy, clock = services.ledger, services.policy, services.clock
    restarting = build_restart_job(services.restarter, names)
    scaling_up = build_scale_up_job(services.scaler, names)
    what_if = build_what_if_job(ledger, policy, clock, names)
    history = build_orphan_history(
        ledger,
        services.post_mortems,
        services.status,
        clock,
        policy.grace_period,
        retention=audit.retention,
        names=names,
    )
    reliability = build_group_reliability(ledger, services.status, policy, clock, names)
    prune = build_prune_job(ledger, audit, policy.stable_after, clock, names)
    applier, interval = services.applier, services.settings.check_interval
    operator_jobs = build_operator_jobs(services.operations, services.status, applier, names)
    applying = [build_fleet_sensor(applier, interval, names)] if services.applies_fleet else []
    inspector = _inspector(services, audit, names)
    fleet = build_fleet_status(services.status, services.post_mortems, ledger, inspector, names)
    tables = sources(names, services.registry.database.url, ledger.database.url)
    return dg.Definitions(
        assets=[*tables, fleet, history, reliability],
        asset_checks=[build_checks(inspector, names)],
        jobs=[restarting, scaling_up, what_if, prune, *operator_jobs],
        schedules=[build_prune_schedule(prune, names)],
        sensors=[
            build_orphan_sensor(services.ticker, restarting, scaling_up, names, services.check_in),
            build_audit_sensor(inspector, AUDIT_TAGS, names, is_running=policy.enabled),
            *applying,
        ],
        resources={
            names.of(name): stores.io_manager(kind, audit.storage)
            for name, kind in stores.MANAGERS.items()
        },
    )


def build_alert_sensor(
    settings: Settings,
    send: Send,
    *,
    webserver: str = "",
    name: str | None = None,
    translation: Translation | None = None,
) -> dg.SensorDefinition:
    """A sensor that tells people who look at no page, to be merged with `build_definitions`.

    It tells of resources that were given up, of checks whose answer changed (also that they pass
    again), and when no survey of the fleet was completed for three check intervals: once each.
    Nothing is connected to before its first tick.

    Args:
        settings: Those of the fleet.
        send: Sends one `Alert`. Where it raises anything, or takes longer than 20 s, this alert and
            those after it are tried again by the next tick. Where its process dies before the tick
            is over, it is called with the same `key` again.
        webserver: The address of Dagster's web server, put before the links of alerts.
        name: As for `build_definitions`, like the next.
        translation: How the assets are marked that alerts lead to.

    Raises:
        ConfigError: The driver of a database is not installed, or the name cannot be used.
    """
    names = _names(settings, name, translation)
    return alert_sensor_of(Services.connect(settings), settings.audit, send, webserver, names)


def alert_sensor_of(
    services: Services, audit: AuditSettings, send: Send, webserver: str, names: Names = DEFAULT
) -> dg.SensorDefinition:
    """The same, with these services."""
    alerter = Alerter(
        inspector=_inspector(services, audit, names),
        status=services.status,
        send=send,
        base=webserver.rstrip("/"),
        watches=services.policy.enabled,
    )
    return build_sensor(alerter)


def _names(settings: Settings, name: str | None, translation: Translation | None) -> Names:
    keeper = settings.name if name is None else name
    try:
        return Names(keeper=keeper, translation=translation or Translation())
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _inspector(services: Services, audit: AuditSettings, names: Names) -> Inspector:
    """What looks at the fleet for the checks."""
    policy = services.policy
    return Inspector(
        ledger=services.ledger,
        registry=services.registry,
        policy=policy,
        limits=services.limits,
        check_interval=services.settings.check_interval,
        clock=services.clock,
        alerts=audit,
        scales_up=policy.enabled and services.ams is None,
        names=names,
    )
