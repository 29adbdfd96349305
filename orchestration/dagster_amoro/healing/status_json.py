"""How does a program read a status?"""

import json
from dataclasses import asdict
from datetime import UTC, datetime

from dagster_amoro.healing.status import Status


def as_json(status: Status) -> str:
    """The status for programs: the fields of `Status` as keys, times as `2026-03-29T00:59:30Z`."""
    return json.dumps(asdict(status), ensure_ascii=False, indent=2, default=_iso)


def _iso(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
