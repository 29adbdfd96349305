"""The command `dagster-amoro`: what operators do from a terminal."""

import json
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click

from orchestration.check import examine, render
from orchestration.config import load_settings
from orchestration.errors import KeeperError, describe
from orchestration.keeper import Keeper
from orchestration.secrets import hide_assigned

UNUSABLE: Final = 2  # exit code where the configuration cannot be used


@click.group()
@click.version_option(package_name="dagster-amoro")
@click.option(
    "--conf-dir",
    type=click.Path(path_type=Path),
    help="Folder of config.yaml; $AMORO_CONF_DIR where it is left out.",
)
@click.pass_context
def main(context: click.Context, conf_dir: Path | None) -> None:
    """Heals fleets of workers from Dagster, Apache Amoro's optimizers first of all."""
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
        click.echo(hide_assigned(describe(error)), err=True)
        sys.exit(UNUSABLE)
    told = {"good": report.is_good, **asdict(report)}
    click.echo(json.dumps(told, ensure_ascii=False, indent=2) if as_json else render(report))
    sys.exit(not report.is_good)
