"""Rows that are removed get a table of their own: they can hold secrets, which no event may."""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_text = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_options: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}
_event = sa.table(
    "keeper_event",
    sa.column("event_id", _number),
    sa.column("incident_id", _number),
    sa.column("kind", sa.String),
    sa.column("at", _time),
    sa.column("details", _text),
)


def upgrade() -> None:
    """Creates the table and moves there what events hold so far."""
    removed = op.create_table(
        "keeper_removed_row",
        sa.Column("removal_id", _number, primary_key=True, autoincrement=True),
        sa.Column("incident_id", _number, nullable=False),
        sa.Column("kept_at", _time, nullable=False),
        sa.Column("content", _text, nullable=False),
        sqlite_autoincrement=True,
        **_options,
    )
    op.create_index("keeper_removed_row_incident", "keeper_removed_row", ["incident_id"])
    connection = op.get_bind()
    giving_up = _event.c.kind == "giving-up"
    rows = [
        {
            "incident_id": event.incident_id,
            "kept_at": event.at,
            "content": json.dumps(json.loads(event.details)["row"], ensure_ascii=False),
        }
        for event in connection.execute(
            sa.select(_event).where(giving_up).order_by(_event.c.event_id)
        )
    ]
    if rows:
        connection.execute(sa.insert(removed), rows)
        connection.execute(sa.update(_event).where(giving_up).values(details="{}"))


def downgrade() -> None:
    """Drops the table, and with it what could be restored."""
    op.drop_table("keeper_removed_row")
