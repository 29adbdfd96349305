"""Errors as texts: none is lost, none fails, none is endless."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core import errors
from dagster_amoro.core.errors import KeeperError, describe, shorten
from dagster_amoro.core.texts import harmless

OURS: Final = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, KeeperError)
]


class MuteError(Exception):
    """A foreign error whose text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("kind", OURS)
def test_an_error_of_ours_has_its_docstring_as_its_default_message(
    kind: type[KeeperError],
) -> None:
    """Raised without a message, it still says what happened, and what happens next."""
    assert describe(kind()) == str(kind()) == (kind.__doc__ or "").splitlines()[0] != ""


@given(st.text(min_size=1, max_size=100))
def test_an_error_of_ours_speaks_for_itself(text: str) -> None:
    """Its message is shown as it is, but for what could act where it is shown."""
    assert describe(KeeperError(text)) == str(KeeperError(text)) == harmless(text)


@given(st.text(min_size=1, max_size=100))
def test_a_foreign_error_is_shown_with_its_type(text: str) -> None:
    """The text of a foreign error alone often says nothing."""
    assert describe(ValueError(text)) == harmless(f"ValueError: {text}")


def test_a_key_error_is_told_from_a_text() -> None:
    """`'name'` would be all that is seen of it."""
    assert describe(KeyError("name")) == "KeyError: 'name'"


def test_a_foreign_error_without_a_text_is_its_type() -> None:
    """There is no colon with nothing behind it."""
    assert describe(ValueError()) == "ValueError"


def test_an_error_whose_text_fails_is_described_all_the_same() -> None:
    """Its type is left, and that its text cannot be shown."""
    assert describe(MuteError()) == "MuteError: (its text cannot be shown)"


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit("stopped")])
def test_what_ends_a_process_is_described_too(error: BaseException) -> None:
    """Containers raise those as well."""
    assert describe(error).startswith(type(error).__name__)


@given(
    st.builds(
        lambda kind, arguments: kind(*arguments),
        st.sampled_from([Exception, OSError, KeyError, SystemExit, RuntimeError]),
        st.lists(st.text() | st.integers() | st.binary() | st.none(), max_size=5),
    )
)
def test_describing_never_fails(error: BaseException) -> None:
    """Whatever was raised, with whatever arguments, becomes a text that is not empty."""
    assert describe(error)


def test_a_description_is_never_endless() -> None:
    """A worker's whole log in an error would fill the ledger; its ends tell most."""
    text = describe(ValueError("a" * 10_000_000 + "the end"))
    assert len(text) <= 4000
    assert text.startswith("ValueError: aaa")
    assert text.endswith("the end")
    assert "characters left out" in text


@pytest.mark.parametrize("length", [0, 1, 199, 200])
def test_a_text_within_the_limit_is_left_as_it_is(length: int) -> None:
    """At the limit nothing is cut yet."""
    assert shorten("x" * length, 200) == "x" * length


@given(st.integers(201, 100_000), st.integers(200, 5000))
def test_a_shortened_text_keeps_its_ends_and_says_how_much_is_missing(
    length: int, limit: int
) -> None:
    """Ends and the number left out add up to the text."""
    text = "".join(chr(ord("a") + index % 26) for index in range(max(length, limit + 1)))
    shortened = shorten(text, limit)
    head, message, tail = shortened.split("\n")
    missing = int(message.split()[1])
    assert len(shortened) <= limit
    assert text.startswith(head)
    assert text.endswith(tail)
    assert len(head) + missing + len(tail) == len(text)
