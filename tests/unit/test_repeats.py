"""What config.yaml says twice is warned of: only one of the two counts."""

from pathlib import Path

import pytest

from dagster_amoro.config import load_settings

SECRET = "hunter2"  # noqa: S105 - it opens nothing
SQLITE = "ams: {database.type: sqlite}\n"
COUNTS = "counts, as it does for AMS, and nothing of the other."


def warnings(folder: Path, text: str) -> list[str]:
    """What is said of this file, without its name."""
    file = folder / "config.yaml"
    file.write_text(text, encoding="utf-8")
    found = load_settings(folder, {}).warnings
    assert all(each.startswith(f"{file}: ") for each in found)
    return [each.removeprefix(f"{file}: ") for each in found]


def test_what_is_said_once_is_not_warned_of(tmp_path: Path) -> None:
    """Also where maps have the same keys, or the same part comes up twice by an alias."""
    text = f"""{SQLITE}containers:
  - {{name: a, container-impl: x.Y, properties: &shared {{x: 1, name: a}}}}
  - {{name: b, container-impl: x.Y, properties: *shared}}
  - {{name: c, container-impl: x.Y, properties: {{<<: *shared, x: 2}}}}
"""
    assert warnings(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "what", "first", "second"),
    [
        (
            "ams:\n  database.type: mysql\n  database.type: sqlite\n",
            "ams.database.type",
            2,
            3,
        ),
        (
            "ams: {database: {type: sqlite}}\nams:\n  database: {type: sqlite}\n",
            "ams",
            1,
            2,
        ),
        (
            "ams:\n  database: {type: sqlite}\n  database:\n    type: sqlite\n",
            "ams.database",
            2,
            3,
        ),
        (f"{SQLITE}keeper:\n  mode: enforce\n\n  mode: dry-run\n", "keeper.mode", 3, 5),
        (
            (
                f"{SQLITE}containers:\n- name: a\n  container-impl: x.Y\n  properties:\n"
                f"    export.PASSWORD: {SECRET}\n    export.PASSWORD: {SECRET}\n"
            ),
            "containers[0].properties.export.PASSWORD",
            6,
            7,
        ),
        (
            (
                f"{SQLITE}containers:\n- {{name: kubernetes, container-impl: x.Local}}\n"
                "- {name: b, container-impl: x.Y}\n- {name: kubernetes, container-impl: x.Y}\n"
            ),
            "the container 'kubernetes'",
            3,
            5,
        ),
    ],
)
def test_what_is_said_twice_is_named_with_both_lines_and_which_one_counts(
    tmp_path: Path, text: str, what: str, first: int, second: int
) -> None:
    """In Amoro's Helm chart the local container and that of Kubernetes can have one name."""
    expected = f"{what} stands twice, in line {first} and in line {second}; line {second} {COUNTS}"
    assert warnings(tmp_path, text) == [expected]


def test_the_last_of_several_counts(tmp_path: Path) -> None:
    """Each is told beside the one before it."""
    text = "ams:\n  database.type: x\n  database.type: y\n  database.type: sqlite\n"
    assert warnings(tmp_path, text) == [
        f"ams.database.type stands twice, in line 2 and in line 3; line 3 {COUNTS}",
        f"ams.database.type stands twice, in line 3 and in line 4; line 4 {COUNTS}",
    ]


def test_what_counts_is_what_is_read(tmp_path: Path) -> None:
    """The sentence is true of the settings."""
    (tmp_path / "config.yaml").write_text(
        f"{SQLITE}keeper:\n  deployment: first\n  deployment: second\ncontainers:\n"
        "- {name: a, container-impl: x.First}\n- {name: a, container-impl: x.Second}\n"
    )
    settings = load_settings(tmp_path, {})
    assert settings.deployment == "second"
    assert settings.containers["a"].implementation == "x.Second"
    assert len(settings.warnings) == 2
