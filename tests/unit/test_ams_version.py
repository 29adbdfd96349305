from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.ams_version import AmsVersion, parse_version


@pytest.mark.parametrize(
    ("version", "ams_version"),
    [
        ("0.7", AmsVersion.V0_7),
        ("0.7.0-incubating", AmsVersion.V0_7),
        ("0.7.1-incubating(abc1234)", AmsVersion.V0_7),
        ("0.8.0", AmsVersion.V0_8),
        ("0.8.1-incubating(abc1234)", AmsVersion.V0_8),
        ("0.8-SNAPSHOT", AmsVersion.V0_8),
        ("0.9.0", AmsVersion.V0_9_0),
        ("0.9.0-incubating", AmsVersion.V0_9_0),
        (" 0.9.0-incubating(abc1234)\n", AmsVersion.V0_9_0),
        ("0.9.0-SNAPSHOT", AmsVersion.V0_9),
        ("0.9-SNAPSHOT(96a4d78)", AmsVersion.V0_9),
        ("0.9", AmsVersion.V0_9),
        ("0.9.1", AmsVersion.V0_9),
        ("0.10.0", AmsVersion.V0_9),
        ("1.0.0", AmsVersion.V0_9),
        ("1.7.0", AmsVersion.V0_9),
        ("v0.8.1", AmsVersion.V0_8),
    ],
)
def test_versions(version: str, ams_version: AmsVersion) -> None:
    """Releases and snapshots, as AMS says them and as people write them."""
    assert parse_version(version) is ams_version


@pytest.mark.parametrize("version", ["0.6.1", "0.4", "0.0.1", "00.6"])
def test_versions_before_0_7_are_refused(version: str) -> None:
    """Nobody knows how those start optimizers."""
    with pytest.raises(ValueError, match=r"older than 0\.7"):
        parse_version(version)


@pytest.mark.parametrize(
    "version", ["", "UNKNOWN", "0", "latest", "-0.8", ".8", "0,8", "x0.8", "9" * 5000 + ".1"]
)
def test_what_is_no_version_is_refused(version: str) -> None:
    """As AMS says `UNKNOWN` where it was built without Git."""
    with pytest.raises(ValueError, match="not a version"):
        parse_version(version)


@given(st.text())
def test_any_text_is_a_version_or_refused(text: str) -> None:
    """Nothing else happens."""
    with suppress(ValueError):
        assert parse_version(text) in AmsVersion


def test_versions_are_ordered_by_age() -> None:
    """So that options can be compared with the version that brought them."""
    assert sorted(set(AmsVersion)) == [
        AmsVersion.V0_7,
        AmsVersion.V0_8,
        AmsVersion.V0_9_0,
        AmsVersion.V0_9,
    ]
    assert AmsVersion.V0_9 >= AmsVersion.V0_9_0 >= AmsVersion.V0_9_0 > AmsVersion.V0_8


@given(st.tuples(*[st.integers(0, 30)] * 3), st.tuples(*[st.integers(0, 30)] * 3))
def test_a_later_version_has_no_older_meaning(
    one: tuple[int, int, int], other: tuple[int, int, int]
) -> None:
    """Whatever the numbers are."""
    earlier, later = sorted([max(one, (0, 7, 0)), max(other, (0, 7, 0))])
    first, second = (parse_version(".".join(map(str, each))) for each in (earlier, later))
    assert first <= second
