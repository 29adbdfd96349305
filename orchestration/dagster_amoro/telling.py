"""What is Dagster told? Whatever gets into its logs and onto its pages goes through here.

Nothing else of ours writes a log line, a failure, a tag or a text of metadata: see `core/texts.py`.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from dagster_amoro.core.texts import fenced, in_one_line, shown

Texts = Mapping[str, str]


def log(context: Any, text: str) -> None:  # noqa: ANN401 - Dagster has a class for each kind
    """Writes a line into the log of a step or of a tick."""
    context.log.info(str(shown(text)))


def warn(text: str) -> None:
    """Warns of something outside of any step."""
    dg.get_dagster_logger("dagster-amoro").warning(str(shown(text)))


def text(value: str) -> dg.TextMetadataValue:
    """Metadata: a text."""
    return dg.MetadataValue.text(str(shown(value)))


def texts(values: Texts) -> dict[str, dg.MetadataValue]:
    """Metadata: texts by their names."""
    return {in_one_line(name): text(value) for name, value in values.items()}


def block(value: str) -> dg.MarkdownMetadataValue:
    """Metadata: a text whose lines and columns stay as they are."""
    return dg.MetadataValue.md(fenced(shown(value)))


def tags(values: Texts) -> dict[str, str]:
    """The tags of a run."""
    return {name: in_one_line(value) for name, value in values.items()}


def failure(message: str, metadata: Texts | None = None, *, again: bool = False) -> dg.Failure:
    """What fails a step; Dagster tries it `again` where its retry policy lets it."""
    return dg.Failure(str(shown(message)), metadata=texts(metadata or {}), allow_retries=again)
