"""Runs Alembic on the connection, and in the transaction, that the ledger hands over."""

from alembic import context

from dagster_amoro.stores.migrations import VERSION_TABLE
from dagster_amoro.stores.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
context.run_migrations()
