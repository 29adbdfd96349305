"""How would a resource be started? A text for people to read before they let it happen."""

import json
import shlex
from typing import Final, NamedTuple

from dagster_amoro.containers.base import Container
from dagster_amoro.core.model import Resource
from dagster_amoro.core.secrets import Mask, is_secret, named_values

_JOB_ID: Final = "<32 hex digits, new each time>"


class Preview(NamedTuple):
    """How a resource would be started."""

    text: str  # the command line, request or manifest
    differences: tuple[str, ...] = ()  # from what AMS would run, where it would


def preview(container: Container, resource: Resource) -> Preview:
    """The command line, request or manifest with which a container would start a resource.

    Secrets are hidden. A command line can be pasted into a shell, but for those.

    Raises:
        StartFailedError: It could not be started; the message says why.
    """
    if ask := getattr(container, "preview", None):
        found = ask(resource)
        return found if isinstance(found, Preview) else Preview(str(found))
    compare = getattr(container, "differences", None)
    mask = Mask(getattr(container, "properties", {}), resource.properties)
    text = _text(container, resource, mask)
    return Preview(text, tuple(map(mask.hide, compare(resource))) if compare else ())


def _text(container: Container, resource: Resource, mask: Mask) -> str:
    if getattr(container, "target", None) == "session" and hasattr(container, "submission"):
        body = json.dumps(container.submission(resource, _JOB_ID), indent=2)
        jar = getattr(container, "job_uri", "the jar")
        return mask.hide(f"{jar} uploaded to the Flink session, and run with\n{body}")
    if manifest := getattr(container, "manifest", None):
        import yaml  # noqa: PLC0415 - slow to import, and seldom needed

        found = manifest(resource)
        text = yaml.safe_dump(found, sort_keys=False, width=1000)
        return mask.hide(Mask(*named_values(found)).hide(text)).rstrip()
    if command := getattr(container, "command", None):
        ask = getattr(container, "own_variables", None)
        own = ask(resource) if ask else {}
        variables = [
            f"{name}={'***' if is_secret(name) else shlex.quote(mask.hide(value))}"
            for name, value in own.items()
        ]
        return " ".join([*variables, shlex.join(map(mask.hide, command(resource)))])
    return f"whatever {type(container).__name__} does to start it"
