"""What can be written to the ledger: steps of incidents and of scale-ups, events and pauses."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import sqlalchemy as sa

from dagster_amoro.core.model import Event, Incident, Transition
from dagster_amoro.core.pauses import Pause, Target
from dagster_amoro.core.scale_up import ScaleUp
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import insert_unless_there
from dagster_amoro.stores.reader import INCIDENTS
from dagster_amoro.stores.schema import event, incident, removed_row

_DRY_RUN_PREFIX: Final = "dry run, nothing is done: "  # of the messages of its events


class LedgerTransaction:
    """One transaction on the ledger: everything applied through it is committed together."""

    def __init__(self, connection: sa.Connection, *, dry_run: bool = False) -> None:
        """Used through `Ledger.transaction`."""
        self.connection = connection
        self._dry_run = dry_run

    def apply(self, transitions: Iterable[Transition]) -> list[Incident | None]:
        """Takes each step whose expected state still holds, with its event.

        Returns:
            For each transition the incident as it now stands, or None where the race was lost:
            somebody else moved it first, and nothing was written for it.
        """
        results = [(self._step(transition), transition) for transition in transitions]
        taken = [(moved, step) for moved, step in results if moved is not None]
        self._add_events((moved.incident_id, moved.group_name, step.event) for moved, step in taken)
        self._insert(removed_row, [_removal(moved, step) for moved, step in taken if step.row])
        return [moved for moved, _ in results]

    def add_pause(self, pause: Pause) -> None:
        """Pauses a target; an earlier pause of this target ends."""
        self.end_pause(pause.target)
        values = {
            "scope": str(pause.target.scope),
            "name": pause.target.name,
            "reason": pause.reason,
            "author": pause.author,
            "paused_at": pause.paused_at,
            "until": pause.until,
        }
        self._insert(schema.pause, [values])

    def end_pause(self, target: Target) -> bool:
        """Ends the pause of a target; False: it was not paused."""
        chosen = (schema.pause.c.scope == str(target.scope), schema.pause.c.name == target.name)
        return self.connection.execute(sa.delete(schema.pause).where(*chosen)).rowcount > 0

    def move_scale_up(self, before: ScaleUp | None, after: ScaleUp) -> bool:
        """Takes a step of a group's scale-up.

        Args:
            before: The scale-up as it was read; None: the group had none.
            after: What it becomes.

        Returns:
            False: somebody else moved it first; nothing was written.
        """
        values = after._asdict() | {"state": str(after.state), "dry_run": int(self._dry_run)}
        if before is None:
            return insert_unless_there(self.connection, schema.scale_up, values)
        expected = self._expected(before)
        update = sa.update(schema.scale_up).where(*expected).values(values)
        return self.connection.execute(update).rowcount == 1

    def forget_scale_up(self, scale_up: ScaleUp) -> bool:
        """Forgets a group's scale-up; False: somebody else moved it first, and it stays."""
        delete = sa.delete(schema.scale_up).where(*self._expected(scale_up))
        return self.connection.execute(delete).rowcount == 1

    def add_event(
        self, event: Event, incident: Incident | None = None, *, group_name: str | None = None
    ) -> None:
        """Adds an event that moves no incident.

        Args:
            event: The event.
            incident: The incident whose story it belongs to; None: it is about no incident.
            group_name: The group that it concerns where it is about no incident; None: it concerns
                every group.
        """
        of = (incident.incident_id, incident.group_name) if incident else (None, group_name)
        self._add_events([(*of, event)])

    def _expected(self, scale_up: ScaleUp) -> tuple[sa.ColumnElement[bool], ...]:
        columns = schema.scale_up.c
        return (
            columns.group_name == scale_up.group_name,
            columns.dry_run == int(self._dry_run),
            columns.resource_id == scale_up.resource_id,
            columns.version == scale_up.version,
        )

    def _add_events(self, events: Iterable[tuple[int | None, str | None, Event]]) -> None:
        self._insert(event, [_event_row(*each, dry_run=self._dry_run) for each in events])

    def _insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.connection.execute(sa.insert(table), rows)

    def _step(self, transition: Transition) -> Incident | None:
        after = transition.after
        # An incident of a dry run stays one if it ends before its attempts were struck out.
        unsettled = transition.before is not None and transition.before.dry_run
        dry_run = self._dry_run or (unsettled and not after.is_open)
        if after.dry_run != dry_run:
            after = after._replace(dry_run=dry_run)
        if transition.before is None:
            return self._open(after)
        return after if self._move(transition.before, after) else None

    def _open(self, new: Incident) -> Incident | None:
        if not insert_unless_there(self.connection, incident, _incident_row(new)):
            return None
        query = INCIDENTS.where(incident.c.open_resource_id == new.resource_id)
        return Incident._make(self.connection.execute(query).one())

    def _move(self, before: Incident, after: Incident) -> bool:
        expected = (
            incident.c.incident_id == before.incident_id,
            incident.c.state == before.state,
            incident.c.version == before.version,
        )
        update = sa.update(incident).where(*expected).values(_incident_row(after))
        return self.connection.execute(update).rowcount == 1


def _incident_row(value: Incident) -> dict[str, Any]:
    is_open = value.resource_id if value.is_open else None
    row = value._asdict() | {"open_resource_id": is_open, "dry_run": int(value.dry_run)}
    del row["incident_id"]
    return row


def _event_row(
    incident_id: int | None, group_name: str | None, new: Event, *, dry_run: bool
) -> dict[str, Any]:
    details = {**new.details, **({"dry_run": True} if dry_run else {})}
    return {
        "incident_id": incident_id,
        "group_name": group_name,
        "kind": str(new.kind),
        "at": new.at,
        "message": f"{_DRY_RUN_PREFIX}{new.message}" if dry_run else new.message,
        "attempt": new.attempt,
        "run_id": new.run_id,
        "details": json.dumps(details, ensure_ascii=False),
    }


def _removal(of: Incident, step: Transition) -> dict[str, Any]:
    content = json.dumps(dict(step.row or {}), ensure_ascii=False)
    return {"incident_id": of.incident_id, "kept_at": step.event.at, "content": content}
