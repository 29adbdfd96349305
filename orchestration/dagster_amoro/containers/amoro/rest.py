"""How are the REST ports of Flink and Spark asked? Directly, whatever proxies are set."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dagster_amoro.core.errors import ContainerError, describe


class RestError(ContainerError):
    """A request was refused, or nobody answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status: Final = status  # of HTTP; None: none came from whom we asked for


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back over HTTP."""

    status: int
    reason: str  # the words beside the status
    kind: str  # the Content-Type; `nothing` where there is none
    body: Mapping[str, Any] | None  # None: it is no JSON object


def ask(method: str, url: str, timeout: float, **content: Any) -> Answer:  # noqa: ANN401 - those of requests
    """Sends a request, with `content` as `requests` takes it, and reads the answer.

    Certificates are checked against the usual authorities, or those in the file that
    `REQUESTS_CA_BUNDLE` names. The timeout is in seconds: to connect, and again for each wait.

    Raises:
        RestError: There was no answer, or what is to be uploaded cannot be read.
    """
    import requests  # noqa: PLC0415 - slow to import

    try:
        with requests.Session() as session:
            session.trust_env = False
            session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
            response = session.request(method, url, timeout=timeout, **content)
    except requests.Timeout:
        raise RestError(f"no answer within {timeout:g} s") from None
    except OSError as error:  # those of requests are
        raise RestError(_innermost(error)) from None
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    kind = response.headers.get("Content-Type") or "nothing"
    body = body if isinstance(body, dict) else None
    return Answer(response.status_code, response.reason, kind, body)


def _innermost(error: BaseException) -> str:
    """The text of the first error, which says best what those around it repeat."""
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - slow to import

    while isinstance(error.__context__, OSError | HTTPError):
        error = error.__context__
    return describe(error)
