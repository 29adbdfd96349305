"""The ledger's first schema: incidents, their events, and what operators and deployments need."""

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
_TABLES = (
    "keeper_lease",
    "keeper_scale_up",
    "keeper_pause",
    "keeper_removed_row",
    "keeper_event",
    "keeper_incident",
)


def upgrade() -> None:
    """Creates all tables."""
    _create_incident()
    _create_event()
    _create_removed_row()
    _create_pause()
    _create_scale_up()
    _create_lease()


def _create_incident() -> None:
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
        sa.Column("dispatches", sa.Integer, nullable=False),
        sa.Column("claimed_by", sa.String(100)),
        sa.Column("claimed_until", _time),
        sa.Column("note", _text),
        sa.Column("last_error", _text),
        sa.Column("closed_at", _time),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("prior_attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("operator_request", sa.String(20)),
        sa.Column("newest_start", sa.String(40)),
        sa.Column("fence", sa.BigInteger),
        sa.Column("dry_run", sa.SmallInteger, nullable=False, server_default="0"),
        sa.Column("open_resource_id", _name, unique=True),
        sqlite_autoincrement=True,
        **_options,
    )
    op.create_index("keeper_incident_group", "keeper_incident", ["group_name", "incident_id"])
    op.create_index("keeper_incident_claim", "keeper_incident", ["claimed_by"])
    op.create_index("keeper_incident_detected", "keeper_incident", ["detected_at"])
    op.create_index("keeper_incident_closed", "keeper_incident", ["closed_at"])


def _create_event() -> None:
    op.create_table(
        "keeper_event",
        sa.Column("event_id", _number, primary_key=True, autoincrement=True),
        sa.Column("incident_id", _number),
        sa.Column("group_name", _name),
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


def _create_removed_row() -> None:
    op.create_table(
        "keeper_removed_row",
        sa.Column("removal_id", _number, primary_key=True, autoincrement=True),
        sa.Column("incident_id", _number, nullable=False),
        sa.Column("kept_at", _time, nullable=False),
        sa.Column("content", _text, nullable=False),
        sqlite_autoincrement=True,
        **_options,
    )
    op.create_index("keeper_removed_row_incident", "keeper_removed_row", ["incident_id"])


def _create_pause() -> None:
    op.create_table(
        "keeper_pause",
        sa.Column("pause_id", _number, primary_key=True, autoincrement=True),
        sa.Column("scope", sa.String(20), nullable=False),
        sa.Column("name", _name, nullable=False),
        sa.Column("reason", _text, nullable=False),
        sa.Column("author", _text, nullable=False),
        sa.Column("paused_at", _time, nullable=False),
        sa.Column("until", _time),
        sqlite_autoincrement=True,
        **_options,
    )


def _create_scale_up() -> None:
    op.create_table(
        "keeper_scale_up",
        sa.Column("group_name", _name, primary_key=True),
        sa.Column("dry_run", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("min_parallelism", sa.Integer, nullable=False),
        sa.Column("rounds", sa.Integer, nullable=False),
        sa.Column("resource_id", _name, nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("claimed_by", sa.String(100)),
        sa.Column("claimed_until", _time),
        sa.Column("next_at", _time),
        sa.Column("last_error", _text),
        sa.Column("fence", sa.BigInteger),
        sa.Column("version", sa.Integer, nullable=False),
        **_options,
    )


def _create_lease() -> None:
    op.create_table(
        "keeper_lease",
        sa.Column("name", sa.String(20), primary_key=True),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("acquired_at", _time, nullable=False),
        sa.Column("expires_at", _time, nullable=False),
        **_options,
    )


def downgrade() -> None:
    """Drops all tables, and the history with them."""
    for table in _TABLES:
        op.drop_table(table)
