"""The command that keeps a heartbeat around a program: `dagster-amoro-beat`.

The plugin has it as `dagster-amoro beat`. What it needs is imported when it runs, so that help and
usage errors are shown at once.
"""

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from dagster_amoro_worker.registry import Url

UNUSABLE: Final = 2  # exit code where the configuration or the command line cannot be used
_WORKER: Final = (
    click.Option(["--resource-id"], required=True, help="The resource that it stands for."),
    click.Option(["--group", "group_name"], required=True, help="Its group."),
    click.Option(["--container", "container_name"], required=True, help="What has started it."),
    click.Option(
        ["--threads", "thread_count"], default=1, show_default=True, help="It has so many."
    ),
    click.Option(["--memory-mb"], default=0, help="In MiB; 0: not said."),
    click.Option(["--interval"], default="10 s", show_default=True, help="Between two heartbeats."),
    click.Option(
        ["--ready"],
        default="",
        metavar="COMMAND",
        help="Ends with 0 once the program is ready, and may be registered; asked every second.",
    ),
)
_REGISTRY: Final = "Its database, as SQLAlchemy writes it; with a password, better in "
_HELP: Final = (
    "Runs a program with a heartbeat: [OPTIONS] -- COMMAND [ARGUMENT]...\n\n"
    "Signals are passed on to the program; this process ends when and as the program does."
)
_COMMAND: Final = click.Argument(["command"], nargs=-1, required=True, type=click.UNPROCESSED)


def beat_command(name: str, fallback: "Callable[[], Url] | None" = None) -> click.Command:
    """The command, by the name that it has where it is installed.

    Args:
        name: Of the command.
        fallback: Says where the registry is where nobody said so; None: somebody has to.
    """

    def run(*, registry: str | None, **given: Any) -> None:  # noqa: ANN401 - of the other options
        _beat(registry, fallback, **given)

    left_out = "" if fallback is None else " Left out: that of config.yaml."
    registry = click.Option(
        ["--registry"],
        envvar="DAGSTER_AMORO_REGISTRY",
        metavar="URL",
        required=fallback is None,
        help=f"{_REGISTRY}$DAGSTER_AMORO_REGISTRY.{left_out}",
    )
    parameters = [*_WORKER, registry, _COMMAND]
    return click.Command(name, callback=run, params=parameters, help=_HELP)


def _beat(
    registry: str | None,
    fallback: "Callable[[], Url] | None",
    *,
    command: Sequence[str],
    ready: str,
    interval: str,
    **worker: Any,  # noqa: ANN401 - what a heartbeat says
) -> None:
    from dagster_amoro_worker import beat  # noqa: PLC0415 - see the module
    from dagster_amoro_worker.errors import KeeperError, describe  # noqa: PLC0415

    try:
        url = registry or (fallback() if fallback else "")
        heartbeat = beat.heartbeat(url, interval=interval, **worker)
        code = beat.keep(command, heartbeat, beat.split(ready))
    except KeeperError as error:
        click.echo(describe(error), err=True)
        sys.exit(UNUSABLE)
    beat.end_like(code)


main: Final = click.version_option(package_name="dagster-amoro-worker")(
    beat_command("dagster-amoro-beat")
)
