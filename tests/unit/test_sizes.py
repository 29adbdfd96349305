"""Memory sizes: the grammar and the form that AMS has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.containers.amoro.flink_conf import parse_size, parse_size_0_7, print_size

MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1024", 1024),
        ("7b", 7),
        ("7 bytes", 7),
        ("2k", 2048),
        ("2 KB", 2048),
        ("2kibibytes", 2048),
        ("1600m", 1600 * MIB),
        ("1024MB", 1024 * MIB),
        ("3 mebibytes", 3 * MIB),
        (" 1 \t GB\n", 1024 * MIB),
        ("1gibibytes", 1024 * MIB),
        ("2t", 2 << 40),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_reads_what_ams_reads(text: str, size: int) -> None:
    """Numbers with a unit in any case, spaces around both; a bare number is in bytes."""
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "m", "-1m", "+1m", "1.5g", "1mib", "1 g b", "1_0m", "1e3", "G100G", "\u0661m"),
        *("9223372036854775808", "8388608t", "9" * 5000, "1m;rm", "\xa01m"),
    ],
)
def test_refuses_what_ams_refuses(text: str) -> None:
    """Other units, signs, fractions and what does not fit into 63 bits."""
    with pytest.raises(ValueError, match=r".") as caught:
        parse_size(text)
    assert caught.type is ValueError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1024", 1024 * MIB),
        ("1024m", 1024 * MIB),
        ("1 G", 1024 * MIB),
        (" 1 0 M ", 10 * MIB),
        ("0", 0),
    ],
)
def test_reads_what_ams_0_7_reads(text: str, size: int) -> None:
    """A bare number is in MiB, and spaces may stand anywhere."""
    assert parse_size_0_7(text) == size


@pytest.mark.parametrize("text", ["", "1mb", "1k", "1024MB", "-5", "1.5g", "m", "9" * 30])
def test_refuses_what_ams_0_7_does_not_know(text: str) -> None:
    """It knew no units but m and g."""
    with pytest.raises(ValueError, match=r"."):
        parse_size_0_7(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 bytes"),
        (1023, "1023 bytes"),
        (1024, "1 kb"),
        (1600 * MIB, "1600 mb"),
        (1024 * MIB, "1 gb"),
        (1536 * MIB, "1536 mb"),
        (2048 * MIB, "2 gb"),
        (1 << 40, "1099511627776 bytes"),
        ((1 << 40) + (1 << 30), "1025 gb"),
    ],
)
def test_prints_as_ams(size: int, text: str) -> None:
    """The largest unit that leaves a whole number; whole tebibytes are bytes again."""
    assert print_size(size) == text


@given(st.integers(0, 2**63 - 1))
def test_reads_back_what_it_prints(size: int) -> None:
    """Nothing is lost on the way."""
    assert parse_size(print_size(size)) == size


@given(st.integers(0, 2**20))
def test_prints_whole_mebibytes_in_units_flink_knows(mebibytes: int) -> None:
    """That is all that is ever printed."""
    assert print_size(mebibytes * MIB).split()[1] in {"bytes", "mb", "gb"}
