"""Histories that broke a rule once, or would if one line were missing."""

from typing import Final

from tests.simulation.actors import StartOutcome
from tests.simulation.deeds import Act, Deed


def _fleet(**changes: int) -> Deed:
    """One worker that is dead and that nobody may try to restart more often than once."""
    usual = {"size": 1, "groups": 1, "missed": 1, "max_retries": 1, "grace": 60, "claim": 600}
    usual |= {"most": 1, "heals": False, "min_parallelism": 0}
    return Deed("begins", {**usual, "attached": False, "stable": False, **changes})


def _goes_on(which: int, steps: int, outcome: StartOutcome = StartOutcome.STARTS) -> Deed:
    return Deed("actor_goes_on", {"which": which, "steps": steps, "outcome": outcome})


_TICK: Final = Deed("ticks", {"keeper": 0, "waits": True, "launches": True})


_WORKER: Final = Deed("worker_changes", {"which": 0, "lives": True})


_LAPSE: Final = Deed("time_passes", {"seconds": 800})


_STORE_FAILS: Final = Deed(
    "actor_stumbles",
    {
        "which": 0,
        "outcome": StartOutcome.STARTS,
        "refuses": False,
        "fails_in": 0,
        "answer_is_lost": False,
    },
)


_GRACE_IS_OVER: Final = Deed("time_passes", {"seconds": 60})


_STOPPING: Final = 12  # steps of a run until it stops what an earlier start left


_IN_THE_CONTAINER: Final = 15  # steps of a run until it starts a worker


_STOPPING_AGAIN: Final = 9  # steps of its second attempt; as above


_IN_THE_CONTAINER_AGAIN: Final = 12


_ABOUT_TO_REMOVE: Final = 10  # steps of a run that gives up


_ABOUT_TO_STOP: Final = 12  # steps of such a run, which has removed the row


_TO_THE_END: Final = 20


