"""The documented views of the ledger, made as their page says."""

import re
from pathlib import Path
from typing import Final

from dagster_amoro.stores.database import Database, is_mysql

DOCS: Final = Path(__file__).parents[2] / "docs"
PAGE: Final = (DOCS / "analysts.md").read_text(encoding="utf-8")
VIEWS: Final = (
    *("amoro_incidents", "amoro_open_incidents", "amoro_attempts"),
    *("amoro_flapping_resources", "amoro_days"),
)


def backend_of(database: Database) -> str:
    """What the page calls a database."""
    dialect = database.engine.dialect
    return "mysql" if is_mysql(dialect) else dialect.name


def make_views(database: Database) -> None:
    """Runs the file of a database, statement by statement."""
    file = DOCS / "views" / f"{backend_of(database)}.sql"
    run(database, file.read_text(encoding="utf-8"))


def run(database: Database, script: str) -> None:
    """Runs statements as a client would: without parameters, so that a % is just that."""
    with database.writing() as connection:
        plain = connection.execution_options(no_parameters=True)
        for statement in re.split(r";\n", script):
            if statement.strip():
                plain.exec_driver_sql(statement)


def grants(backend: str) -> str:
    """The statements of the page that let somebody read the views."""
    found = re.search(rf"<!-- grants {backend}: .*? -->\n```sql\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, f"the page has no grants for {backend}"
    return found[1]
