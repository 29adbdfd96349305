"""What the ledger knows of incidents that are over."""

from datetime import timedelta
from typing import Final

import pytest

from dagster_amoro.core import transitions
from dagster_amoro.core.model import State
from dagster_amoro.stores.ledger import Ledger
from tests.integration.stores.helpers import (
    NOW,
    UNTIL,
    an_orphan,
    claimed,
    closed,
    ended,
    from_dry_run,
    opened,
    taken,
)

SINCE: Final = NOW - timedelta(hours=1)


def test_what_recovered_of_late_keeps_its_count(ledger: Ledger) -> None:
    """The spent attempts of each, from right after that moment on."""
    ended(ledger, "late", State.RECOVERED, SINCE + timedelta(microseconds=1))
    ended(ledger, "at it", State.RECOVERED, SINCE)
    ended(ledger, "long ago", State.RECOVERED, SINCE - timedelta(days=1))
    opened(ledger, "open")
    assert ledger.unstable(SINCE) == {"late": 2}


def test_a_count_goes_on_from_incident_to_incident(ledger: Ledger) -> None:
    """What was carried counts as well, and the newest incident says it."""
    ended(ledger, "r-1", State.RECOVERED)
    again = taken(ledger, transitions.detect(an_orphan(), NOW, prior_attempts=2))
    assert ledger.unstable(SINCE) == {"r-1": 2}  # while that one is open, nobody asks
    again = taken(ledger, transitions.claim(again, "run", UNTIL, NOW))
    again = taken(ledger, transitions.begin_attempt(again, UNTIL, NOW))
    taken(ledger, transitions.close(again, State.RECOVERED, "back", NOW))
    assert ledger.unstable(SINCE) == {"r-1": 3}


@pytest.mark.parametrize("outcome", [State.EXHAUSTED, State.RELEASED, State.SUPERSEDED])
def test_whatever_else_became_of_it_ends_the_count(ledger: Ledger, outcome: State) -> None:
    """A resource that was removed since, and is there again, begins anew; until it recovers."""
    ended(ledger, "r-1", State.RECOVERED)
    closing = transitions.close(opened(ledger), outcome, "over", NOW + timedelta(minutes=1))
    taken(ledger, closing)
    assert ledger.unstable(SINCE) == {}
    ended(ledger, "r-1", State.RECOVERED, NOW + timedelta(minutes=2))
    assert ledger.unstable(SINCE) == {"r-1": 2}


def test_a_reset_is_kept(ledger: Ledger) -> None:
    """Attempts before it do not count in the next incident either."""
    incident = claimed(ledger)
    incident = taken(ledger, transitions.begin_attempt(incident, UNTIL, NOW))
    incident = taken(ledger, transitions.attempt_failed(incident, "no", UNTIL, NOW))
    incident = taken(ledger, transitions.reset(incident, {"author": "ann"}, NOW))
    incident = taken(ledger, transitions.begin_attempt(incident, UNTIL, NOW))
    closed(ledger, incident)
    assert ledger.unstable(SINCE) == {"r-1": 1}


def test_an_attempt_that_was_lost_on_its_way_does_not_count(ledger: Ledger) -> None:
    """Nor does it after a recovery; what the database holds is what was written."""
    incident = claimed(ledger)
    for _ in range(2):
        incident = taken(ledger, transitions.begin_attempt(incident, UNTIL, NOW, UNTIL - NOW))
    assert ledger.incident(incident.incident_id) == incident
    assert (incident.attempt_ends_at, incident.interrupted) == (UNTIL, 1)
    closed(ledger, incident)
    assert ledger.unstable(SINCE) == {"r-1": 1}


def test_attempts_of_a_dry_run_count_in_a_dry_run_only(ledger: Ledger) -> None:
    """To others they are none; and neither do they hide what was before them."""
    dry = from_dry_run(ledger)
    ended(dry, "dry", State.RECOVERED)
    ended(ledger, "both", State.RECOVERED)
    taken(dry, transitions.close(opened(dry, "both"), State.EXHAUSTED, "over", NOW))
    assert ledger.unstable(SINCE) == {"both": 2}
    assert dry.unstable(SINCE) == {"dry": 2}


def test_what_a_dry_run_removed_is_known(ledger: Ledger) -> None:
    """By the newest of its incidents; whoever was not removed, or by others, is not among them."""
    dry = from_dry_run(ledger)
    for name, outcome in {
        "exhausted": State.EXHAUSTED,
        "superseded": State.SUPERSEDED,
        "recovered": State.RECOVERED,
        "released": State.RELEASED,
    }.items():
        ended(dry, name, outcome)
    opened(dry, "open")
    ended(ledger, "really", State.EXHAUSTED)
    assert ledger.removed_in_dry_run() == {"exhausted", "superseded"}
    opened(dry, "exhausted")  # it was made again
    assert ledger.removed_in_dry_run() == {"superseded"}
