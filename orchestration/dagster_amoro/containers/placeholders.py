"""What stands in a command or a template for something of the resource: `{resource_id}`."""

from collections.abc import Iterable
from string import Formatter
from typing import Final

from dagster_amoro.containers.base import unusable
from dagster_amoro.core.errors import StartFailedError
from dagster_amoro.core.model import Resource

_NAMES: Final = ("resource_id", "group_name", "thread_count", "memory_mb")
ACCEPTED: Final = (
    f"the placeholders {', '.join(f'{{{name}}}' for name in _NAMES)} and {{{{ or }}}} for braces"
)
"""What a text may have, as errors say it."""


def check(text: str) -> None:
    """A ValueError says that a text has something in braces that is no placeholder."""
    for _, field, spec, conversion in Formatter().parse(text):
        if field is not None and (spec or conversion or field not in _NAMES):
            raise ValueError(
                f"{{{field}{'!' if conversion else ''}{conversion or ''}"
                f"{':' if spec else ''}{spec or ''}}} is no placeholder"
            )


def has_any(text: str) -> bool:
    """Whether a text has a placeholder."""
    return any(field is not None for _, field, *_ in Formatter().parse(text))


def values_of(resource: Resource, texts: Iterable[str]) -> dict[str, str]:
    """What the placeholders stand for, for `str.format_map`.

    Raises:
        StartFailedError: One that is in the texts stands for what no program can be given.
    """
    values = {name: str(getattr(resource, name)) for name in _NAMES}
    for field in {field for text in texts for _, field, *_ in Formatter().parse(text)}:
        if field and (problem := unusable(values[field])):
            raise StartFailedError(
                f"{field} {values[field]!r} cannot be given to a program: it {problem}"
            )
    return values
