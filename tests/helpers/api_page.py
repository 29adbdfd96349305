"""The page of the public API, docs/api.md, made from what the code says of itself.

`python -m tests.helpers.api_page docs/api.md` makes it anew. Read from the source, so that it is
the same whatever Python makes it.
"""

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import dagster_amoro
import dagster_amoro.testing

MODULES: Final[Sequence[ModuleType]] = (dagster_amoro, dagster_amoro.testing)
Definition = ast.ClassDef | ast.FunctionDef
_HEAD: Final = """\
# The public API

What `dagster_amoro` and `dagster_amoro.testing` name. All else may change or go in any release.
This page is made from the docstrings: `python -m tests.helpers.api_page docs/api.md`.
"""
_SECTION: Final = re.compile(r"(Args|Attributes|Raises|Returns|Yields|Example):")


def render() -> str:
    """The whole page, in Markdown."""
    parts = [_HEAD]
    for module in MODULES:
        parts += [f"## `{module.__name__}`\n", _prose(module)]
        parts += [_entry(module, name) for name in module.__all__ if name != "__version__"]
    return "\n".join(parts)


def _prose(module: ModuleType) -> str:
    return _markdown(inspect.getdoc(module) or "")


def _entry(module: ModuleType, name: str) -> str:
    """What one public name is."""
    lines = textwrap.dedent(inspect.getsource(getattr(module, name))).splitlines()
    (node,) = ast.parse("\n".join(lines)).body
    assert isinstance(node, Definition)
    members = _members(node) if isinstance(node, ast.ClassDef) else ()
    text = _markdown(ast.get_docstring(node) or "")
    return "\n".join((f"### `{name}`\n", _code([*_signature(node, lines)]), text, *members))


def _signature(node: Definition, lines: Sequence[str]) -> Iterator[str]:
    """Its first lines as they stand in the code, and a class's fields with what is said of them."""
    yield from _head(node)
    if isinstance(node, ast.FunctionDef):
        return
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and not ast.unparse(field.target).startswith("_"):
            first = field.lineno - 1
            while lines[first - 1].lstrip().startswith("#"):
                first -= 1
            yield from lines[first : field.end_lineno]


def _head(node: Definition) -> Iterator[str]:
    if isinstance(node, ast.ClassDef):
        bases = ", ".join(map(ast.unparse, node.bases))
        yield f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    else:
        result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        yield from _call(node.name, node.args, result)


def _call(name: str, of: ast.arguments, result: str) -> Iterator[str]:
    """One line where it fits, else a line for each argument."""
    line = f"def {name}({ast.unparse(of)}){result}"
    if len(line) <= 100:
        yield line
        return
    yield f"def {name}("
    for argument in re.split(r", (?![^\[(]*[\])])", ast.unparse(of)):
        yield f"    {argument},"
    yield f"){result}"


def _members(node: ast.ClassDef) -> Iterator[str]:
    """Its construction, where that says more than its fields, and its public methods."""
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and (
            not each.name.startswith("_") or each.name == "__init__"
        ):
            text = ast.get_docstring(each)
            marks = [f"@{ast.unparse(mark)}" for mark in each.decorator_list]
            if text and not any(".setter" in mark for mark in marks):
                yield _code([*marks, *_head(each)])
                yield _markdown(text)


def _code(lines: Sequence[str]) -> str:
    # Not "python": blocks of that name are recipes, which the tests run.
    return "\n".join(("```py", *lines, "```", ""))


def _markdown(docstring: str) -> str:
    """A docstring's text; what it says of arguments and errors as lists, and examples as code."""
    parts = []
    for paragraph in _paragraphs(docstring):
        first, _, rest = paragraph.partition("\n")
        section = _SECTION.fullmatch(first)
        if section is None:
            is_code = paragraph.startswith("    ")
            parts.append(_code(textwrap.dedent(paragraph).splitlines()) if is_code else paragraph)
        elif section[1] == "Example":
            parts.append(_code(textwrap.dedent(rest).splitlines()))
        else:
            parts.append(f"{first}\n\n{_listed(textwrap.dedent(rest))}")
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _paragraphs(docstring: str) -> list[str]:
    return [each.strip("\n") for each in re.split(r"\n\s*\n", docstring) if each.strip()]


def _listed(entries: str) -> str:
    """Each entry on a line, its name marked as code; the lines that go on are indented already."""
    named = re.sub(r"(?m)^(\w+): ", r"- `\1`: ", entries)
    return named.replace("\n    ", "\n  ")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
