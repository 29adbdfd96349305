"""The page of all keys, docs/configuration.md, against the schema that it is made from."""

import re
from pathlib import Path

import pytest

from dagster_amoro.config import SETTINGS, Setting
from dagster_amoro.config.__main__ import render, renew, variable
from dagster_amoro.config.sources import environment_key
from dagster_amoro.containers.command import container as command
from dagster_amoro.containers.kubernetes import container as pods

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "configuration.md").read_text(encoding="utf-8")
CELL = r"\| ([^|]*) "


def test_the_page_is_that_of_the_schema() -> None:
    """If it differs, `python -m dagster_amoro.config docs/configuration.md` renews it."""
    assert renew(PAGE) == PAGE
    assert render() in PAGE


def test_a_page_that_differs_is_renewed() -> None:
    """Only what stands between the two comments, whatever it was."""
    stale = PAGE.replace(render(), "old\n")
    assert stale != PAGE
    assert renew(stale) == PAGE


def test_the_page_has_each_key_once_with_all_that_there_is_to_say() -> None:
    """Key and variable, default, what is accepted and what it means, and nothing more."""
    rows = re.findall(rf"(?m)^{CELL * 4}\|$", render().replace("| key | default", ""))
    rows = [row for row in rows if row[0].startswith("`")]
    keys = [re.findall(r"`([^`]+)`", row[0])[0] for row in rows]
    assert keys == [setting.key for setting in SETTINGS]
    assert [row[1].strip("`") for row in rows] == [setting.default for setting in SETTINGS]
    assert all(accepted and meaning for _, _, accepted, meaning in rows)


def test_the_readme_leads_to_the_page() -> None:
    """It has no table of its own, which could differ."""
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert "docs/configuration.md" in readme
    assert not re.findall(r"(?m)^\| `(?:ams|keeper)\.", readme)


@pytest.mark.parametrize("setting", SETTINGS, ids=[setting.key for setting in SETTINGS])
def test_the_variable_that_the_page_names_sets_the_key(setting: Setting) -> None:
    """Keys of groups have none."""
    name = variable(setting.key)
    assert name if "<name>" not in setting.key else not name
    if name:
        assert environment_key(name) == setting.key


def test_the_page_names_the_properties_of_our_own_containers() -> None:
    """All of them, and no others but the variables."""
    rows = re.findall(r"(?m)^\| `([^`]+)` \|", PAGE[PAGE.index("<!-- end of keys -->") :])
    assert set(rows) == {*command._KEYS, *pods._KEYS, "export.X"}
