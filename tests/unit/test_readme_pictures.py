"""The pictures of the README show the pages as they are."""

import json

import pytest
from PIL import Image

from tests.helpers.pictures import DIGESTS, DOCS, PICTURES, digest


@pytest.mark.parametrize("name", PICTURES)
def test_no_picture_is_older_than_the_page_that_it_shows(name: str) -> None:
    """Whoever changes a page takes its picture anew; `tests/helpers/pictures.py` says how."""
    assert json.loads(DIGESTS.read_text())[name] == digest(PICTURES[name])


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_are_small(name: str) -> None:
    """Everybody who clones the repository has them."""
    assert (DOCS / name).stat().st_size < 150_000
    with Image.open(DOCS / name) as image:
        assert image.format == "PNG"


def test_all_pictures_of_the_readme_are_looked_after() -> None:
    """And none is kept that nothing shows."""
    shown = (DOCS.parent / "README.md").read_text()
    assert {file.name for file in DOCS.glob("*.png")} == PICTURES.keys()
    assert all(f"(docs/{name})" in shown for name in PICTURES)
