"""AMS refills a group before, at or after the tick that sees a death: it is never doubled."""

import os
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import sqlalchemy as sa

from tests.helpers.refills import DEEDS, Deed, RefilledGroup, refilled_group

HISTORIES = int(os.environ.get("DAGSTER_AMORO_REFILLS", "8"))


def played(group: RefilledGroup, seed: int) -> list[tuple[Deed, int]]:
    """A random history; after each deed the group has no more threads than its floor."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    story: list[tuple[Deed, int]] = []
    for _ in range(chance.randint(5, 40)):
        deed, which = chance.choice(DEEDS), chance.randrange(4)
        story.append((deed, which))
        if deed == "dies":
            group.dies(which)
        elif deed == "refills":
            group.refills(registers=which > 1)
        else:
            getattr(group, deed)()
        assert group.threads <= group.floor, story
    return story


@pytest.mark.long
@pytest.mark.parametrize("block", range(4))
def test_in_the_end_a_group_has_the_threads_of_its_floor(block: int) -> None:
    """Whenever AMS refills, whoever dies, and whether the daemon is restarted."""
    for seed in range(block * HISTORIES, (block + 1) * HISTORIES):
        with TemporaryDirectory() as folder:
            url = sa.URL.create("sqlite", database=f"{folder}/amoro.db")
            with refilled_group(Path(folder), url, 1 + seed % 4) as group:
                story = played(group, seed)
                group.goes_quiet()
                assert group.threads == group.floor, (seed, story)


@pytest.mark.parametrize("seed", range(5))
def test_so_it_has_on_each_database(tmp_path: Path, database_url: sa.URL, seed: int) -> None:
    """The moments of the databases are compared as each of them says them."""
    with refilled_group(tmp_path, database_url, 3) as group:
        story = played(group, 1000 + seed)
        group.goes_quiet()
        assert group.threads == group.floor, story
