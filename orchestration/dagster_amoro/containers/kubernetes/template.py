"""What does a YAML document say, where Kubernetes knows what each field is to be?"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import yaml


class _Scalar(NamedTuple):
    """A scalar of YAML that is no text, together with what stands there."""

    text: str
    value: object


class _Loader(yaml.SafeLoader):
    """Keeps what is written, so that `true` and `1.10` are texts where Kubernetes wants one."""


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Scalar:
    construct = yaml.SafeLoader.yaml_constructors[node.tag]
    return _Scalar(node.value, construct(loader, node))


for _tag in ("int", "float", "bool", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)


def load(text: str) -> object:
    """What a YAML document says, for `as_model`.

    Raises:
        ValueError: It is no YAML; the message says where, and shows no values.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{getattr(error, 'problem', None) or 'no YAML'}{where}") from None


def plain(document: object) -> Any:  # noqa: ANN401 - JSON
    """The document as any reader of YAML has it, whatever Kubernetes makes of it."""
    match document:
        case _Scalar():
            return document.value
        case dict():
            return {_text(key): plain(each) for key, each in document.items()}
        case list():
            return [plain(each) for each in document]
    return document


def as_model(value: object, kind: str, path: str = "") -> Any:  # noqa: ANN401 - JSON
    """What was loaded, as JSON of a kind such as `V1Pod`, `List[V1Container]` or `str`.

    `path` is the place that errors name.

    Raises:
        ValueError: It cannot be that, by the client's models; the message shows no values.
    """
    if value is None:
        return None
    if match := re.fullmatch(r"List\[(.+)\]", kind):
        if not isinstance(value, list):
            raise ValueError(f"{path} is no list")
        return [as_model(each, match[1], f"{path}[{i}]") for i, each in enumerate(value)]
    if match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        return _fields(value, lambda _: str(match[1]), path)
    if re.match("[A-Z]", kind):
        return _fields(value, _kinds_of(kind).get, path)
    if isinstance(value, dict | list | set):
        raise ValueError(f"{path} is no single value")  # noqa: TRY004 - of the text
    if kind in {"str", "datetime"}:
        return _text(value)
    return value.value if isinstance(value, _Scalar) else value


def _kinds_of(model: str) -> dict[str, str]:
    """The kinds of a model's fields."""
    from kubernetes.client import models  # noqa: PLC0415 - an extra, and slow to import

    found = getattr(models, model)
    return {found.attribute_map[name]: kind for name, kind in found.openapi_types.items()}


def _fields(value: object, kind_of: Callable[[str], str | None], path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path or 'it'} is no mapping")  # noqa: TRY004 - of the text
    found = {}
    for key, each in value.items():
        name = _text(key)
        place = f"{path}.{name}" if path else name
        if (kind := kind_of(name)) is None:
            raise ValueError(f"{place} is no field that Kubernetes knows")
        found[name] = as_model(each, kind, place)
    return found


def _text(value: object) -> str:
    return value.text if isinstance(value, _Scalar) else str(value)
