"""Charts as files: as many as there are charts, however often they are drawn."""

from pathlib import Path

import pytest
from upath import UPath

from dagster_amoro_audit.pictures import Pictures


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_each_refresh_takes_the_place_of_the_one_before(tmp_path: Path, kind: str) -> None:
    """In a folder or an object store; and what has nothing to show any more is gone."""
    folder = UPath(tmp_path / "pictures" if kind == "folder" else f"memory:/{tmp_path}/pictures")
    for number in range(3):
        told = Pictures(folder).keep({"a": b"%d" % number, "b": b"b", "c": None})
        assert told.value == str(folder)
        assert sorted(file.name for file in folder.iterdir()) == ["a.png", "b.png"]
        assert (folder / "a.png").read_bytes() == b"%d" % number
    Pictures(folder).keep({"a": None, "b": None, "c": None})
    assert not any((folder / name).exists() for name in ("a.png", "b.png"))


def test_a_password_in_an_address_is_not_told() -> None:
    """Where the store is of a kind that has one there."""
    told = Pictures(UPath("memory://audit/password=hunter2/x")).keep({"a": None})
    assert "hunter2" not in (told.value or "")
