"""When is an asset of the audit to be refreshed?"""

from typing import Any

import dagster as dg


def whenever(news: "dg.AutomationCondition[Any]", label: str) -> "dg.AutomationCondition[Any]":
    """As soon as there is news that no refresh was requested after, and none is under way.

    Not `AutomationCondition.eager()`: it forgets news that comes in the same interval as a refresh
    of its own, which has often read the ledger by then, and an incident would look open for ever.
    Nor does one partition that is missing hold up what is made of all of them. The news is true in
    the evaluation in which it comes.
    """
    # Where both are new at once, nobody knows which came first: `since` lets its reset win, which
    # is the news here, so that there is one refresh too many rather than one too few.
    taken_in = dg.AutomationCondition.newly_requested().since(news)
    return (~taken_in & ~dg.AutomationCondition.in_progress()).with_label(label)
