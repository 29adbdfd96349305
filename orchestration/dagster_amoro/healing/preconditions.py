"""May this deployment conclude anything from the registry now, and act on it?

Only while this host's clock is right, and no other deployment has the lease. In attached mode, only
while AMS answers and did not just forget its optimizers.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from dagster_amoro.ams.client import Ams
from dagster_amoro.core.ams_restart import SAMPLE_SIZE, AmsRestartDetector, look_again
from dagster_amoro.core.clock import Clock, utc_clock
from dagster_amoro.core.corrections import difference
from dagster_amoro.core.errors import AmsUnavailableError, KeeperError
from dagster_amoro.core.formatting import clock_time, duration
from dagster_amoro.core.model import Event, EventKind
from dagster_amoro.stores.leases import acquire
from dagster_amoro.stores.ledger import Ledger
from dagster_amoro.stores.registry import Registry


class UncertainStateError(AmsUnavailableError):
    """Nobody can tell now who is an orphan; the tick abstains."""

    def __init__(self, message: str, detector: AmsRestartDetector) -> None:
        """Carries what the next tick has to remember all the same."""
        super().__init__(message)
        self.detector = detector


class WrongClockError(KeeperError):
    """This host's clock cannot be relied on; nothing is concluded by it."""


class StandbyError(KeeperError):
    """Another deployment acts; this one watches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preconditions:
    """What must hold before anything is concluded."""

    ledger: Ledger
    registry: Registry
    clock: Clock
    ams: Ams | None  # whose registry it is; None: it is ours
    settling: timedelta  # how long optimizers may take to register again, see `settling_time`
    deployment: str  # what this deployment is called where several share a registry
    lease_time: timedelta | None  # it may act so long without a renewal; None: it is the only one
    # This host's, which the ledger's database judges; `clock` is this one, but in tests.
    host_clock: Clock = utc_clock

    def ensure_clock(self) -> None:
        """Makes sure that this host knows what time it is; first of all, so that others may act.

        Raises:
            WrongClockError: It and the ledger's database differ by minutes.
            StoreUnavailableError: The ledger did not answer.
        """
        ahead = difference(self.host_clock(), self.ledger.clock())
        if ahead is not None:
            side = "ahead of" if ahead > timedelta(0) else "behind"
            raise WrongClockError(
                f"this host's clock is {duration(abs(ahead))} {side} that of the ledger's database"
            )

    def hold_lease(self, instance: str) -> int | None:
        """Takes or renews the lease.

        `instance` tells this deployment's Dagster from others of the same name.

        Returns:
            The fence of what this tick does; None: there is no other deployment.

        Raises:
            StandbyError: Another deployment has the lease.
            StoreUnavailableError: The ledger did not answer.
        """
        if self.lease_time is None:
            return None
        holder = f"{self.deployment} ({instance[:8]})" if instance else self.deployment
        with self.ledger.transaction() as ledger:
            before, after = acquire(ledger.connection, holder, self.lease_time)
            if after.holder == holder and before.holder not in {"", holder}:
                ended = f"that of {before.holder} ran out at {clock_time(before.expires_at)}"
                message = f"{holder} has the lease and acts from now on; {ended}"
                event = Event(kind=EventKind.LEASE_TAKEN, at=self.clock(), message=message)
                ledger.add_event(event)
        if after.holder != holder:
            raise StandbyError(
                f"{after.holder} acts, and its lease runs until {clock_time(after.expires_at)}; "
                f"{holder} takes over if it is not renewed by then"
            )
        return after.fence

    def ensure_answer(self, detector: AmsRestartDetector) -> None:
        """Makes sure that AMS is there; to be called before the registry is read.

        Raises:
            UncertainStateError: It does not answer, or not as AMS does.
        """
        if silence := silence_of(self.ams):
            raise UncertainStateError(silence, detector.seen_away())

    def ensure_continuity(self, detector: AmsRestartDetector, now: datetime) -> AmsRestartDetector:
        """Makes sure that AMS did not forget its optimizers before the registry was read.

        Returns:
            What the next tick has to remember.

        Raises:
            UncertainStateError: It may have forgotten them.
            StoreUnavailableError: The registry did not answer.
        """
        if self.ams is None:
            return detector
        known = detector.sample_tokens
        there, registered = self.registry.sample_tokens(known, SAMPLE_SIZE)
        following, until = look_again(
            detector, still_there=there, registered=registered, settling=self.settling, now=now
        )
        if until is None:
            return following
        why = "AMS was away and nothing shows that it kept its optimizers"
        if known:
            why = f"all {len(known)} optimizers that were looked for are gone at once"
        raise UncertainStateError(
            f"{why}, as after a restart of AMS; healthy ones register again by "
            f"{clock_time(until)}, and nothing is concluded before",
            following,
        )


def silence_of(ams: Ams | None) -> str | None:
    """Why AMS cannot be counted on now; None: it answers, or the registry is nobody's but ours."""
    try:
        if ams is not None:
            ams.ping()
    except AmsUnavailableError as error:
        return str(error)
    return None
