"""Which columns do the tables of the audit have, of which type, and what do they mean?

Apart from the code that fills them, so that Dagster can show them without loading pandas.
"""

from typing import Final

import dagster as dg

Columns = tuple[dg.TableColumn, ...]

_MOMENT: Final = "datetime64[us, UTC]"
_SPAN: Final = "timedelta64[us]"


def _columns(*columns: tuple[str, str, str]) -> Columns:
    return tuple(dg.TableColumn(*column) for column in columns)


def types_of(columns: Columns) -> dict[str, str]:
    """The pandas type of each column, by name."""
    return {column.name: column.type for column in columns}


INCIDENTS: Final = _columns(
    ("group", "string", "The optimizer group."),
    ("incident", "int64", "The ledger's number of the incident."),
    ("resource", "string", "The id of the resource that was orphaned."),
    ("container", "string", "The container that starts it."),
    ("threads", "int64", "Its thread count: the capacity that was missing."),
    ("detected", _MOMENT, "When it was first seen orphaned."),
    ("attempts", "int64", "Starts that were decided on."),
    ("cause", "string", "Why its worker died, in a few words; empty: nobody could be asked."),
    ("death", "string", "The same in a sentence."),
    ("last_error", "string", "Why the last attempt failed; empty if it did not."),
    ("outcome", "string", "recovered, exhausted (given up), released, superseded; empty: open."),
    ("closed", _MOMENT, "When the outcome was seen; empty while it is open."),
    ("time_to_recover", _SPAN, "From detection to recovery. Outside pandas: whole microseconds."),
    ("seconds_to_recover", "float64", "The same in s, for what knows no spans of time."),
    ("grace_seconds", "float64", "The grace period at its detection in s; empty: not noted."),
    ("max_retries", "Int64", "Attempts it was allowed at its detection; empty: not noted."),
)
EVENTS: Final = _columns(
    ("group", "string", "The optimizer group."),
    ("event", "int64", "The ledger's number of the event; events are in this order."),
    ("incident", "Int64", "The incident it belongs to; empty: it is the group's, like a pause."),
    ("resource", "string", "The id of the resource that was orphaned; empty where none was."),
    ("kind", "string", "What happened: detected, attempt, recovered, scale-up, paused, …"),
    ("at", _MOMENT, "When it happened."),
    ("attempt", "Int64", "The number of the attempt; empty where there was none."),
    ("run", "string", "The id of the Dagster run that did it; empty: a tick."),
    ("message", "string", "One sentence for a person."),
    ("wanted", "Int64", "Threads that the group should have had then; empty: not noted."),
    ("live", "Int64", "Threads that the group had then; empty: not noted."),
)
RELIABILITY: Final = _columns(
    ("group", "string", "The optimizer group."),
    ("container", "string", "The container that starts the resources."),
    ("window", "string", "The time before the refresh: hour, day, week or all."),
    ("incidents", "int64", "Incidents that were open in the window, from before it or not."),
    ("self_recovered", "int64", "Of them, recovered without an attempt."),
    ("recovered_first", "int64", "Recovered after one attempt."),
    ("recovered_later", "int64", "Recovered after more than one attempt."),
    ("given_up", "int64", "Given up: the resource was released and removed."),
    ("released", "int64", "Ended because somebody removed the resource."),
    ("superseded", "int64", "Ended because the group was scaled up without it."),
    ("open", "int64", "Without an outcome yet."),
    ("causes", "string", "Why workers died, the most frequent first, with their counts."),
    ("median_seconds", "float64", "Time to recover in s, median; of all within 1 % and 0.01 s."),
    ("p95_seconds", "float64", "Time to recover in s that 95 % did not exceed; as the median."),
    ("full_strength", "float64", "Share of the time, 0 to 1, in which no thread was missing."),
    (
        "strength",
        "float64",
        (
            "Share of the threads wanted by the group, 0 to 1, that were not missing through this "
            "container, averaged over the time; empty where none were wanted or nobody noted it."
        ),
    ),
    ("last_errors", "string", "The most frequent last errors with their counts; of all: a week's."),
    (
        "flapping",
        "string",
        "Resources with three incidents or more, with their number, worst first; of all: a week's.",
    ),
)
ADVICE: Final = _columns(
    ("group", "string", "The optimizer group; empty: all of them."),
    ("grace_seconds", "float64", "The grace period tried, in s."),
    ("max_retries", "int64", "The attempts tried."),
    ("in_force", "bool", "Whether this is the policy that is in force."),
    ("orphans", "int64", "Incidents that were replayed."),
    ("closed", "int64", "Of them, closed in the record."),
    ("by_itself", "int64", "Back without an attempt."),
    ("restarted", "int64", "Back after attempts."),
    ("unneeded_restarts", "int64", "Restarted, though they were coming back by themselves."),
    ("given_up", "int64", "Given up."),
    ("otherwise", "int64", "Released or superseded."),
    ("open", "int64", "Open at the end of the record."),
    ("unknown", "int64", "The record does not say how they would have ended."),
    ("attempts", "int64", "Starts, as far as they are known."),
    ("median_wait", "float64", "Until the first attempt in s, median."),
    ("p95_wait", "float64", "Until the first attempt in s, not exceeded by 95 %."),
    ("median_recovery", "float64", "Until those restarted were back in s, median."),
    ("p95_recovery", "float64", "Until those restarted were back in s, not exceeded by 95 %."),
)
