"""What does config.yaml say twice? Only one of the two counts, and it may not be the one meant."""

from collections.abc import Iterator
from typing import Final

import yaml

_COUNTS: Final = "counts, as it does for AMS, and nothing of the other"


def repetitions(document: yaml.Node | None) -> Iterator[str]:
    """A sentence for each key, and each name of a container, that is there more than once.

    The document has to be unread: PyYAML changes maps that others were merged into. SnakeYAML,
    with which AMS reads it, takes the last of equal keys, and AMS the last container of a name.
    """
    if document is not None:
        yield from _repeated_keys(document, "", set())
        yield from _repeated_names(document)


def _repeated_keys(node: yaml.Node, path: str, seen: set[int]) -> Iterator[str]:
    if id(node) in seen:  # an alias, maybe of what it is in
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, each in enumerate(node.value):
            yield from _repeated_keys(each, f"{path}[{number}]", seen)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name = f"{path}.{key.value}" if path else str(key.value)
        if name in lines:
            yield _said_twice(name, lines[name], _line(key))
        lines[name] = _line(key)
        yield from _repeated_keys(value, name, seen)


def _repeated_names(document: yaml.Node) -> Iterator[str]:
    lines: dict[str, int] = {}
    for entry in _values(document, "containers"):
        for name in (each for one in _items(entry) for each in _values(one, "name")):
            if not isinstance(name, yaml.ScalarNode):
                continue
            if name.value in lines:
                what = f"the container {name.value!r}"
                yield _said_twice(what, lines[name.value], _line(name))
            lines[name.value] = _line(name)


def _values(node: yaml.Node, wanted: str) -> list[yaml.Node]:
    """The value of a key of a map, as the last of them says; none: it has no such key."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return [value for key, value in pairs if key.value == wanted][-1:]


def _items(node: yaml.Node) -> list[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _said_twice(what: str, first: int, second: int) -> str:
    return f"{what} stands twice, in line {first} and in line {second}; line {second} {_COUNTS}"
