"""Claims of runs on incidents."""

from datetime import timedelta

from dagster_amoro.core import transitions
from dagster_amoro.stores.ledger import Ledger
from tests.integration.stores.helpers import NOW, UNTIL, claimed, closed, opened, taken


def test_a_claim_is_found_by_its_owner(ledger: Ledger) -> None:
    """All open incidents of a run or a dispatch, oldest first; no others, no closed ones."""
    mine = [claimed(ledger, f"r-{number}") for number in (3, 1, 2)]
    closed(ledger, claimed(ledger, "closed"))
    theirs = claimed(ledger, "theirs", "another run")
    opened(ledger, "nobody's")
    key = "incident.attempts.dispatch 1.0.1"
    handed = taken(ledger, transitions.dispatch(opened(ledger, "handed"), key, UNTIL, NOW))
    assert ledger.claimed_by("run") == mine
    assert ledger.claimed_by("another run") == [theirs]
    assert ledger.claimed_by(key) == [handed]


def test_renewing_only_lengthens(ledger: Ledger) -> None:
    """A claim that holds as long or longer is left as it is, its version included."""
    incident = claimed(ledger)
    for until in (UNTIL, UNTIL - timedelta(microseconds=1), NOW - timedelta(days=1)):
        ledger.renew("run", until)
        assert ledger.incident(incident.incident_id) == incident
    longer = UNTIL + timedelta(microseconds=1)
    ledger.renew("run", longer)
    assert ledger.incident(incident.incident_id) == incident.evolve(claimed_until=longer)


def test_renewing_is_for_open_claims_of_the_run(ledger: Ledger) -> None:
    """What others have claimed, what nobody has and what is closed stays as it is."""
    run_id = "run"
    others = [
        claimed(ledger, "theirs", "another run"),
        opened(ledger, "nobody's"),
        closed(ledger, claimed(ledger, "closed")),
    ]
    mine = [claimed(ledger, "mine-1", run_id), claimed(ledger, "mine-2", run_id)]
    until = UNTIL + timedelta(hours=1)
    ledger.renew(run_id, until)
    assert ledger.claimed_by(run_id) == [i.evolve(claimed_until=until) for i in mine]
    assert [ledger.incident(other.incident_id) for other in others] == others


def test_a_step_from_before_a_renewal_is_lost(ledger: Ledger) -> None:
    """A renewal is a change like any other; whoever looked before it looks again."""
    incident = claimed(ledger)
    ledger.renew("run", UNTIL + timedelta(hours=1))
    assert ledger.apply(transitions.begin_attempt(incident, UNTIL, NOW)) is None
    (renewed,) = ledger.claimed_by("run")
    assert ledger.apply(transitions.begin_attempt(renewed, UNTIL, NOW)) is not None
