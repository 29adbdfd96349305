"""Which of two causes is kept: the one that says more, and of equals the first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_amoro.core.post_mortem import LOST_HOST, NEVER_STARTED, UNKNOWN, PostMortem, tells_more
from tests.helpers.attacks import acts

VAGUE = (LOST_HOST, NEVER_STARTED)
CERTAIN = ("killed", "out of memory", "exit 3", "failed", "finished", "odd")
ANY = st.sampled_from((UNKNOWN, *VAGUE, *CERTAIN))


def rank(cause: str | None) -> int:
    """How much a cause says, counted by hand."""
    return 0 if cause is None else 1 if cause == UNKNOWN else 2 if cause in VAGUE else 3


@pytest.mark.parametrize("known", [None, UNKNOWN, *VAGUE, *CERTAIN])
@given(found=ANY)
def test_what_says_more_takes_the_place_of_what_says_less(known: str | None, found: str) -> None:
    """Never the other way round, and not what says as much."""
    assert tells_more(found, known) == (rank(found) > rank(known))


@given(st.lists(ANY, min_size=1))
def test_in_any_order_the_best_is_kept(found: list[str]) -> None:
    """Of those that say as much, the first."""
    kept: str | None = None
    for cause in found:
        kept = cause if tells_more(cause, kept) else kept
    assert kept == max(found, key=rank)


@given(st.text(), st.text(), st.text(), st.integers(0, 3))
def test_what_is_kept_is_short_and_acts_on_nobody(
    cause: str, text: str, log: str, times: int
) -> None:
    """Whatever a container says; the cause in one line, since it is counted by."""
    kept = PostMortem(*(part * 40**times for part in (cause, text, log))).cleaned(str)
    assert [len(kept.cause) <= 40, len(kept.text) <= 300, len(kept.log) <= 2000] == 3 * [True]
    assert [each for part in kept for each in acts(part)] == []
    assert "\n" not in kept.cause


def test_a_cause_that_is_too_long_is_cut_at_its_end() -> None:
    """Of 40 characters all are kept, of 41 the first 39."""
    assert PostMortem("c" * 40, "").cleaned(str).cause == "c" * 40
    assert PostMortem("c" * 41, "").cleaned(str).cause == "c" * 39 + "…"
