"""The command `dagster-amoro`: what operators do from a terminal.

What a command needs is imported when it runs, so that help and usage errors are shown at once.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.healing.verbs import CHECK, STATUS, VERBS, Command, Parameter, Verb

if TYPE_CHECKING:
    from dagster_amoro.config import Settings
    from dagster_amoro.healing.assembly import Services

REFUSED: Final = 1  # exit code where a verb is refused
UNUSABLE: Final = 2  # exit code where the configuration cannot be used

_JSON: Final = click.Option(
    ["--json", "as_json"], is_flag=True, help="For programs instead of people."
)


@click.group()
@click.version_option(package_name="dagster-amoro")
@click.option(
    "--conf-dir",
    type=click.Path(path_type=Path),
    help="Folder of config.yaml; $AMORO_CONF_DIR where it is left out.",
)
@click.pass_context
def main(context: click.Context, conf_dir: Path | None) -> None:
    """Heals fleets of workers from Dagster, Apache Amoro's optimizers first of all.

    Exit codes of the commands: 0: done; 1: refused, with the reason, or (check) something has to
    be put right; 2: the configuration or the command line cannot be used.
    """
    context.obj = conf_dir


def _check(conf_dir: Path | None, *, as_json: bool) -> None:
    from dagster_amoro.healing.preflight import examine, render  # noqa: PLC0415 - see the module

    with _connected(conf_dir, refused=UNUSABLE) as (settings, services):
        report = examine(settings, services)
    fields = {"good": report.is_good, **asdict(report)}
    click.echo(json.dumps(fields, ensure_ascii=False, indent=2) if as_json else render(report))
    sys.exit(not report.is_good)


def _status(conf_dir: Path | None, group: str | None, *, as_json: bool) -> None:
    if as_json:
        from dagster_amoro.healing.status import as_json as show  # noqa: PLC0415 - see the module
    else:
        from dagster_amoro.healing.status_table import render as show  # noqa: PLC0415
    with _connected(conf_dir) as (_, services):
        click.echo(show(services.status.read(group)))


def _verb(verb: Verb) -> Callable[..., None]:
    def callback(conf_dir: Path | None, /, **values: str | None) -> None:
        with _connected(conf_dir) as (_, services):
            click.echo(verb.act(services.operations, values))

    return callback


@contextmanager
def _connected(
    conf_dir: Path | None, *, refused: int = REFUSED
) -> "Iterator[tuple[Settings, Services]]":
    """What a command works with; where it is refused, the process exits with that code."""
    from dagster_amoro.config import load_settings  # noqa: PLC0415 - see the module
    from dagster_amoro.healing.assembly import Services  # noqa: PLC0415

    code = UNUSABLE
    try:
        settings = load_settings(conf_dir)
        with closing(Services.connect(settings)) as services:
            code = refused
            yield settings, services
    except KeeperError as error:
        click.echo(hide_assigned(describe(error)), err=True)
        sys.exit(code)


def _add(command: Command, callback: Callable[..., None], *options: click.Parameter) -> None:
    """Makes a command of the group, which gets the folder of the configuration first."""
    parameters = [*map(_parameter, command.parameters), *options]
    # Of options, click's help says itself what they are.
    arguments = (f"{each.metavar}: {each.help}" for each in command.parameters if each.is_argument)
    text = "\n\n".join(filter(None, [command.summary, command.details, *arguments]))
    run: Callable[..., Any] = click.pass_obj(callback)
    main.add_command(click.Command(command.name, callback=run, params=parameters, help=text))


def _parameter(parameter: Parameter) -> click.Parameter:
    if parameter.is_argument:
        return click.Argument([parameter.name], metavar=parameter.metavar)
    return click.Option(
        [f"--{parameter.name}", parameter.name],
        metavar=parameter.metavar,
        help=parameter.help,
        required=parameter.is_required and not parameter.default,
        default=_os_user if parameter.default else None,
        show_default=parameter.default or None,
    )


def _os_user() -> str:
    try:
        return getuser()
    except (ImportError, KeyError, OSError):  # a user without a name
        return ""


_add(CHECK, _check, _JSON)
_add(STATUS, _status, _JSON)
for _each in VERBS:
    _add(_each, _verb(_each))
