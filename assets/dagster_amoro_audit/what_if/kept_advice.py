"""When is the advice on the fleet computed anew? When what it rests on has changed enough.

To replay thousands of incidents takes a second or two, which a refresh for one more incident is
not worth. So it is kept, next to the figures.
"""

from datetime import datetime, timedelta
from typing import Any, Final

import pandas as pd
import sqlalchemy as sa

from dagster_amoro.core.policy import RestartPolicy
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import event
from dagster_amoro_audit import fleet_history
from dagster_amoro_audit.io_managers import FrameIOManager
from dagster_amoro_audit.what_if.advice import advice, grid

ADVICE: Final = "grace_period_advice"
"""What the kept advice is called, but for the name of its keeper."""
_LONGEST: Final = timedelta(days=1)
_SHARE: Final = 10  # new events for each of its incidents: one for so many of them is enough


def up_to_date(
    store: FrameIOManager, ledger: Ledger, policy: RestartPolicy, now: datetime, name: str = ADVICE
) -> pd.DataFrame:
    """The advice on the newest incidents of all groups, kept in the store by a name.

    It is computed anew when the policy in force is another one, when there are as many new events
    as a tenth of its incidents, and after a day if there are any.
    """
    with ledger.reading() as connection:
        newest: int = connection.scalar(sa.select(sa.func.max(event.c.event_id))) or 0
    kept = store.kept(name)
    if kept is not None and not _is_outdated(kept.attrs, repr(policy), newest, now):
        return kept
    incidents = fleet_history.read_incidents(ledger, newest=fleet_history.REPLAYED)
    advised = advice(*fleet_history.read_record(ledger, incidents), grid(policy), now)
    advised.attrs = {  # what it rests on; the file keeps it with the frame
        "policy": repr(policy),
        "event": newest,
        "incidents": len(incidents),
        "at": now.isoformat(),
    }
    store.keep(name, advised)
    return advised


def _is_outdated(basis: dict[Any, Any], policy: str, newest: int, now: datetime) -> bool:
    if not basis or basis["policy"] != policy or newest < basis["event"]:
        return True
    new = newest - basis["event"]
    age = now - datetime.fromisoformat(basis["at"])
    return new * _SHARE > basis["incidents"] or (new > 0 and age >= _LONGEST)
