"""A sensor that tells people who look at no page: of losses, failed checks and silence, once each.

It reads what the checks read, and needs nothing of Dagster but its own cursor. The cursor is kept
when the evaluation is over, so what was sent is sent again only by a process that died in between,
with the same key.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Thread
from typing import Final

import dagster as dg

from dagster_amoro import telling
from dagster_amoro.core.alerts import Alert
from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.formatting import counted
from dagster_amoro.core.texts import shown
from dagster_amoro.healing.status import StatusReader
from dagster_amoro_audit import alerts
from dagster_amoro_audit.inspection import Inspector

Send = Callable[[Alert], object]
"""Sends an alert, and raises anything where that did not work."""

_LONGEST: Final = 25.0  # s after which no further alert is begun: Dagster ends a tick after 60 s
_SLOWEST: Final = timedelta(seconds=30)  # between two evaluations, at most
_DESCRIPTION: Final = (
    "Sends alerts: of what was given up, of checks whose answer changed, and when no survey of the "
    "fleet was completed for three check intervals. What cannot be sent is tried again."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alerter:
    """Finds out what is to be told, and sends it."""

    inspector: Inspector
    status: StatusReader
    send: Send
    base: str  # where the web server is, without a slash at the end
    watches: bool  # whether surveys are to be expected
    patience: float = 20.0  # s that one send may take
    stopwatch: Callable[[], float] = time.monotonic  # seconds

    def tell(
        self, instance: dg.DagsterInstance, cursor: str | None, location: str | None
    ) -> tuple[str, str]:
        """Sends what was not told yet; returns the cursor after that, and what it did."""
        began, memory = self.stopwatch(), alerts.load(cursor)
        memory, seen = self._look(memory, instance, location)
        number, problem = 0, None
        for alert, following in alerts.pending(memory, seen):
            if self.stopwatch() - began > _LONGEST:
                problem = "the others follow"
                break
            if (why := sent(self.send, alert, self.patience)) is not None:
                problem = f"the next one could not be sent and is tried again: {why}"
                break
            number, memory = number + 1, following
        if problem is None and seen.status is not None:
            memory = alerts.settled(memory, seen.now)
        said = f"{counted(number, 'alert')} sent" + (f"; {problem}" if problem else "")
        return alerts.dump(memory), said

    @property
    def _notes_surveys(self) -> bool:
        return self.status.reader.settings.notes_surveys

    def _look(
        self, memory: alerts.Memory, instance: dg.DagsterInstance, location: str | None
    ) -> tuple[alerts.Memory, alerts.Seen]:
        """What there is now, and the memory without what is over."""
        now, origin, status, reason = self.inspector.clock(), "", None, None
        findings = {}
        try:
            origin, at = self.inspector.ledger.identity, self.inspector.ledger.surveyed_at()
            if at is not None and self._notes_surveys:
                memory = replace(memory, surveyed=at.timestamp())
            status = self.status.read()
            reason = status.silence or status.doubt
            memory = alerts.remembered(memory, status)
            looks = self.inspector.looks(instance)
            for name in looks.keys() - alerts.NOT_BY_CHECK:
                findings[name] = looks[name]()
        except KeeperError as error:
            reason = describe(error)
        if memory.surveyed is None:
            memory = replace(memory, surveyed=now.timestamp())
        if self.watches:
            at = datetime.fromtimestamp(memory.surveyed or 0, UTC)
            silence = alerts.survey(at, now, self.inspector.check_interval, reason)
            if self._notes_surveys:
                findings[alerts.SURVEY] = silence
            elif not silence.passed:  # by then there has to be a tick that Dagster knows of
                findings[alerts.SURVEY] = self.inspector.freshness(instance, now, location)
        seen = alerts.Seen(
            now=now,
            origin=origin,
            base=self.base,
            pages=self.inspector.names.pages,
            status=status,
            findings=findings,
        )
        return memory, seen


def sent(send: Send, alert: Alert, patience: float) -> str | None:
    """Why an alert could not be sent in time; None: it was.

    In a thread of its own: Dagster would end a tick that hangs, and what it sent before would be
    sent again.
    """
    ended: list[str | None] = []

    def run() -> None:
        try:
            send(alert)
            ended.append(None)
        except Exception as error:  # noqa: BLE001 - of whoever wrote it
            ended.append(describe(error))

    thread = Thread(target=run, name="alert", daemon=True)
    thread.start()
    thread.join(patience)
    return ended[0] if ended else f"it took longer than {patience:g} s"


def build_sensor(alerter: Alerter) -> dg.SensorDefinition:
    """The sensor; it is running by default where surveys are to be expected."""
    statuses = {True: dg.DefaultSensorStatus.RUNNING, False: dg.DefaultSensorStatus.STOPPED}
    interval = min(alerter.inspector.check_interval, _SLOWEST)

    @dg.sensor(
        name=alerter.inspector.names.of("alert_sensor"),
        minimum_interval_seconds=int(interval.total_seconds()),
        default_status=statuses[alerter.watches],
        description=_DESCRIPTION,
    )
    def alert_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        origin = context.code_location_origin
        location = origin.location_name if origin else None
        cursor, said = alerter.tell(context.instance, context.cursor, location)
        if not said.startswith("0 "):
            telling.log(context, said)
        return dg.SensorResult(skip_reason=shown(said), cursor=cursor)

    return alert_sensor
