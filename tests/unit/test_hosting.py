"""What belongs to one host: when is its use from several evident?"""

import json
from pathlib import Path

import pytest

from dagster_amoro.healing.hosting import Hosting, find_hosting

HERE = Hosting(host="here", is_pod=False, launcher="")


def started_on(*hosts: str) -> list[str | None]:
    """The properties of rows whose workers were started on these hosts."""
    return [json.dumps({"command-host": host}) for host in hosts]


def test_on_one_host_nothing_is_warned_of() -> None:
    """Also where rows say nothing, or cannot be read."""
    assert list(HERE.of_workers([*started_on("here", "here"), None, "{}", "no json"])) == []
    assert list(HERE.of_files("a server")) == []


def test_a_pod_comes_and_goes() -> None:
    """With the workers and the files in it."""
    pod = find_hosting({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    (workers,) = pod.of_workers([])
    (files,) = pod.of_files("a database server")
    assert workers.startswith("this host is a pod, and those come and go: its workers end with")
    assert files.endswith("another has other files; a database server serves all of them")


def test_rows_that_name_other_hosts_are_evidence() -> None:
    """A few of them are named."""
    (one,) = HERE.of_workers(started_on("here", "there"))
    assert "on 1 other host (there) as well" in one
    (many,) = HERE.of_workers(started_on(*"abcde"))
    assert "on 5 other hosts (a, b, c …) as well" in many


@pytest.mark.parametrize(
    ("text", "launcher"),
    [
        ("run_launcher: {module: dagster_k8s, class: K8sRunLauncher}", "K8sRunLauncher"),
        ("run_launcher: {module: dagster.core.launcher, class: DefaultRunLauncher}", ""),
        ("run_launcher: {}", ""),
        ("telemetry: {enabled: false}", ""),
        ("", ""),
        ("a: [", ""),
    ],
)
def test_the_run_launcher_is_in_dagsters_own_file(tmp_path: Path, text: str, launcher: str) -> None:
    """Its own kind launches runs beside the code server; what cannot be read says nothing."""
    (tmp_path / "dagster.yaml").write_text(text)
    found = find_hosting({"DAGSTER_HOME": str(tmp_path)})
    assert (found.launcher, found.is_pod) == (launcher, False)
    assert bool(found.doubt) == bool(launcher)


def test_without_a_dagster_nothing_is_known(tmp_path: Path) -> None:
    """The home is not set, or has no such file."""
    assert find_hosting({}).doubt == ""
    assert find_hosting({"DAGSTER_HOME": str(tmp_path)}).doubt == ""
