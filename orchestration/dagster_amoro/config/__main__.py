"""Prints the tables of all keys, or with the path of a page renews them in it.

The page has them between two comments, `<!-- keys -->` and `<!-- end of keys -->`.
"""

import ast
import inspect
import re
import sys
from pathlib import Path
from typing import Final

from dagster_amoro.config.models import SECTIONS, Section, Setting, settings_of
from dagster_amoro.core.values import DURATION_ACCEPTS

_TABLES: Final = re.compile(r"(?<=<!-- keys -->\n).*(?=<!-- end of keys -->)", re.DOTALL)


def render() -> str:
    """A heading and a table for each section of the schema, in Markdown."""
    return "\n".join(map(_table, SECTIONS))


def renew(page: str) -> str:
    """A page with its tables as the schema has them now."""
    return _TABLES.sub(lambda _: f"\n{render()}\n", page)


def variable(key: str) -> str:
    """The environment variable that sets a key; empty: there is none."""
    section, _, rest = key.partition(".")
    hyphen = "__" if section == "ams" else "_"
    name = f"{section}_{rest.replace('.', '_').replace('-', hyphen)}".upper()
    return "" if "<" in key else name


def _table(section: type[Section]) -> str:
    heading, _, note = inspect.cleandoc(section.__doc__ or "").partition("\n\n")
    rows = (_row(*each) for each in zip(settings_of(section), _meanings(section), strict=True))
    lines = (f"### {heading.rstrip('.')}", "", *([note, ""] if note else ()))
    head = ("| key | default | accepted | meaning |", "|---|---|---|---|")
    return "\n".join((*lines, *head, *rows, ""))


def _row(setting: Setting, meaning: str) -> str:
    name = variable(setting.key)
    key = f"`{setting.key}`" + (f"<br>`{name}`" if name else "")
    default = f"`{setting.default}`" if setting.default else ""
    accepts = setting.reader.accepts.replace(DURATION_ACCEPTS, "a duration")
    return f"| {key} | {default} | {accepts} | {meaning} |"


def _meanings(section: type[Section]) -> list[str]:
    """The texts below its fields, each on one line."""
    (node,) = ast.parse(inspect.getsource(section)).body
    _docstring, *texts = (
        each.value for each in ast.iter_child_nodes(node) if isinstance(each, ast.Expr)
    )
    return [" ".join(ast.literal_eval(text).split()) for text in texts]


if __name__ == "__main__":
    for argument in map(Path, sys.argv[1:]):
        argument.write_text(renew(argument.read_text(encoding="utf-8")), encoding="utf-8")
    if not sys.argv[1:]:
        print(render())  # noqa: T201 - it is what the command is for
