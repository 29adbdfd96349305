"""The component `dagster_amoro.KeeperComponent`: a keeper in a few lines of YAML, for `dg`."""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

import dagster as dg
from pydantic import BaseModel, ConfigDict, Field

from dagster_amoro.asset_keys import Names, Translation
from dagster_amoro.code_location import build_definitions
from dagster_amoro.config import load_settings
from dagster_amoro.config.json_schema import CONTAINERS, FLEET, JsonSchema, section_schema
from dagster_amoro.core.values import NAME_ACCEPTS, NAME_PATTERN

_FILE: Final = "defs.yaml"
_NO_PYTHON: Final = "\N{SECTION SIGN}"  # a text that begins so is no Python
_TEMPLATE: Final = re.compile(r"\{[{%]")  # stands for what is known only when it is loaded
_SCAFFOLD: Final = """\
type: {type_name}

# The sections `ams`, `keeper`, `containers` and `fleet` are those of config.yaml. A folder that has
# one is given as `conf_dir`; what stands here wins over it. Secrets are written as
# {{{{ env.NAME }}}}.
attributes:
  name: {name}
  ams:
    database:
      type: sqlite
    optimizer:
      auto-restart-enabled: false  # orphans are recorded, and left alone
      auto-restart-grace-period: 5min
  containers: []
"""


def _resolved(context: dg.ResolutionContext, given: Any) -> Any:  # noqa: ANN401 - any YAML
    """What was given, its templates filled in; a text stays a text.

    Dagster's own templates read a text as Python where it looks so: a password "1e5" would become
    a number.
    """
    if isinstance(given, dict):
        return {key: _resolved(context.at_path(key), each) for key, each in given.items()}
    if isinstance(given, list):
        return [_resolved(context.at_path(n), each) for n, each in enumerate(given)]
    is_template = isinstance(given, str) and _TEMPLATE.search(given)
    if not is_template:
        return given
    found = context.resolve_value(given)
    if found is None or isinstance(found, dict | list):
        return found
    return str(context.resolve_value(f"{_NO_PYTHON}{given}")).removeprefix(_NO_PYTHON)


_RESOLVER: Final = dg.Resolver(_resolved)


class KeeperScaffolder(dg.Scaffolder[Any]):
    """Writes a first `defs.yaml`: nothing is restarted before somebody says so."""

    def scaffold(self, request: dg.ScaffoldRequest[Any]) -> None:
        """Writes the file; the keeper is called as its folder, where it can be."""
        if request.scaffold_format != "yaml":
            dg.scaffold_component(request)
            return
        text = _SCAFFOLD.format(type_name=request.type_name, name=_name_of(request.target_path))
        if request.append:
            with request.target_path.open("a", encoding="utf-8") as file:
                file.write(f"---\n{text}")
        else:
            (request.target_path / _FILE).write_text(text, encoding="utf-8")


@dg.scaffold_with(KeeperScaffolder)
class KeeperComponent(dg.Component, dg.Model, dg.Resolvable):
    """Keeps a fleet of workers alive: Apache Amoro's optimizers, or your own.

    Its settings are the sections of config.yaml, given here, in a file, or in both. Each key that
    they have is described in docs/configuration.md.
    """

    name: str = Field(
        default="",
        description="What this keeper is called: " + NAME_ACCEPTS + ". Its jobs, sensors and "
        "resources begin with it, and the keys of its assets, so that a deployment can have "
        "several. Left out: what `keeper.dagster-name` says.",
    )
    conf_dir: str | None = Field(
        default=None,
        description="The folder of a config.yaml, Amoro's own for one; relative to this file. "
        "Left out: there is none where settings are given here; else that of $AMORO_CONF_DIR.",
    )
    ams: Annotated[dict[str, Any], _RESOLVER] = Field(default_factory=dict)
    keeper: Annotated[dict[str, Any], _RESOLVER] = Field(default_factory=dict)
    containers: Annotated[list[dict[str, Any]], _RESOLVER] = Field(default_factory=list)
    fleet: Annotated[dict[str, Any], _RESOLVER] = Field(default_factory=dict)
    translation: Translation = Field(
        default_factory=Translation,
        description="How the assets and runs are marked. Nothing is, unless it is said here.",
    )

    @classmethod
    def model(cls) -> type[BaseModel]:
        """The schema of the attributes: with each key, so that a typo is told with its line."""
        return _with_keys(super().model())

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The definitions of this keeper.

        Raises:
            ConfigError: Something cannot be used; it says everything that is wrong, a line each.
        """
        folder = context.path if context.path.is_dir() else context.path.parent
        given: dict[str, object] = {"ams": self.ams, "keeper": self.keeper}
        given |= {"containers": self.containers, "fleet": self.fleet}
        settings = load_settings(
            None if self.conf_dir is None else folder / self.conf_dir,
            sections={name: section for name, section in given.items() if section},
            source=folder / _FILE if context.path.is_dir() else context.path,
        )
        tags, run_tags = _as_texts(self.translation.tags), _as_texts(self.translation.run_tags)
        translation = replace(self.translation, tags=tags, run_tags=run_tags)
        return build_definitions(settings, name=self.name or None, translation=translation)


def _as_texts(tags: Mapping[str, Any]) -> dict[str, str]:
    """Tags whose values Dagster's templates took for numbers."""
    return {name: str(value) for name, value in tags.items()}


def _name_of(folder: Path) -> str:
    """The name of a folder as that of a keeper; "" where it cannot be one."""
    name = folder.name.replace("-", "_")
    try:
        return Names(keeper=name).keeper
    except ValueError:
        return '""'


@cache
def _with_keys(derived: type[BaseModel]) -> type[BaseModel]:
    """The model that Dagster derives, its JSON Schema with every key of the sections."""
    extra: Any = derived.model_config.get("json_schema_extra") or {}

    def complete(schema: JsonSchema) -> None:
        properties = schema["properties"]
        schema.update(extra)
        for name in ("ams", "keeper"):
            properties[name] = section_schema(name)
        properties |= {"containers": CONTAINERS, "fleet": FLEET}
        properties["name"]["pattern"] = f"^(?:{NAME_PATTERN}|.*{_TEMPLATE.pattern}.*)$"
        # Not, as Dagster has it, this or a text: a typo within would be told of the whole.
        (properties["translation"],) = (
            each for each in properties["translation"]["anyOf"] if "$ref" in each
        )

    config = ConfigDict(json_schema_extra=complete)
    body = {"model_config": config, "__module__": derived.__module__}
    return type(derived.__name__, (derived,), body)
