"""Does a registration say that a worker is back, or may it be of what was just stopped?

A worker that is told to stop while it boots can register all the same and end right after. Its row
stays until its heartbeats expire, and is nothing but a token until it is touched again.
"""

import json
from collections.abc import Mapping
from typing import Final

from dagster_amoro.core.model import Incident

Registrations = Mapping[str, str]
"""The optimizers that name a resource: by token, when each was touched last.

Times are texts as the database has them, to be compared with one another only.
"""

DOUBTFUL: Final = "an optimizer registered that may have been stopped; it is not touched yet"
"""Why an orphan whose resource has an optimizer is neither restarted nor closed."""


def is_back(incident: Incident, registrations: Registrations) -> bool:
    """Whether one of these is none of those that are doubted, or was touched since."""
    doubted = json.loads(incident.doubted or "{}")
    return any(doubted.get(token) != touched for token, touched in registrations.items())
