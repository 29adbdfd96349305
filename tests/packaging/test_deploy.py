"""The processes that `deploy/` describes run apart, on PostgreSQL, and keep a fleet alive.

There is no container around them here. What is in the files is what runs: commands, environments,
checks, settings, and the script that makes the databases.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import sqlalchemy as sa

from dagster_amoro.stores.registry import optimizer
from tests.helpers.replication import free_ports, postgresql_on_tcp
from tests.helpers.waiting import wait_until
from tests.packaging.deployed import COMPOSE, DEPLOY, UNITS, Deployed, of_compose, of_systemd, unit
from tests.packaging.environments import build, environment

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("packaging")]

FLEET: Final = ("etl-1", "etl-2")  # as config.yaml declares it
# With what a URL, a shell and SQL would read in another way.
SECRETS: Final = {
    "POSTGRES_PASSWORD": "not asked for here",
    "DAGSTER_PG_PASSWORD": "d'a g$@:/%s",
    "KEEPER_PG_PASSWORD": 'k"e\\e p$@:/%r',
}
QUICKER: Final = {
    "KEEPER_CHECK_INTERVAL": "1s",
    "AMS_OPTIMIZER_AUTO__RESTART__GRACE__PERIOD": "1s",
    "AMS_OPTIMIZER_HEART__BEAT__TIMEOUT": "15s",
}


@pytest.fixture
def deployed(tmp_path: Path) -> Iterator[Deployed]:
    """All of it, not started; whatever is left of it ends with the test."""
    wheel = build("wheel", tmp_path / "wheel")
    requirements = ("--requirement", str(DEPLOY / "requirements.txt"), "psycopg[binary]")
    programs = environment(tmp_path / "venv", wheel, *requirements, locked=False)
    code, web = free_ports(2)
    with postgresql_on_tcp() as (server, port):
        make_databases(server.bin_path, port)
        here = {
            "/var/lib/dagster": str(tmp_path / "home"),
            "/etc/dagster-amoro": str(tmp_path / "conf"),
            "postgres:5432": f"127.0.0.1:{port}",
            "postgres": "127.0.0.1",
            "5432": str(port),
            "code-location": "127.0.0.1",
            "0.0.0.0": "127.0.0.1",  # noqa: S104 - it is not bound
            "4000": str(code),
            "3000": str(web),
        }
        services = of_compose(SECRETS)
        found = Deployed(tmp_path, programs, services, here, QUICKER)
        place_files(found)
        try:
            yield found
        finally:
            found.end()


def make_databases(programs: Path, port: int) -> None:
    """As the image of PostgreSQL does, with the script that it is given."""
    variables = {"POSTGRES_USER": "postgres", "POSTGRES_DB": "postgres", **SECRETS}
    variables |= {"PGHOST": "127.0.0.1", "PGPORT": str(port)}
    variables |= {"PATH": f"{programs}{os.pathsep}{os.defpath}"}
    subprocess.run([DEPLOY / "compose/databases.sh"], env=variables, check=True)


def place_files(deployed: Deployed) -> None:
    """Every file that a service mounts, where it is mounted."""
    mounts = {each for name in UNITS for each in COMPOSE["services"][name]["volumes"]}
    for source, target, *_ in (each.split(":") for each in sorted(mounts)):
        file = Path(deployed.placed(target))
        if not source.startswith("."):  # a volume
            file.mkdir(exist_ok=True)
            continue
        file.parent.mkdir(exist_ok=True)
        shutil.copy(DEPLOY / "compose" / source, file)
    workspace = deployed.folder / "conf" / "workspace.yaml"
    workspace.write_text(deployed.placed(workspace.read_text()))
    config = deployed.folder / "conf" / "config.yaml"  # its heartbeats come as often as is tested
    config.write_text(config.read_text().replace("--threads,", "--interval, 2 s, --threads,"))


Workers = dict[str, tuple[str, int]]
"""By resource id, the token and the process id of what sends heartbeats for it."""


def registered(deployed: Deployed) -> Workers:
    """All that the registry says is alive."""
    url = sa.URL.create("postgresql+psycopg", "keeper", SECRETS["KEEPER_PG_PASSWORD"])
    url = url.set(host="127.0.0.1", port=int(deployed.here["5432"]), database="fleet")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("optimizer"):
            return {}
        columns = (optimizer.c.resource_id, optimizer.c.token, optimizer.c.properties)
        rows = connection.execute(sa.select(*columns)).all()
    return {row.resource_id: (row.token, int(json.loads(row.properties)["job-id"])) for row in rows}


def back(deployed: Deployed, before: Workers, *names: str) -> Workers:
    """What is registered once these workers are anew, and the runs that did it are over."""

    def are_anew() -> bool:
        found = registered(deployed)
        return all(found.get(name, before.get(name)) != before.get(name) for name in names)

    wait_until(are_anew)
    wait_until(lambda: not acted(deployed, "QUEUED", "NOT_STARTED", "STARTING", "STARTED"))
    return registered(deployed)


def asked(deployed: Deployed, query: str) -> Any:  # noqa: ANN401 - JSON
    """What the web server answers."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{deployed.here['3000']}/graphql",
        data=json.dumps({"query": query}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - likewise
        return json.load(answer)["data"]


def acted(deployed: Deployed, *statuses: str) -> set[str]:
    """The jobs of runs in one of these states that act on the fleet, as the web server has them."""
    of = ", ".join(statuses)
    query = f"{{runsOrError(filter: {{statuses: [{of}]}}) {{... on Runs {{results {{jobName}}}}}}}}"
    found = {run["jobName"] for run in asked(deployed, query)["runsOrError"]["results"]}
    return found & {"keeper_apply", "restart_orphans"}


def test_what_compose_describes_keeps_a_fleet_alive(deployed: Deployed) -> None:
    """The code location ends with its workers, as a container does; then alone, as a unit does.

    Each time they are there in the end, under their ids; and nothing is left that was not meant.
    """
    for name in deployed.order:
        deployed.start(name)
    first = back(deployed, {}, *FLEET)

    deployed.end_container("code-location")
    deployed.start("code-location")
    second = back(deployed, first, *FLEET)

    deployed.stop("code-location")
    deployed.start("code-location")
    assert registered(deployed) == second
    killed, other = FLEET
    os.kill(second[killed][1], signal.SIGKILL)
    third = back(deployed, second, killed)
    assert third[other] == second[other]

    assert acted(deployed, "SUCCESS") == {"keeper_apply", "restart_orphans"}
    assert set(first) == set(second) == set(third) == set(FLEET)
    for each in reversed(deployed.order):
        deployed.stop(each)
    assert registered(deployed) == third
    wait_until(lambda: "" not in deployed.processes().values())  # a run that was under way ends
    assert len(set(deployed.processes().values())) == len(FLEET)


def test_systemd_and_compose_describe_the_same_processes() -> None:
    """The same commands with the same variables; an address and folders differ."""
    compose, systemd = of_compose(SECRETS), of_systemd()
    assert systemd.keys() == compose.keys()
    for name, process in systemd.items():
        program, *arguments = process.command
        there = ["0.0.0.0" if each == "127.0.0.1" else each for each in arguments]  # noqa: S104
        assert [Path(program).name, *there] == compose[name].command
        assert process.environment.keys() - {"PATH"} == compose[name].environment.keys()
    files = [DEPLOY / folder / "workspace.yaml" for folder in ("compose", "systemd")]
    of_containers, of_units = (file.read_text() for file in files)
    assert of_units == of_containers.replace("code-location", "127.0.0.1")


def test_no_stop_of_a_unit_ends_a_worker() -> None:
    """Nor does a worker that the kernel kills end the unit; and only the code server has any."""
    assert {name: unit(name).get("KillMode") for name in UNITS.values()} == {
        "code": ["process"],
        "daemon": None,
        "web": None,
    }
    assert unit("code")["OOMPolicy"] == ["continue"]


def test_only_the_code_location_can_log_in_to_the_registry() -> None:
    """The daemon and the web server get what Dagster needs, under Compose and under systemd."""
    for processes in (of_compose(SECRETS), of_systemd()):
        for name in ("daemon", "web-server"):
            assert all(key.startswith(("DAGSTER_", "PATH")) for key in processes[name].environment)


def test_no_file_has_a_password() -> None:
    """Those of systemd and of Compose are filled in, and Compose does not start without."""
    for file in DEPLOY.rglob("*"):
        if file.is_file():
            given = re.findall(r"^\s*\w*PASSWORD[=:][ ]*(.*)$", file.read_text(), re.MULTILINE)
            assert all(not value or value.startswith("${") for value in given), file
