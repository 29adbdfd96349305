"""The ledger: our own tables, with incidents and the append-only events of their stories.

`reader` has what can be asked of it, `transaction` what can be written to it, `audit_queries` what
only the audit asks, and `migrations` its schema.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import sqlalchemy as sa

from dagster_amoro.core.model import Incident, Transition
from dagster_amoro.stores import leases
from dagster_amoro.stores.reader import IS_OPEN, LedgerReader
from dagster_amoro.stores.schema import incident
from dagster_amoro.stores.transaction import LedgerTransaction


class Ledger(LedgerReader):
    """Incidents and events in a database, brought to this version's schema at first use."""

    @contextmanager
    def transaction(self, fence: int | None = None) -> Iterator[LedgerTransaction]:
        """A transaction that writes: committed at the end, rolled back on any error.

        Args:
            fence: Of the lease under which this deployment acts; None: no lease is needed.

        Raises:
            StoreUnavailableError: Nothing of it was written.
            LeaseLostError: Nothing was written, since the lease with this fence is not in force.
        """
        self._migrate()
        with self.database.writing() as connection:
            if fence is not None:
                leases.ensure(connection, fence)
            yield LedgerTransaction(connection, dry_run=self.dry_run)

    def apply(self, transition: Transition) -> Incident | None:
        """Takes one step in a transaction of its own; None: the race was lost.

        Raises:
            LeaseLostError: The incident was dispatched under a lease that is not in force.
        """
        fence = transition.before.fence if transition.before else None
        with self.transaction(fence) as transaction:
            return transaction.apply([transition])[0]

    def ensure_lease(self, fence: int) -> None:
        """Makes sure that the lease with this fence is in force at this moment.

        Raises:
            LeaseLostError: It is not.
        """
        with self.transaction(fence):
            pass

    def renew(self, run_id: str, until: datetime) -> None:
        """Extends every claim of a run that is alive, so that it holds until `until` at least."""
        statement = (
            sa.update(incident)
            .where(IS_OPEN, incident.c.claimed_by == run_id, incident.c.claimed_until < until)
            .values(claimed_until=until, version=incident.c.version + 1)
        )
        with self.transaction() as transaction:
            transaction.connection.execute(statement)
