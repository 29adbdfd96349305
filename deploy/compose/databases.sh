#!/bin/sh
# Run once, by the image of PostgreSQL when its volume is empty: a database for Dagster, and one for the
# registry and the ledger, each with a user that can do nothing in the other one.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
  --set dagster="$DAGSTER_PG_PASSWORD" --set keeper="$KEEPER_PG_PASSWORD" <<'SQL'
CREATE ROLE dagster LOGIN PASSWORD :'dagster';
CREATE ROLE keeper LOGIN PASSWORD :'keeper';
CREATE DATABASE dagster OWNER dagster;
CREATE DATABASE fleet OWNER keeper;
REVOKE CONNECT ON DATABASE dagster, fleet FROM PUBLIC;
SQL
