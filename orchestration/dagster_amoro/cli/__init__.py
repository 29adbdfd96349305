"""The command `dagster-amoro`: what operators do from a terminal.

What a command needs is imported when it runs, so that help and usage errors are shown at once.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from getpass import getuser
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.texts import shown, shown_json, shown_lines
from dagster_amoro.healing.verbs import (
    APPLY,
    CHECK,
    KNOWN,
    METRICS,
    STATUS,
    VERBS,
    Command,
    Parameter,
    Verb,
    by_declaration,
    os_user,
)
from dagster_amoro_worker.cli import beat_command

if TYPE_CHECKING:
    import sqlalchemy as sa

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
    _say(shown_json(fields, indent=2) if as_json else render(report))
    sys.exit(not report.is_good)


def _status(conf_dir: Path | None, group: str | None, *, as_json: bool) -> None:
    if as_json:
        from dagster_amoro.healing.status import as_json as show  # noqa: PLC0415 - see the module
    else:
        from dagster_amoro.healing.status_table import render as show  # noqa: PLC0415
    with _connected(conf_dir) as (_, services):
        _say(show(services.status.read(group)))


def _metrics(conf_dir: Path | None, file: str | None) -> None:
    from dagster_amoro.healing import openmetrics  # noqa: PLC0415 - see the module

    with _connected(conf_dir) as (_, services):
        found = services.metrics.read()
        if file is None:
            _say(openmetrics.render(found))
        else:
            openmetrics.write(found, Path(file))


def _apply(
    conf_dir: Path | None, /, *, release: bool, dry_run: bool, yes: bool, **values: str | None
) -> None:
    from dagster_amoro.core.fleet_plan import lines  # noqa: PLC0415 - see the module

    with _connected(conf_dir) as (_, services):
        applier = services.applier
        plan = applier.plan()
        _say(shown_lines(lines(plan, release=release)))
        to_do, is_good = plan.to_do(release=release), not plan.leaves
        if not (dry_run or to_do.is_empty):
            if not yes:
                _confirm()
            applied = applier.apply(to_do, **by_declaration({**values, KNOWN: os_user()}))
            _say(shown_lines(applied.lines()))
            is_good &= applied.is_good
    sys.exit(0 if is_good or dry_run else REFUSED)


def _confirm() -> None:
    """Asks whoever is there."""
    if not sys.stdin.isatty():
        raise KeeperError("nobody can be asked here whether that is to be done: say it with --yes")
    click.confirm("Is that to be done?", abort=True)


def _verb(verb: Verb) -> Callable[..., None]:
    def callback(conf_dir: Path | None, /, **values: str | None) -> None:
        with _connected(conf_dir) as (_, services):
            _say(verb.act(services.operations, {**values, KNOWN: os_user()}))

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
        _say(describe(error), err=True)
        sys.exit(code)


def _say(text: str, *, err: bool = False) -> None:
    """Whatever a command says, it says here."""
    click.echo(shown(text), err=err)


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


def _registry_of_config() -> "sa.URL":
    from dagster_amoro.config import load_settings  # noqa: PLC0415 - see the module

    return load_settings(click.get_current_context().obj).database_url


main.add_command(beat_command("beat", _registry_of_config))

_add(CHECK, _check, _JSON)
_add(STATUS, _status, _JSON)
_add(METRICS, _metrics)
_add(
    APPLY,
    _apply,
    click.Option(["--release"], is_flag=True, help="Stops and removes what is declared no longer."),
    click.Option(["--dry-run"], is_flag=True, help="Shows the difference, and does nothing."),
    click.Option(["--yes"], is_flag=True, help="Does it without asking."),
)
for _each in VERBS:
    _add(_each, _verb(_each))
