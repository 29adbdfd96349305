"""Which databases registry and ledger are kept in, and who logs in to them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from dagster_amoro.config.keys import (
    DATABASE_PASSWORD,
    DATABASE_TYPE,
    DATABASE_URL,
    DATABASE_USERNAME,
    KEEPER_PASSWORD,
    KEEPER_USERNAME,
    LEDGER_URL,
    Setting,
)
from dagster_amoro.config.raw import RawConfig
from dagster_amoro.config.settings import DatabaseType
from dagster_amoro.config.urls import url_flaws

_USABLE: Final = {kind.backend for kind in DatabaseType if kind is not DatabaseType.DERBY}


def read_database(raw: RawConfig, environ: Mapping[str, str]) -> sa.URL:
    """The registry's URL; where there are problems, any URL, because it will not be used."""
    kind, url = raw.get(DATABASE_TYPE), raw.get(DATABASE_URL)
    if kind is DatabaseType.DERBY:
        raw.reject(DATABASE_TYPE)
    elif url is None and kind is not DatabaseType.SQLITE:
        raw.reject(DATABASE_URL)
    elif url is not None and url.get_backend_name() != kind.backend:
        why = f"with {DATABASE_TYPE.key} {kind}, an unreachable combination"
        raw.reject(DATABASE_URL, why)
    elif url is not None:
        return _with_credentials(raw, _checked(raw, DATABASE_URL, url))
    return _default_file(environ)


def read_ledger(raw: RawConfig, database: sa.URL) -> sa.URL:
    """The ledger's URL: its own, or the registry's where it has none.

    The registry's credentials serve a ledger of the same type that names no user, or the same one.
    """
    url = raw.get(LEDGER_URL)
    if url is None:
        return database
    backend = url.get_backend_name()
    if backend not in _USABLE:
        raw.reject(LEDGER_URL, "which is of no type that can be used")
        return database
    url = _checked(raw, LEDGER_URL, url)
    if backend != database.get_backend_name() or url.username not in {None, database.username}:
        return url
    return url.set(username=database.username, password=url.password or database.password)


def _default_file(environ: Mapping[str, str]) -> sa.URL:
    home = environ.get("DAGSTER_HOME") or ".dagster-amoro"
    folder = Path(os.path.expanduser(home))  # noqa: PTH111 - Path's own fails for unknown users
    return sa.URL.create("sqlite", database=str(folder.absolute() / "registry.db"))


def _checked(raw: RawConfig, setting: Setting[object], url: sa.URL) -> sa.URL:
    for flaw in url_flaws(url):
        raw.reject(setting, f"and {flaw}")
    if url.get_backend_name() == "sqlite":
        return url.set(database=str(raw.source.parent / (url.database or "")))
    return url


def _with_credentials(raw: RawConfig, url: sa.URL) -> sa.URL:
    """The first of the places that name a user, and the first that name a password.

    What is not reached may be encoded beyond reading.
    """
    if url.get_backend_name() == "sqlite":
        return url
    username = raw.get(KEEPER_USERNAME) or url.username or raw.get(DATABASE_USERNAME)
    password = raw.get(KEEPER_PASSWORD) or url.password or raw.get(DATABASE_PASSWORD)
    return url.set(username=username or None, password=password or None)
