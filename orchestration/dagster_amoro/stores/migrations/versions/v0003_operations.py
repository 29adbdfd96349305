"""What guards, operators and several deployments need: budgets, pauses, refills and leases."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0003"
down_revision = "0002"
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
_sequence = sa.table("sqlite_sequence", sa.column("name"), sa.column("seq"))
_NEW_COLUMNS = ("carried", "ordered", "newest_start", "fence", "dry_run")
_NEW_TABLES = ("keeper_pause", "keeper_refill", "keeper_lease")


def upgrade() -> None:
    """Adds the columns and creates the tables."""
    op.add_column(
        "keeper_incident", sa.Column("carried", sa.Integer, nullable=False, server_default="0")
    )
    op.add_column("keeper_incident", sa.Column("ordered", sa.String(20)))
    op.add_column("keeper_incident", sa.Column("newest_start", sa.String(40)))
    op.add_column("keeper_incident", sa.Column("fence", sa.BigInteger))
    op.add_column(
        "keeper_incident",
        sa.Column("dry_run", sa.SmallInteger, nullable=False, server_default="0"),
    )
    op.create_index("keeper_incident_detected", "keeper_incident", ["detected_at"])
    op.create_index("keeper_incident_closed", "keeper_incident", ["closed_at"])
    _change_event(nullable=True)
    _create_pause()
    _create_refill()
    _create_lease()


def _change_event(*, nullable: bool) -> None:
    # SQLite cannot change a column: the table is copied there. The copy would go on from its last
    # row, but a number is never used again, be it that of an event that was deleted.
    connection = op.get_bind()
    on_sqlite = connection.dialect.name == "sqlite"
    last = sa.select(_sequence.c.seq).where(_sequence.c.name == "keeper_event")
    number = connection.scalar(last) if on_sqlite else None
    kept = {"sqlite_autoincrement": True}
    with op.batch_alter_table("keeper_event", table_kwargs=kept) as table:
        table.alter_column("incident_id", existing_type=_number, nullable=nullable)
        table.alter_column("group_name", existing_type=_name, nullable=nullable)
    if number is not None:
        op.execute(sa.delete(_sequence).where(_sequence.c.name == "keeper_event"))
        op.execute(sa.insert(_sequence).values(name="keeper_event", seq=number))


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


def _create_refill() -> None:
    op.create_table(
        "keeper_refill",
        sa.Column("group_name", _name, primary_key=True),
        sa.Column("dry_run", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("floor", sa.Integer, nullable=False),
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
    """Drops the tables and columns; events that are of no incident go with them."""
    for table in _NEW_TABLES:
        op.drop_table(table)
    event = sa.table("keeper_event", sa.column("incident_id"), sa.column("group_name"))
    nobodys = event.c.incident_id.is_(None) | event.c.group_name.is_(None)
    op.execute(sa.delete(event).where(nobodys))
    _change_event(nullable=False)
    op.drop_index("keeper_incident_closed", "keeper_incident")
    op.drop_index("keeper_incident_detected", "keeper_incident")
    for column in _NEW_COLUMNS:
        op.drop_column("keeper_incident", column)
