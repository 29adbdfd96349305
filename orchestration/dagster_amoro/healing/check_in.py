"""How does somebody outside know that the fleet is looked after? An address hears of each survey.

Whoever has the address notices when it hears nothing any more: services for cron jobs, and monitors
with a push address, do. The address is a secret, as whoever knows it can pretend.
"""

import re
from dataclasses import dataclass, field
from threading import Thread
from typing import Final

from dagster_amoro.containers.rest import RestError, ask
from dagster_amoro.core.errors import describe
from dagster_amoro.core.secrets import Mask

LONGEST: Final = 3.0  # s that a tick waits, in all; looking a name up has no limit of its own
_SHORTEST_SECRET: Final = 8  # characters of a part of an address
_PARTS: Final = re.compile(r"[/?#&=@:\[\]]+")
_REFUSED: Final = 400  # statuses of HTTP from here on


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckIn:
    """Says at a web address that a survey was completed."""

    url: str = field(repr=False)
    timeout: float = LONGEST

    def tell(self, *, wait: bool) -> str | None:
        """Tells it, and returns why that did not work, without the address; None: it did.

        Without `wait`, where something else must not wait, None also where that is not known yet.
        """
        problems: list[str] = []
        thread = Thread(target=self._ask, args=(problems,), name="check-in", daemon=True)
        thread.start()
        if wait:
            thread.join(self.timeout)
        if problems:
            return problems[0]
        return f"no answer within {self.timeout:g} s" if wait and thread.is_alive() else None

    def _ask(self, problems: list[str]) -> None:
        try:
            answer = ask("GET", self.url, self.timeout, by_proxy=True)
        except RestError as error:
            problems.append(self._hidden(str(error)))
        except Exception as error:  # noqa: BLE001 - of an address that no library can take
            problems.append(self._hidden(describe(error)))
        else:
            if answer.status >= _REFUSED:
                problems.append(f"answered {answer.status}")

    def _hidden(self, text: str) -> str:
        parts = [part for part in _PARTS.split(self.url) if len(part) >= _SHORTEST_SECRET]
        return Mask(*({"token": each} for each in [self.url, *parts])).hide(text)
