"""The page of the public API, docs/api.md, against the code that it is made from."""

import re
from pathlib import Path

from tests.helpers.api_page import MODULES, render

PAGE = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


def test_the_page_is_that_of_the_code() -> None:
    """If it differs, `python -m tests.helpers.api_page docs/api.md` makes it anew."""
    assert render() == PAGE


def test_every_public_name_is_on_it_with_what_it_means() -> None:
    """A heading for each but the version, its code, and a sentence."""
    found = re.findall(r"(?ms)^### `(\w+)`\n\n```py\n.*?^```\n\n\S", PAGE)
    names = [name for module in MODULES for name in module.__all__ if name != "__version__"]
    assert found == names
