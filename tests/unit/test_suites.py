"""No test falls between `make test` and `make test-all`, and none is in both."""

import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.helpers.suites import COLLECTED, DEVELOPER, LEFT_TO_REST, REST, chosen, reason_of

ROOT: Final = Path(__file__).parents[2]


def test_each_test_of_this_run_is_in_one_suite(request: pytest.FixtureRequest) -> None:
    """Of all that were collected, before any was left out."""
    collected = request.config.stash[COLLECTED]
    suites = Counter(item for suite in (DEVELOPER, REST) for item in chosen(collected, suite))
    assert suites == Counter(collected)
    assert {reason_of(item) for item in collected} <= {"", *LEFT_TO_REST}


@pytest.mark.long
def test_both_suites_together_are_all_tests() -> None:
    """As pytest itself collects them."""
    with ThreadPoolExecutor() as pool:
        everything, developer, rest = pool.map(
            collected_with, [[], ["--suite", DEVELOPER], ["--suite", REST]]
        )
    assert sorted(developer + rest) == sorted(everything)
    assert developer
    assert rest


def collected_with(options: list[str]) -> list[str]:
    """The tests that pytest would run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *options, "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]
