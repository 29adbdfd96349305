"""Ledgers with a past that was made up: random, and with everything that a real one can have."""

import json
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import sqlalchemy as sa

from dagster_amoro.core.model import EventKind, State
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event, incident, removed_row

BEGIN = datetime(2026, 3, 24, 12, tzinfo=UTC)
_OUTCOMES = (State.RECOVERED,) * 6 + (State.EXHAUSTED, State.RELEASED, State.SUPERSEDED)
_NOTED = {State.RECOVERED, State.RELEASED, State.SUPERSEDED}  # by a tick


def fill(ledger: Ledger, random: Random, number: int, days: int) -> datetime:
    """Incidents of some days, and when these days are over.

    They last for seconds or for days, some are open, of a dry run, or closed by a clock that is
    behind; the threads that groups want change.
    """
    span = timedelta(days=days)
    moments = sorted(BEGIN + random.random() * span for _ in range(number))
    rows = [_incident(random, nth, at, BEGIN + span) for nth, at in enumerate(moments, start=1)]
    told = [each for row in rows for each in _events(random, row)]
    told += [_event_of_none(random.choice(["g", "h", None]), at) for at in moments[::20]]
    told.sort(key=lambda each: each["at"])
    with ledger.transaction() as transaction:
        transaction.connection.execute(sa.insert(incident), rows)
        transaction.connection.execute(sa.insert(event), told)
        kept = [
            {"incident_id": row["incident_id"], "kept_at": row["closed_at"], "content": "{}"}
            for row in rows
            if row["state"] in {State.EXHAUSTED, State.SUPERSEDED}
        ]
        if kept:
            transaction.connection.execute(sa.insert(removed_row), kept)
    return BEGIN + span


def _incident(random: Random, number: int, at: datetime, end: datetime) -> dict[str, Any]:
    lasted = timedelta(seconds=random.choice([0.0, 3.5, 40, 600, 30_000, 200_000]))
    closed = at + lasted * random.uniform(0.5, 1) if random.random() < 0.95 else None
    if closed is not None and random.random() < 0.02:
        closed = at - timedelta(milliseconds=250)
    if closed is not None and closed > end:
        closed = None
    resource = f"w-{random.randrange(20)}-{number if closed is None else 0}"
    return {
        "incident_id": number,
        "resource_id": resource,
        "group_name": random.choice(["", "g", "h"]),
        "container_name": random.choice(["local", "flink"]),
        "thread_count": random.choice([0, 1, 4]),
        "state": random.choice(_OUTCOMES) if closed else State.WAITING,
        "detected_at": at,
        "closed_at": closed,
        "attempts": random.choice([0, 1, 1, 2, 3]),
        "dispatches": 0,
        "last_error": random.choice([None, "timeout", "refused"]),
        "cause": random.choice([None, "unknown", "killed", "exit 3", "`<b>\u202e"]),
        "version": 1,
        "dry_run": int(random.random() < 0.05),
        "open_resource_id": None if closed else resource,
    }


def _events(random: Random, row: dict[str, Any]) -> list[dict[str, Any]]:
    shared = {"incident_id": row["incident_id"], "group_name": row["group_name"], "message": "m"}
    threads = {"wanted": random.choice([8, 8, 8, 10]), "live": 6} if random.random() < 0.9 else {}
    details = json.dumps(threads)
    told = [
        {**shared, "kind": EventKind.DETECTED, "at": row["detected_at"], "details": details},
        {**shared, "kind": EventKind.ATTEMPT, "at": row["detected_at"], "details": "{}"},
    ]
    if row["closed_at"]:
        noted = details if row["state"] in _NOTED else "{}"
        end = {"kind": EventKind(row["state"]), "at": row["closed_at"], "details": noted}
        told.append({**shared, **end})
    return told


def _event_of_none(group: str | None, at: datetime) -> dict[str, Any]:
    named = {"incident_id": None, "group_name": group, "kind": EventKind.PAUSED}
    return {**named, "at": at, "message": "m", "details": "{}"}
