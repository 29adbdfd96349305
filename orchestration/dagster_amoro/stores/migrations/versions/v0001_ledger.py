"""The ledger's first schema: incidents and events."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_text = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_name = sa.String(100).with_variant(mysql.VARBINARY(400), "mysql", "mariadb")
_options: dict[str, Any] = {
    "mysql_engine": "InnoDB",
    "mysql_charset": "utf8mb4",
    "mysql_collate": "utf8mb4_bin",
    "mariadb_engine": "InnoDB",
    "mariadb_charset": "utf8mb4",
    "mariadb_collate": "utf8mb4_bin",
}


def upgrade() -> None:
    """Creates both tables."""
    op.create_table(
        "keeper_incident",
        sa.Column("incident_id", _number, primary_key=True, autoincrement=True),
        sa.Column("resource_id", _name, nullable=False),
        sa.Column("group_name", _name, nullable=False),
        sa.Column("container_name", _name, nullable=False),
        sa.Column("thread_count", sa.Integer, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("detected_at", _time, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("attempted_at", _time),
        sa.Column("hand_overs", sa.Integer, nullable=False),
        sa.Column("claimed_by", sa.String(100)),
        sa.Column("claimed_until", _time),
        sa.Column("note", _text),
        sa.Column("last_error", _text),
        sa.Column("closed_at", _time),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("open_resource_id", _name, unique=True),
        sqlite_autoincrement=True,
        **_options,
    )
    op.create_index("keeper_incident_group", "keeper_incident", ["group_name", "incident_id"])
    op.create_index("keeper_incident_claim", "keeper_incident", ["claimed_by"])
    op.create_table(
        "keeper_event",
        sa.Column("event_id", _number, primary_key=True, autoincrement=True),
        sa.Column("incident_id", _number, nullable=False),
        sa.Column("group_name", _name, nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("at", _time, nullable=False),
        sa.Column("message", _text, nullable=False),
        sa.Column("attempt", sa.Integer),
        sa.Column("run_id", sa.String(100)),
        sa.Column("details", _text, nullable=False),
        sqlite_autoincrement=True,
        **_options,
    )
    op.create_index("keeper_event_incident", "keeper_event", ["incident_id"])
    op.create_index("keeper_event_group", "keeper_event", ["group_name", "event_id"])


def downgrade() -> None:
    """Drops both tables, and the history with them."""
    op.drop_table("keeper_event")
    op.drop_table("keeper_incident")
