"""The ledger's first schema: incidents, their events, and what operators and deployments need."""

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "0001"
down_revision = None

_number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_time = sa.DateTime().with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
_text = sa.Text().with_variant(mysql.LONGTEXT(), "mysql", "mariadb")
_name = sa.String(100).with_variant(mysql.VARBINARY(400), "mysql", "mariadb")
_options: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in ("mysql", "mariadb")
    for option, value in (("engine", "InnoDB"), ("charset", "utf8mb4"), ("collate", "utf8mb4_bin"))
}
_ledger = sa.MetaData()

sa.Table(
    "keeper_incident",
    _ledger,
    sa.Column("incident_id", _number, primary_key=True, autoincrement=True),
    sa.Column("resource_id", _name, nullable=False),
    sa.Column("group_name", _name, nullable=False),
    sa.Column("container_name", _name, nullable=False),
    sa.Column("thread_count", sa.Integer, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("detected_at", _time, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("attempted_at", _time),
    sa.Column("attempt_ends_at", _time),
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
    sa.Column("setbacks", sa.Integer, nullable=False, server_default="0"),
    sa.Column("unused_dispatches", sa.Integer, nullable=False, server_default="0"),
    sa.Column("is_attempting", sa.SmallInteger, nullable=False, server_default="0"),
    sa.Column("interrupted", sa.Integer, nullable=False, server_default="0"),
    sa.Column("doubted", _text),
    sa.Column("cause", sa.String(60)),
    sa.Column("death", _text),
    sa.Column("open_resource_id", _name, unique=True),
    sa.Index("keeper_incident_group", "group_name", "incident_id"),
    sa.Index("keeper_incident_claim", "claimed_by"),
    sa.Index("keeper_incident_detected", "detected_at"),
    sa.Index("keeper_incident_closed", "closed_at", "group_name"),
    sa.Index("keeper_incident_resource", "resource_id", "incident_id"),
    sa.Index("keeper_incident_state", "state", "dry_run", "incident_id"),
    sqlite_autoincrement=True,
    **_options,
)
sa.Table(
    "keeper_event",
    _ledger,
    sa.Column("event_id", _number, primary_key=True, autoincrement=True),
    sa.Column("incident_id", _number),
    sa.Column("group_name", _name),
    sa.Column("kind", sa.String(20), nullable=False),
    sa.Column("at", _time, nullable=False),
    sa.Column("message", _text, nullable=False),
    sa.Column("attempt", sa.Integer),
    sa.Column("run_id", sa.String(100)),
    sa.Column("details", _text, nullable=False),
    sa.Index("keeper_event_incident", "incident_id"),
    sa.Index("keeper_event_group", "group_name", "event_id"),
    sqlite_autoincrement=True,
    **_options,
)
sa.Table(
    "keeper_removed_row",
    _ledger,
    sa.Column("removal_id", _number, primary_key=True, autoincrement=True),
    sa.Column("incident_id", _number, nullable=False),
    sa.Column("kept_at", _time, nullable=False),
    sa.Column("content", _text, nullable=False),
    sa.Index("keeper_removed_row_incident", "incident_id", "removal_id"),
    sqlite_autoincrement=True,
    **_options,
)
sa.Table(
    "keeper_pause",
    _ledger,
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
sa.Table(
    "keeper_scale_up",
    _ledger,
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
sa.Table(
    "keeper_look",
    _ledger,
    sa.Column("group_name", _name, primary_key=True),
    sa.Column("newest_start", sa.String(40), nullable=False),
    sa.Column("surplus", sa.Integer, nullable=False),
    **_options,
)
sa.Table(
    "keeper_ledger",
    _ledger,
    sa.Column("identity", sa.String(32), primary_key=True),
    sa.Column("settled", sa.String(10)),
    sa.Column("surveyed_at", _time),
    **_options,
)
sa.Table(
    "keeper_lease",
    _ledger,
    sa.Column("name", sa.String(20), primary_key=True),
    sa.Column("holder", sa.String(200), nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("acquired_at", _time, nullable=False),
    sa.Column("expires_at", _time, nullable=False),
    **_options,
)
sa.Table(
    "keeper_day",
    _ledger,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("group_name", _name, primary_key=True),
    sa.Column("container_name", _name, primary_key=True),
    sa.Column("self_recovered", sa.BigInteger, nullable=False),
    sa.Column("recovered_first", sa.BigInteger, nullable=False),
    sa.Column("recovered_later", sa.BigInteger, nullable=False),
    sa.Column("given_up", sa.BigInteger, nullable=False),
    sa.Column("released", sa.BigInteger, nullable=False),
    sa.Column("superseded", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.BigInteger, nullable=False),
    sa.Column("missing_seconds", sa.Double, nullable=False),
    sa.Column("missing_thread_seconds", sa.Double, nullable=False),
    sa.Column("recovery", _text, nullable=False),
    sa.Column("causes", _text, nullable=False),
    **_options,
)
sa.Table(
    "keeper_capacity",
    _ledger,
    sa.Column("group_name", _name, primary_key=True),
    sa.Column("first_at", _time, nullable=False),
    sa.Column("noted_at", _time),
    sa.Column("wanted", sa.Integer),
    sa.Column("thread_seconds", sa.Double, nullable=False),
    **_options,
)


def upgrade() -> None:
    """Creates all tables, and the ledger's identity."""
    for table in _ledger.tables.values():
        table.create(op.get_bind())
    identity = sa.insert(_ledger.tables["keeper_ledger"]).values(identity=uuid4().hex)
    op.get_bind().execute(identity)


def downgrade() -> None:
    """Drops all tables, and the history with them."""
    for table in _ledger.tables.values():
        table.drop(op.get_bind())
