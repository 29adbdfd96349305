"""What does a fleet look like to whoever watches it from outside, in numbers?

What there is now is what `status` says; what has happened is what the ledger counts.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from dagster_amoro.core.counters import Counters
from dagster_amoro.healing.status import Status, StatusReader
from dagster_amoro.stores import counting
from dagster_amoro.stores.ledger import Ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """The numbers of one moment."""

    status: Status
    counters: Counters
    # When the last survey was completed. None: none ever was, or nobody notes them.
    surveyed_at: datetime | None
    keeper: str = ""  # whose they are, where it has a name

    @property
    def survey_age(self) -> timedelta | None:
        """How old the last completed survey is; a clock that was set back makes it no younger."""
        if self.surveyed_at is None:
            return None
        return max(self.status.at - self.surveyed_at, timedelta(0))


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsReader:
    """Looks at registry, ledger and AMS, and changes nothing."""

    status: StatusReader
    ledger: Ledger
    keeper: str = ""  # its name, if it has one

    def read(self) -> Metrics:
        """The numbers of this moment.

        Raises:
            StoreUnavailableError: A store does not answer, or an older version wrote the ledger.
        """
        counters, surveyed_at = counting.read(self.ledger.database)
        # What was noted before nobody did so any more says nothing of the last survey.
        surveyed_at = surveyed_at if self.status.reader.settings.notes_surveys else None
        return Metrics(
            status=self.status.read(),
            counters=counters,
            surveyed_at=surveyed_at,
            keeper=self.keeper,
        )
