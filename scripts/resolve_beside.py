"""`python scripts/resolve_beside.py [NAME ...]`: which integrations can be installed beside us?

For each named distribution uv resolves it alone, and again together with this checkout, for the
newest release of everything. It fits if the second resolution works and has the same release of the
integration. Prints a table in Markdown; the exit code is 1 if one does not fit.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

CHECKOUT: Final = Path(__file__).parents[1]
INTEGRATIONS: Final = (
    "dagster-airbyte",
    "dagster-aws",
    "dagster-azure",
    "dagster-celery",
    "dagster-databricks",
    "dagster-dbt",
    "dagster-deltalake",
    "dagster-deltalake-pandas",
    "dagster-dlt",
    "dagster-docker",
    "dagster-duckdb",
    "dagster-duckdb-pandas",
    "dagster-fivetran",
    "dagster-gcp",
    "dagster-gcp-pandas",
    "dagster-k8s",
    "dagster-mlflow",
    "dagster-msteams",
    "dagster-mysql",
    "dagster-pagerduty",
    "dagster-pandas",
    "dagster-pandera",
    "dagster-polars",
    "dagster-postgres",
    "dagster-prometheus",
    "dagster-pyspark",
    "dagster-sling",
    "dagster-slack",
    "dagster-snowflake",
    "dagster-snowflake-pandas",
    "dagster-spark",
    "dagster-tableau",
    "dagster-wandb",
)


class Resolution(NamedTuple):
    """What uv made of some requirements."""

    versions: dict[str, str]  # by distribution; empty: there is no solution
    reason: str  # why there is none


def resolve(requirements: Sequence[str], python: str) -> Resolution:
    """The newest versions that fit together, on a Python of this version."""
    uv = Path(sys.executable).with_name("uv")
    command = [str(uv), "pip", "compile", "--quiet", "--no-header", "--no-annotate", "-"]
    done = subprocess.run(  # noqa: S603 - our own argv; names come from whoever runs this
        [*command, "--python-version", python],
        input="\n".join(requirements),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    versions = dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))
    return Resolution(versions if done.returncode == 0 else {}, " ".join(done.stderr.split()))


def verdict(name: str, python: str) -> tuple[bool, str]:
    """Whether an integration fits beside us, and a row of the table that says so."""
    alone = resolve([name], python)
    both = resolve([name, f"dagster-amoro @ {CHECKOUT.as_uri()}"], python)
    newest, beside = alone.versions.get(name), both.versions.get(name)
    if newest is None:
        return True, f"| {name} | none | | cannot be resolved without us either |"
    if beside is None:
        return False, f"| {name} | {newest} | none | {both.reason} |"
    pandas, sqlalchemy = both.versions["pandas"], both.versions["sqlalchemy"]
    row = f"| {name} | {newest} | {beside} | pandas {pandas}, SQLAlchemy {sqlalchemy} |"
    return beside == newest, row


def main(arguments: Sequence[str]) -> int:
    """Prints a row for each integration as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=INTEGRATIONS)
    parser.add_argument("--python", default="3.12", help="version of Python to resolve for")
    options = parser.parse_args(arguments)
    print("| integration | alone | beside us | with |\n|---|---|---|---|")
    fits = []
    for name in options.names:
        good, row = verdict(name, options.python)
        fits.append(good)
        print(row, flush=True)
    print(f"\n{sum(fits)} of {len(fits)} fit.")
    return 0 if all(fits) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
