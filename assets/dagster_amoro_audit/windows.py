"""Would the figures of `group_reliability` be others by now? As cheap a look as can tell."""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

import sqlalchemy as sa

from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.schema import IS_OPEN, incident


class Counts(NamedTuple):
    """How many incidents each window of the figures has."""

    open: int
    newest: int  # the number of the newest incident
    hour: int  # closed within it
    day: int
    week: int

    def is_news_after(self, before: "Counts") -> bool:
        """Whether an incident began or ended since."""
        return self[:2] != before[:2]


NO_INCIDENTS: Final = Counts(0, 0, 0, 0, 0)


def counts(ledger: Ledger, now: datetime) -> Counts:
    """The incidents that are open or closed lately, by windows that end now; of dry runs too."""
    number = sa.func.count(incident.c.incident_id)
    since = [now - timedelta(hours=1), now - timedelta(days=1), now - timedelta(weeks=1)]
    queries = [
        sa.select(number).where(IS_OPEN),
        sa.select(sa.func.max(incident.c.incident_id)),
        *(sa.select(number).where(incident.c.closed_at > start) for start in since),
    ]
    with ledger.reading() as connection:
        return Counts(*(connection.scalar(query) or 0 for query in queries))
