"""What can be written to the ledger: steps of incidents and of scale-ups, events and pauses."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa

from dagster_amoro.core.model import Event, Incident, ScaleUp, Transition
from dagster_amoro.core.pauses import Pause, Target
from dagster_amoro.stores import schema
from dagster_amoro.stores.database import insert_unless_there
from dagster_amoro.stores.schema import INCIDENTS, event, incident, removed_row


class LedgerTransaction:
    """One transaction on the ledger: everything applied through it is committed together."""

    def __init__(self, connection: sa.Connection, *, dry_run: bool = False) -> None:
        """Used through `Ledger.transaction`."""
        self.connection = connection
        self._dry_run = dry_run

    def apply(self, transitions: Iterable[Transition]) -> list[Incident | None]:
        """Takes each step whose expected state still holds, with its event.

        Returns for each the incident as it now stands, or None where the race was lost: somebody
        else moved it first, and nothing was written for it.
        """
        results = [(self._step(transition), transition) for transition in transitions]
        taken = [(moved, step) for moved, step in results if moved is not None]
        self._add_events((moved.incident_id, moved.group_name, step.event) for moved, step in taken)
        self._insert(removed_row, [_removal(moved, step) for moved, step in taken if step.row])
        return [moved for moved, _ in results]

    def add_pause(self, pause: Pause) -> None:
        """Pauses a target; an earlier pause of this target ends."""
        self.end_pause(pause.target)
        values = asdict(pause)
        values |= values.pop("target")
        self._insert(schema.pause, [values])

    def end_pause(self, target: Target) -> bool:
        """Ends the pause of a target; False: it was not paused."""
        chosen = (schema.pause.c.scope == target.scope, schema.pause.c.name == target.name)
        return self._found(sa.delete(schema.pause).where(*chosen))

    def move_scale_up(self, before: ScaleUp | None, after: ScaleUp) -> bool:
        """Takes a step of a group's scale-up; `before` is None where the group had none.

        False: somebody else moved it first; nothing was written.
        """
        values = after._asdict() | {"dry_run": int(self._dry_run)}
        if before is None:
            return insert_unless_there(self.connection, schema.scale_up, values)
        return self._found(sa.update(schema.scale_up).where(*self._as(before)).values(values))

    def forget_scale_up(self, scale_up: ScaleUp) -> bool:
        """Forgets a group's scale-up; False: somebody else moved it first, and it stays."""
        return self._found(sa.delete(schema.scale_up).where(*self._as(scale_up)))

    def add_event(
        self, event: Event, incident: Incident | None = None, *, group_name: str | None = None
    ) -> None:
        """Adds an event that moves no incident.

        It belongs to the story of an incident; or concerns a group; or, with neither, every group.
        """
        of = (incident.incident_id, incident.group_name) if incident else (None, group_name)
        self._add_events([(*of, event)])

    def _as(self, read: ScaleUp) -> list[sa.ColumnElement[bool]]:
        """Chooses a scale-up where it is still as it was read."""
        columns = schema.scale_up.c
        names = ("group_name", "resource_id", "version")
        same = [columns[name] == getattr(read, name) for name in names]
        return [*same, columns.dry_run == int(self._dry_run)]

    def _found(self, statement: sa.Update | sa.Delete) -> bool:
        return self.connection.execute(statement).rowcount > 0

    def _insert(self, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
        if rows:
            self.connection.execute(sa.insert(table), rows)

    def _add_events(self, events: Iterable[tuple[int | None, str | None, Event]]) -> None:
        prefix = "dry run, nothing is done: " if self._dry_run else ""
        mark = {"dry_run": True} if self._dry_run else {}
        rows = [
            {
                "incident_id": incident_id,
                "group_name": group_name,
                "kind": str(new.kind),
                "at": new.at,
                "message": f"{prefix}{new.message}",
                "attempt": new.attempt,
                "run_id": new.run_id,
                "details": json.dumps({**new.details, **mark}, ensure_ascii=False),
            }
            for incident_id, group_name, new in events
        ]
        self._insert(event, rows)

    def _step(self, transition: Transition) -> Incident | None:
        before, after = transition.before, transition.after
        # An incident of a dry run stays one if it ends before its attempts were struck out.
        unsettled = before is not None and before.dry_run and not after.is_open
        after = after._replace(dry_run=self._dry_run or unsettled)
        is_open = after.resource_id if after.is_open else None
        row = after._asdict() | {"open_resource_id": is_open, "dry_run": int(after.dry_run)}
        del row["incident_id"]
        if before is None:
            if not insert_unless_there(self.connection, incident, row):
                return None
            query = INCIDENTS.where(incident.c.open_resource_id == after.resource_id)
            return Incident._make(self.connection.execute(query).one())
        names = ("incident_id", "state", "version")
        same = [incident.c[name] == getattr(before, name) for name in names]
        return after if self._found(sa.update(incident).where(*same).values(row)) else None


def _removal(of: Incident, step: Transition) -> dict[str, Any]:
    content = json.dumps(dict(step.row or {}), ensure_ascii=False)
    return {"incident_id": of.incident_id, "kept_at": step.event.at, "content": content}
