"""The page on what can go wrong quotes what is really said."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

CHECKOUT: Final = Path(__file__).parents[2]
PAGE: Final = (CHECKOUT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SOURCES: Final = ("orchestration", "assets", "client")
# What is in code and has something left out, or is a sentence where a table says what one sees.
QUOTED: Final = [
    *re.findall(r"`([^`\n]*…[^`\n]*)`", PAGE),
    *re.findall(r"^\| `([^`…]* [^`…]*)`", PAGE, re.MULTILINE),
]


def texts() -> Iterator[str]:
    """Every text of the code that is no docstring, with `…` for what is put in."""
    for folder in SOURCES:
        for file in (CHECKOUT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield re.sub(r"%[rsg]", "…", node.value)
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(
                        str(each.value) if isinstance(each, ast.Constant) else "…"
                        for each in node.values
                    )


TEXTS: Final = "\0".join(text.replace("\n", " ") for text in texts())


def test_the_page_quotes_much() -> None:
    """Or its tables are not read here as they are written."""
    assert len(QUOTED) > 40


@pytest.mark.parametrize("quoted", QUOTED)
def test_each_quotation_is_what_the_code_says(quoted: str) -> None:
    """In one text, its parts in their order; what is put in may hold words of its own."""
    parts = [re.escape(part) for part in quoted.split("…")]
    assert re.search("[^\0]*".join(parts), TEXTS), quoted
