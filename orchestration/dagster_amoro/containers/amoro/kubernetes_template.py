"""What pod does the property `podTemplate` describe, if it describes one at all?"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml

from dagster_amoro.containers.amoro.kubernetes_api import at


class _Scalar(NamedTuple):
    """A scalar of YAML that is no text, together with what stands there."""

    text: str
    value: object


class _Loader(yaml.SafeLoader):
    """Keeps what is written: where Kubernetes wants a text, AMS takes `true` and `1.10` as such."""


def _scalar(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> _Scalar:
    plain = yaml.SafeLoader.yaml_constructors[node.tag]
    return _Scalar(node.value, plain(loader, node))


for _tag in ("int", "float", "bool", "timestamp"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _scalar)


def parse_pod_template(text: str) -> dict[str, Any]:
    """The `template` of a PodTemplate, with at least metadata and one container.

    Raises:
        ValueError: It is something else; the message says where, and shows no values.
    """
    try:
        given = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"{getattr(error, 'problem', None) or 'no YAML'}{where}") from None
    found = _Shape("").read(given, "V1PodTemplate")
    for path in (("template",), ("template", "metadata"), ("template", "spec", "containers")):
        if at(found, *path) is None:
            raise ValueError(f"it has no {'.'.join(path)}")
    if not found["template"]["spec"]["containers"]:
        raise ValueError("template.spec.containers is empty")
    template: dict[str, Any] = found["template"]
    return template


@dataclass(frozen=True, slots=True)
class _Shape:
    """A place in a Kubernetes object, read as the client's models say."""

    path: str

    def read(self, value: object, kind: str) -> Any:  # noqa: ANN401 - JSON
        """The value as JSON of this kind, such as `str`, `List[V1Container]` or `V1PodSpec`.

        Raises:
            ValueError: It cannot be that.
        """
        if value is None:
            return None
        if match := re.fullmatch(r"List\[(.+)\]", kind):
            return self._list(value, match[1])
        if match := re.fullmatch(r"Dict\[str, (.+)\]", kind):
            return self._fields(value, lambda _: match[1])
        if re.match("[A-Z]", kind):
            return self._model(value, kind)
        return self._plain(value, kind)

    def _model(self, value: object, kind: str) -> dict[str, Any]:
        from kubernetes.client import models  # noqa: PLC0415 - an extra, and slow to import

        model = getattr(models, kind)
        kinds = {model.attribute_map[name]: each for name, each in model.openapi_types.items()}

        def kind_of(key: str) -> str:
            if key not in kinds:
                raise ValueError(f"{self._below(key)} is no field that Kubernetes knows")
            return str(kinds[key])

        return self._fields(value, kind_of)

    def _fields(self, value: object, kind_of: Callable[[str], str]) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"{self.path or 'it'} is no mapping")  # noqa: TRY004 - of the text
        texts = {_text(key): each for key, each in value.items()}
        return {
            key: _Shape(self._below(key)).read(each, kind_of(key)) for key, each in texts.items()
        }

    def _list(self, value: object, kind: str) -> list[Any]:
        if not isinstance(value, list):
            raise ValueError(f"{self.path} is no list")  # noqa: TRY004 - it is about a text
        return [_Shape(f"{self.path}[{i}]").read(each, kind) for i, each in enumerate(value)]

    def _plain(self, value: object, kind: str) -> object:
        if isinstance(value, dict | list | set):
            raise ValueError(f"{self.path} is no single value")  # noqa: TRY004 - of the text
        if kind in {"str", "datetime"}:
            return _text(value)
        return value.value if isinstance(value, _Scalar) else value

    def _below(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key


def _text(value: object) -> str:
    return value.text if isinstance(value, _Scalar) else str(value)
