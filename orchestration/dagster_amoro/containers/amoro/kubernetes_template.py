"""What pod does the property `podTemplate` describe, if it describes one at all?"""

from typing import Any

from dagster_amoro.containers.kubernetes.api import at
from dagster_amoro.containers.kubernetes.template import as_model, load


def parse_pod_template(text: str) -> dict[str, Any]:
    """The `template` of a PodTemplate, with at least metadata and one container.

    Raises:
        ValueError: It is something else; the message says where, and shows no values.
    """
    found = as_model(load(text), "V1PodTemplate")
    for path in (("template",), ("template", "metadata"), ("template", "spec", "containers")):
        if at(found, *path) is None:
            raise ValueError(f"it has no {'.'.join(path)}")
    if not found["template"]["spec"]["containers"]:
        raise ValueError("template.spec.containers is empty")
    template: dict[str, Any] = found["template"]
    return template
