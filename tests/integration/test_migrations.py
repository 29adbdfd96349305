"""The ledger's schema: what the migrations create is what the code works with."""

from collections.abc import Callable

import sqlalchemy as sa
from alembic import command

from dagster_amoro.stores import ledger as ledger_module
from dagster_amoro.stores.database import Database
from dagster_amoro.stores.ledger import VERSION_TABLE, Ledger
from dagster_amoro.stores.schema import metadata


def test_an_empty_ledger_is_what_the_code_thinks_it_is(
    database_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """The tables, their columns with whether they may be NULL, and their indexes."""
    database = open_database(database_url)
    assert Ledger(database).open_incidents() == []
    with database.reading() as connection:
        inspector = sa.inspect(connection)
        assert {*inspector.get_table_names()} == {*metadata.tables, VERSION_TABLE}
        for name, table in metadata.tables.items():
            columns = {c["name"]: c["nullable"] for c in inspector.get_columns(name)}
            assert columns == {c.name: c.nullable for c in table.columns}
            indexes = {i["name"]: i["column_names"] for i in inspector.get_indexes(name)}
            declared = {i.name: [c.name for c in i.columns] for i in table.indexes}
            assert {key: indexes.get(key) for key in declared} == declared


def test_the_schema_can_be_taken_back_and_made_again(
    database_url: sa.URL, open_database: Callable[..., Database]
) -> None:
    """Nothing of it is left, and a new ledger starts empty."""
    database = open_database(database_url)
    Ledger(database).open_incidents()
    config = ledger_module._alembic_config()
    with database.creating() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert sa.inspect(database.engine).get_table_names() == [VERSION_TABLE]
    assert Ledger(database).open_incidents() == []
