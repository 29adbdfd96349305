"""Links to Dagster's pages: they lead where they should, whatever a name is made of."""

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.asset_keys import DEFAULT, Names, Translation, partition_key
from dagster_amoro.core import pages
from tests.helpers.attacks import TEXTS

PAGES = DEFAULT.pages
SAFE = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/?=&%+:._-~")


def filled_in(path: str) -> Any:  # noqa: ANN401 - YAML
    """The configuration that a launchpad opens with."""
    (config,) = parse_qs(urlsplit(path).query)["config"]
    return yaml.safe_load(config)


def test_the_page_of_the_fleet_is_that_of_its_asset() -> None:
    """As Dagster makes paths of keys."""
    named = Names(keeper="second", translation=Translation(key_prefix=["lake", "eu"]))
    for names in (DEFAULT, named):
        assert f"/assets/{'/'.join(names.fleet.path)}" == names.pages.fleet
        assert f"/assets/{'/'.join(names.resources.path)}?view=checks" == names.pages.checks
        history = f"/assets/{'/'.join(names.history.path)}?view=partitions&partition=g"
        assert names.pages.history("g") == history
        path = names.pages.launchpad("give-up", resource="r")
        assert f"/{names.of('keeper_give_up')}/" in path
        assert names.of("give_up") in filled_in(path)["ops"]
    assert PAGES.fleet == pages.FLEET


@given(st.text(max_size=100) | st.sampled_from([*TEXTS.values()]))
def test_no_name_acts_in_a_link(name: str) -> None:
    """Neither ends it nor leads elsewhere; and the launchpad has the name as it is."""
    launched = PAGES.launchpad("restart-now", resource=name)
    for path in (launched, PAGES.history(name), PAGES.run(name)):
        assert set(path) <= SAFE
        assert path.startswith("/")
        assert urlsplit(path).netloc == ""
    if "?" in launched:
        assert filled_in(launched)["ops"]["restart_now"]["config"]["resource"] == name


def test_a_launchpad_opens_with_all_that_the_verb_needs() -> None:
    """The job that Dagster looks for, and its one step."""
    path = PAGES.launchpad("restart-now", resource="etl-2")
    assert urlsplit(path).path == "/guess/keeper_restart_now/playground/setup"
    assert filled_in(path) == {
        "ops": {
            "restart_now": {
                "config": {
                    "resource": "etl-2",
                    "author": pages.LAUNCHED_BY,
                    "reason": pages.NO_REASON,
                }
            }
        }
    }


@pytest.mark.parametrize("name", ["db.password=hunter2", "https://hunter2@github.com/a/b.git"])
def test_no_secret_gets_into_a_link(name: str) -> None:
    """A person types it, who sees the name where it is shown."""
    assert PAGES.launchpad("restore", resource=name) == "/guess/keeper_restore/playground/setup"
    assert PAGES.history(partition_key(name)) == "/assets/orphan_history?view=partitions"
