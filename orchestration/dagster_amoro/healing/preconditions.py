"""May this deployment conclude anything from the registry now, and act on it?

Only while no other deployment has the lease. In attached mode, only while AMS answers and did not
just forget its optimizers.
"""

from datetime import datetime

from dagster_amoro.ams.client import Ams
from dagster_amoro.core.ams_restart import WITNESSES, AmsRestartDetector, look_again
from dagster_amoro.core.errors import AmsUnavailableError, KeeperError
from dagster_amoro.core.formatting import clock_time
from dagster_amoro.core.model import Event, EventKind
from dagster_amoro.healing.keeper import Keeper
from dagster_amoro.stores.leases import acquire


class UncertainStateError(AmsUnavailableError):
    """Nobody can tell now who is an orphan; the tick abstains."""

    def __init__(self, message: str, watch: AmsRestartDetector) -> None:
        """Carries what the next tick has to remember all the same."""
        super().__init__(message)
        self.watch = watch


class StandbyError(KeeperError):
    """Another deployment acts; this one watches."""


def hold_lease(keeper: Keeper, instance: str) -> int | None:
    """Takes or renews the lease.

    Args:
        keeper: Whose deployment it is.
        instance: What tells this deployment's Dagster from others of the same name.

    Returns:
        The fence of what this tick does; None: there is no other deployment.

    Raises:
        StandbyError: Another deployment has the lease.
        StoreUnavailableError: The ledger did not answer.
    """
    if keeper.lease_time is None:
        return None
    holder = f"{keeper.deployment} ({instance[:8]})" if instance else keeper.deployment
    with keeper.ledger.transaction() as ledger:
        before, after = acquire(ledger.connection, holder, keeper.lease_time)
        if after.holder == holder and before.holder not in {"", holder}:
            ended = f"that of {before.holder} ran out at {clock_time(before.expires_at)}"
            message = f"{holder} has the lease and acts from now on; {ended}"
            event = Event(kind=EventKind.LEASE_TAKEN, at=keeper.clock(), message=message)
            ledger.add_event(event)
    if after.holder != holder:
        raise StandbyError(
            f"{after.holder} acts, and its lease runs until {clock_time(after.expires_at)}; "
            f"{holder} takes over if it is not renewed by then"
        )
    return after.fence


def silence_of(ams: Ams | None) -> str | None:
    """Why AMS cannot be counted on now; None: it answers, or the registry is nobody's but ours."""
    if ams is None:
        return None
    try:
        ams.ping()
    except AmsUnavailableError as error:
        return str(error)
    return None


def ensure_answer(ams: Ams | None, watch: AmsRestartDetector) -> None:
    """Makes sure that AMS is there; to be called before a look.

    Raises:
        DoubtError: It does not answer, or not as AMS does.
    """
    if silence := silence_of(ams):
        raise UncertainStateError(silence, watch.seen_away())


def ensure_continuity(
    keeper: Keeper, watch: AmsRestartDetector, now: datetime
) -> AmsRestartDetector:
    """Makes sure that AMS did not forget its optimizers before a look; to be called after it.

    Returns:
        What the next tick has to remember.

    Raises:
        DoubtError: It may have forgotten them.
        StoreUnavailableError: The registry did not answer.
    """
    if keeper.ams is None:
        return watch
    still_there, registered = keeper.registry.sample_tokens(watch.sample_tokens, WITNESSES)
    following, until = look_again(
        watch,
        still_there=still_there,
        registered=registered,
        settling=keeper.settling,
        now=now,
    )
    if until is not None:
        raise UncertainStateError(_doubt(watch, until), following)
    return following


def _doubt(watch: AmsRestartDetector, until: datetime) -> str:
    gone = f"all {len(watch.sample_tokens)} optimizers that were looked for are gone at once"
    why = (
        gone
        if watch.sample_tokens
        else "AMS was away and nothing shows that it kept its optimizers"
    )
    return (
        f"{why}, as after a restart of AMS; healthy ones register again by {clock_time(until)}, "
        "and nothing is concluded before"
    )
