"""The picture of the structure in CONTRIBUTING.md is what the code's imports say.

`python -m tests.unit.test_structure` prints the picture of the code as it is.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
PLUGIN: Final = ROOT / "orchestration" / "dagster_amoro"
AUDIT: Final = ROOT / "assets" / "dagster_amoro_audit"
CLIENT: Final = ROOT / "client" / "dagster_amoro_worker"
PAGE: Final = ROOT / "CONTRIBUTING.md"
ROOMS: Final = {path.stem for path in PLUGIN.iterdir()} - {"__init__"}

Arrows = dict[str, set[str]]
"""By room, the rooms that it imports."""


def room_of(module: str) -> str | None:
    """The room of a module by its dotted name; None: it is not ours, or only the public API."""
    package, _, rest = module.partition(".")
    if package in {AUDIT.name, CLIENT.name}:
        return "audit" if package == AUDIT.name else "client"
    room = rest.partition(".")[0]
    return room if package == PLUGIN.name and room in ROOMS else None


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a module imports, those inside of functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows() -> Arrows:
    """Which room imports which, read from the code; the public API itself is no room."""
    found: Arrows = {}
    for package in (PLUGIN, AUDIT, CLIENT):
        for file in package.rglob("*.py"):
            name = ".".join(file.relative_to(package.parent).with_suffix("").parts)
            room = room_of(name.removesuffix(".__init__"))
            if room is None:
                continue
            seen = map(room_of, imported(ast.parse(file.read_text(encoding="utf-8"))))
            found.setdefault(room, set()).update(each for each in seen if each not in {None, room})
    return found


def reachable(direct: Arrows, room: str) -> set[str]:
    """All rooms that a room imports, through others too."""
    return direct[room].union(*(reachable(direct, each) for each in direct[room]))


def drawn(direct: Arrows) -> str:
    """The picture: an arrow is left out where a longer way leads to the same room."""
    lines = ["flowchart TD"]
    for room in sorted(direct):
        through = set[str]().union(*(reachable(direct, each) for each in direct[room]))
        lines += [f"    {room} --> {each}" for each in sorted(direct[room] - through)]
    return "\n".join(lines)


def test_no_room_imports_one_that_imports_it() -> None:
    """The rooms stand on floors: every way leads down."""
    direct = arrows()
    seen: set[str] = set()
    while ready := {room for room in direct.keys() - seen if direct[room] <= seen}:
        seen |= ready
    assert direct.keys() - seen == set()


def test_the_picture_is_that_of_the_code() -> None:
    """Print it anew where it is not: `python -m tests.unit.test_structure`."""
    assert f"```mermaid\n{drawn(arrows())}\n```" in PAGE.read_text(encoding="utf-8")


def test_the_page_has_a_line_for_each_room() -> None:
    """Somebody who looks for a room finds what it is for."""
    page = PAGE.read_text(encoding="utf-8")
    assert [room for room in arrows() if f"| `{room}" not in page] == []


if __name__ == "__main__":
    print(drawn(arrows()))  # noqa: T201 - it is what the command is for
