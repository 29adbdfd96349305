"""The command `dagster-amoro`: what operators do from a terminal."""

import json
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from getpass import getuser
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click

from dagster_amoro.config import load_settings
from dagster_amoro.core.errors import KeeperError, describe
from dagster_amoro.core.pauses import Target
from dagster_amoro.core.secrets import hide_assigned
from dagster_amoro.healing import operations
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.healing.operations import end_of, target_of
from dagster_amoro.healing.preflight import examine
from dagster_amoro.healing.preflight import render as render_check
from dagster_amoro.healing.status import take_status
from dagster_amoro.healing.status_table import as_json as status_as_json
from dagster_amoro.healing.status_table import render as render_status

REFUSED: Final = 1  # exit code where a verb is refused
UNUSABLE: Final = 2  # exit code where the configuration cannot be used

CommandT = TypeVar("CommandT", bound=Callable[..., Any])


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


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs instead of people.")
@click.pass_obj
def check(conf_dir: Path | None, *, as_json: bool) -> None:
    """Shows what would be restarted and how, and changes nothing.

    Reads the configuration, connects to the databases, pings AMS, builds every container and
    prints, per group, the orphans with the exact commands that would start them. Secrets are
    hidden. Exit code 0: all is well; 1: something has to be put right; 2: the configuration cannot
    be used.
    """
    try:
        settings = load_settings(conf_dir)
        with closing(Keeper.from_settings(settings)) as keeper:
            report = examine(keeper, settings)
    except KeeperError as error:
        _fail(error, UNUSABLE)
    message = {"good": report.is_good, **asdict(report)}
    click.echo(
        json.dumps(message, ensure_ascii=False, indent=2) if as_json else render_check(report)
    )
    sys.exit(not report.is_good)


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs instead of people.")
@click.option("--group", metavar="NAME", help="Of this group alone.")
@click.pass_obj
def status(conf_dir: Path | None, group: str | None, *, as_json: bool) -> None:
    """Shows groups, live optimizers and orphans, and what happens next and when.

    Also which deployment acts and what is paused. Changes nothing.
    """

    def show(keeper: Keeper) -> str:
        found = take_status(keeper, group)
        return status_as_json(found) if as_json else render_status(found)

    _run(conf_dir, show)


def _os_user() -> str:
    try:
        return getuser()
    except (ImportError, KeyError, OSError):  # a user without a name
        return ""


def by_operator(command: CommandT) -> CommandT:
    """Adds the options that say who and why."""
    author = click.option(
        "--author",
        metavar="NAME",
        default=_os_user,
        show_default="the user of this system",
        help="Who wants it; it stands in the ledger.",
    )
    reason = click.option(
        "--reason", metavar="TEXT", required=True, help="Why; it stands in the ledger."
    )
    return author(reason(command))


def targeted(command: CommandT) -> CommandT:
    """Adds the options that say what it is about."""
    group = click.option("--group", metavar="NAME", help="All of this group.")
    resource = click.option("--resource", metavar="ID", help="This resource alone.")
    return group(resource(command))


@main.command()
@targeted
@by_operator
@click.option(
    "--until",
    metavar="TIME",
    help="Ends by itself at this time, in ISO 8601; without a zone it is local time.",
)
@click.option("--for", "span", metavar="DURATION", help="Ends by itself after so long: 90min, 2h.")
@click.pass_obj
def pause(conf_dir: Path | None, /, **options: str | None) -> None:
    """Lets nothing be started or removed.

    Nowhere, unless a group or a resource is named. Incidents are opened and closed all the same.
    Without an end it lasts until it is resumed; pausing again replaces the earlier pause.
    """
    until, span = options.pop("until"), options.pop("span")

    def act(keeper: Keeper) -> str:
        about, by = _asked(options)
        return operations.pause(keeper, about, **by, until=end_of(keeper.clock(), until, span))

    _run(conf_dir, act)


@main.command()
@targeted
@by_operator
@click.pass_obj
def resume(conf_dir: Path | None, /, **options: str | None) -> None:
    """Ends a pause: that of everything, unless a group or a resource is named."""
    _run_targeted(conf_dir, operations.resume, options)


@main.command()
@targeted
@by_operator
@click.pass_obj
def reset(conf_dir: Path | None, /, **options: str | None) -> None:
    """Gives a resource, or all of a group, a fresh budget of attempts.

    Of a group the refill rounds, too. Also where a resource recovered so lately that its attempts
    would still count.
    """
    _run_targeted(conf_dir, operations.reset, options)


@main.command("restart-now")
@click.argument("resource")
@by_operator
@click.pass_obj
def restart_now(conf_dir: Path | None, /, resource: str, **by: str) -> None:
    """Has the orphan RESOURCE restarted without further waiting.

    It counts as an attempt, and is made even where they are used up.
    """
    _run(conf_dir, lambda keeper: operations.restart_now(keeper, resource, **by))


@main.command("give-up")
@click.argument("resource")
@by_operator
@click.pass_obj
def give_up(conf_dir: Path | None, /, resource: str, **by: str) -> None:
    """Has the orphan RESOURCE given up without further attempts.

    It is released, and its row moves from the registry to the ledger; restore puts it back.
    """
    _run(conf_dir, lambda keeper: operations.give_up(keeper, resource, **by))


@main.command()
@click.argument("resource")
@by_operator
@click.pass_obj
def restore(conf_dir: Path | None, /, resource: str, **by: str) -> None:
    """Puts the row of RESOURCE, which was given up or superseded, back as it was.

    A new incident is opened for it, so that it is restarted after its grace period.
    """
    _run(conf_dir, lambda keeper: operations.restore(keeper, resource, **by))


def _run_targeted(
    conf_dir: Path | None, verb: Callable[..., str], options: dict[str, str | None]
) -> None:
    def act(keeper: Keeper) -> str:
        about, by = _asked(options)
        return verb(keeper, about, **by)

    _run(conf_dir, act)


def _asked(options: dict[str, str | None]) -> tuple[Target, dict[str, str]]:
    """What it is about, and who wants it and why."""
    about = target_of(options["group"], options["resource"])
    return about, {"author": options["author"] or "", "reason": options["reason"] or ""}


def _run(conf_dir: Path | None, act: Callable[[Keeper], str]) -> None:
    try:
        keeper = Keeper.from_settings(load_settings(conf_dir))
    except KeeperError as error:
        _fail(error, UNUSABLE)
    try:
        with closing(keeper):
            message = act(keeper)
    except KeeperError as error:
        _fail(error, REFUSED)
    click.echo(message)


def _fail(error: KeeperError, code: int) -> NoReturn:
    click.echo(hide_assigned(describe(error)), err=True)
    sys.exit(code)