# Histories that broke a rule once, or would if one line were missing.
KNOWN: Final[dict[str, list[Deed]]] = {
    "two that were declared anew wait for each other": [
        _fleet(size=3, missed=3, max_retries=0, min_parallelism=1),
        Deed("operator_acts", {"which": 2, "act": Act.REMOVE}),
        _TICK,
        Deed("operator_acts", {"which": 2, "act": Act.EDIT}),
        _TICK,
        Deed("operator_acts", {"which": 0, "act": Act.REMOVE}),
        Deed("operator_acts", {"which": 0, "act": Act.EDIT}),
    ],
    "AMS refills, then it is declared anew, and then AMS refills again": [
        _fleet(grace=0, heals=True, min_parallelism=1, attached=True),
        _TICK,
        Deed("operator_acts", {"which": 0, "act": Act.REMOVE}),
        Deed("ams_refills", {"which": 0}),
        Deed("operator_acts", {"which": 0, "act": Act.EDIT}),
        Deed("ams_refills", {"which": 0}),
        _TICK,
    ],
    "the row is broken while its worker is started": [
        _fleet(),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER),
        Deed("operator_acts", {"which": 0, "act": Act.BREAK}),
    ],
    "the row is removed while an earlier worker is stopped": [
        _fleet(),
        _TICK,
        _TICK,
        _goes_on(0, _STOPPING),
        Deed("operator_acts", {"which": 0, "act": Act.REMOVE}),
    ],
    "the row is removed after the last look before its worker is started": [
        _fleet(),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER - 1),
        Deed("operator_acts", {"which": 0, "act": Act.REMOVE}),
        _goes_on(0, _TO_THE_END),
    ],
    "a worker registers while an earlier one is stopped": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _TO_THE_END, StartOutcome.STARTS_AND_FAILS),
        _GRACE_IS_OVER,
        _goes_on(0, _STOPPING_AGAIN),
        _WORKER,
    ],
    "a worker registers while it is stopped": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _TO_THE_END),
        _TICK,
        _goes_on(0, _STOPPING - 1),
        Deed("stopped_worker_registers", {"which": 0}),
        _goes_on(0, _TO_THE_END),
        _TICK,
        Deed("workers_beat", {}),
        _TICK,
    ],
    "a row is removed while its worker boots": [
        _fleet(),
        _TICK,
        _TICK,
        _goes_on(0, _TO_THE_END),
        Deed("operator_acts", {"which": 0, "act": Act.REMOVE}),
        _TICK,
        Deed("actor_dies", {"which": 0}),
        _LAPSE,
        _TICK,
        _goes_on(0, _TO_THE_END),
    ],
    "a start is so slow that its worker is due again before it is over": [
        _fleet(max_retries=2, heals=True),
        _TICK,
        _TICK,
        Deed("start_is_slow", {"which": 0, "steps": _IN_THE_CONTAINER + 1}),
        Deed("time_passes", {"seconds": 50}),
        _goes_on(0, _TO_THE_END),
        Deed("ticks", {"keeper": 0, "waits": False, "launches": True}),
        Deed("time_passes", {"seconds": 30}),
        Deed("ticks", {"keeper": 0, "waits": False, "launches": True}),
    ],
    "a worker registers, and its run is taken for lost, before its slow start is over": [
        _fleet(),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER),
        _LAPSE,
        Deed("start_is_slow", {"which": 0, "steps": 1}),
        _WORKER,
        Deed("all_goes_its_way", {"outcome": StartOutcome.STARTS, "waits": True}),
    ],
    "the row is edited while it is removed": [
        _fleet(max_retries=0),
        _TICK,
        _TICK,
        _goes_on(0, _ABOUT_TO_REMOVE),
        Deed("operator_acts", {"which": 0, "act": Act.EDIT}),
    ],
    "the worker registers and dies while its row is removed": [
        _fleet(max_retries=0, missed=0),
        _WORKER,
        _TICK,
        _TICK,
        _goes_on(0, _ABOUT_TO_REMOVE),
        _WORKER,
        _goes_on(0, 1),
        _WORKER,
        _goes_on(0, _TO_THE_END),
    ],
    "the ledger fails between the removal of a row and the stop of its worker": [
        _fleet(max_retries=0, missed=0),
        _WORKER,
        _TICK,
        _TICK,
        _goes_on(0, _ABOUT_TO_STOP),
        _STORE_FAILS,
    ],
    "a start fails with a text that cannot be stored": [
        _fleet(),
        _TICK,
        Deed("all_goes_its_way", {"outcome": StartOutcome.FAILS_UNSPEAKABLY, "waits": True}),
    ],
    "a start returns what cannot be stored": [
        _fleet(),
        _TICK,
        Deed("all_goes_its_way", {"outcome": StartOutcome.STARTS_UNSTORABLY, "waits": True}),
    ],
    "a start takes so long that another one has brought it back": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER),
        _LAPSE,
        _TICK,
        _goes_on(1, _TO_THE_END),
        _WORKER,
        _TICK,
        _goes_on(0, _TO_THE_END),
    ],
    "a start takes so long that it came back, died and was started again": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _TO_THE_END, StartOutcome.STARTS_AND_FAILS),
        _GRACE_IS_OVER,
        _goes_on(0, _IN_THE_CONTAINER_AGAIN),
        _LAPSE,
        _WORKER,
        _TICK,
        Deed("workers_beat", {}),
        _TICK,
        _WORKER,
        _TICK,
        _TICK,
        _goes_on(1, _TO_THE_END),
        _goes_on(0, _TO_THE_END),
    ],
    "a start was overtaken, and then the ledger does not say so": [
        _fleet(max_retries=2),
        _TICK,
        _TICK,
        _goes_on(0, _IN_THE_CONTAINER),
        _LAPSE,
        _TICK,
        _goes_on(1, _IN_THE_CONTAINER),
        _goes_on(0, 3),
        _STORE_FAILS,
        _goes_on(0, _TO_THE_END),
    ],
}
