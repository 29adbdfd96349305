"""How long functions are, and how many things stand side by side: what is small can be trusted."""

import ast
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
PACKAGES = ("orchestration", "assets", "client")
Function = ast.FunctionDef | ast.AsyncFunctionDef


def lengths() -> dict[str, int]:
    """Lines of each function's body, without its docstring, by file and name."""
    return {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": length(node)
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, Function)
    }


def length(node: Function) -> int:
    """From the first line after the docstring to the last."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short() -> None:
    """Half of them have five lines or fewer, and none has more than 45."""
    found = lengths()
    assert median(found.values()) <= 5
    assert {name: lines for name, lines in found.items() if lines > 45} == {}


def test_few_modules_stand_beside_the_rooms() -> None:
    """Whoever opens the package finds rooms, not a heap of modules."""
    loose = {file.name for file in (ROOT / "orchestration" / "dagster_amoro").glob("*.py")}
    assert len(loose) <= 8, loose


def test_the_product_stays_small() -> None:
    """Whoever adds a feature looks for what it makes superfluous.

    What restarted one orphan after the other, without deadlines, had 17,000 lines. Restarts side by
    side, isolated calls, fences and deadlines on every answer may have 1,500 more; what a real AMS
    taught, and proof against what others write, 2,000. What keeps a deployment of years flat (bulk
    steps, sums by day, pruning, an audit that takes no run when nothing happens) may have 1,750;
    why a worker died, 600. What people see and are told at 3 a.m. (the page of the fleet, causes
    that are known early and counted, alerts, metrics) may have 1,900; a component, and several
    keepers in one deployment, 900; a heartbeat around programs of any language, 180.
    Fleets that are declared in the file, with what applies them and scales them in, may have 1,650;
    workers as pods, 950; the contract that containers of others are held to, 450; a worker's side
    that needs no more than a driver, 450.
    """
    files = [f for package in PACKAGES for f in (ROOT / package).rglob("*.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 29_750
