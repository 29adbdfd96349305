"""One file per schema version, in Alembic's form."""
