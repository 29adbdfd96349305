"""How are REST ports asked, so that no answer takes too long, is too large or leads elsewhere?

Flink and Spark are asked directly, whatever proxies are set; what is out in the world is not.
"""

import io
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, Final

from dagster_amoro.core.errors import ContainerError, describe, shorten

LARGEST_ANSWER: Final = 16 << 20  # bytes, headers included

_REDIRECTS: Final = range(300, 400)
_CONFIDENTIAL: Final = re.compile(r"(?<=//)[^/]*@|[?#;].*", re.DOTALL)  # parts of a URL
_SHOWN: Final = 200  # characters of where a redirect points to


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


def ask(
    method: str,
    url: str,
    timeout: float,
    total: float | None = None,
    *,
    by_proxy: bool = False,
    **content: Any,  # noqa: ANN401 - those of requests
) -> Answer:
    """Sends a request, with `content` as `requests` takes it, and reads the answer.

    Certificates are checked against the usual authorities, or those in the file that
    `REQUESTS_CA_BUNDLE` names.

    All of it takes `timeout` seconds at most; only a host with several addresses gets them for
    each. With a `total`, for what takes long to send, that is the limit, and the `timeout` is the
    one of connecting, of sending each part, and of the whole answer. Only `by_proxy` it is sent
    through those that the environment names, which have time of their own.

    Raises:
        RestError: There was no answer, it goes beyond a limit, it is a redirect, or what is to be
            uploaded cannot be read.
    """
    import requests  # noqa: PLC0415 - slow to import
    from urllib3 import Timeout  # noqa: PLC0415 - slow to import

    content["timeout"] = Timeout(connect=timeout, read=timeout, total=total or timeout)
    try:
        with requests.Session() as session:
            session.trust_env = by_proxy
            session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
            session.headers["Accept-Encoding"] = "identity"
            adapter: Any = session.get_adapter(url)  # an HTTPAdapter; its base class has no pools
            limit_answers(adapter.poolmanager)
            response = session.request(method, url, allow_redirects=False, **content)
    except OSError as error:  # those of requests are
        first = _innermost(error)
        is_late = isinstance(error, requests.Timeout) or isinstance(first, TimeoutError)
        why = f"no answer within {timeout:g} s" if is_late else describe(first)
        raise RestError(why) from None
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    kind = response.headers.get("Content-Type") or "nothing"
    body = body if isinstance(body, dict) else None
    return Answer(response.status_code, response.reason, kind, body)


def _innermost(error: BaseException) -> BaseException:
    """The first error, which says best what those around it repeat."""
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - slow to import

    while isinstance(error.__context__, OSError | HTTPError):
        error = error.__context__
    return error


def limit_answers(pools: Any) -> None:  # noqa: ANN401 - whose types urllib3's versions do not share
    """Makes a new PoolManager of urllib3 read answers within limits; a RestError says which.

    urllib3 has a total timeout, but hands it to the socket, where it begins anew with each byte.
    """

    def limited(kind: Any) -> Any:  # noqa: ANN401 - a class of pools
        connection = kind.ConnectionCls
        own = type(connection.__name__, (connection,), {"response_class": _LimitedResponse})
        return type(kind.__name__, (kind,), {"ConnectionCls": own})

    kinds = pools.pool_classes_by_scheme
    pools.pool_classes_by_scheme = {scheme: limited(kind) for scheme, kind in kinds.items()}


class _LimitedResponse(HTTPResponse):
    """An answer that has the timeout of its socket for everything, headers included.

    A redirect is none, since whoever is asked gets secrets. Compression is refused, because a few
    bytes could become any number of them.
    """

    def __init__(self, sock: Any, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - as the base class
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Incoming(self.fp.detach(), sock))

    def begin(self) -> None:
        """Reads the headers."""
        super().begin()
        target, coding = (self.getheader(name) for name in ("Location", "Content-Encoding"))
        if target and self.status in _REDIRECTS:
            shown = shorten(repr(_CONFIDENTIAL.sub("", target)), _SHOWN)
            raise RestError(f"answered {self.status} and points to {shown}; that is not followed")
        if coding not in {None, "identity"}:
            raise RestError(f"answered {self.status} with the unwanted coding {coding!r}")
        if (self.length or 0) > LARGEST_ANSWER:
            raise _too_large()

    def read(self, amt: int | None = None) -> bytes:
        """Reads the body; a chunk can announce more than there is memory for."""
        return super().read(LARGEST_ANSWER + 1 if amt is None and self.chunked else amt)


class _Incoming(io.RawIOBase):
    """What a server sends, until the time is up or it is too much."""

    def __init__(self, raw: Any, sock: Any) -> None:  # noqa: ANN401 - plain ones and those of TLS
        self._raw: Final = raw
        self._sock: Final = sock
        self._deadline: Final[float] = time.monotonic() + sock.gettimeout()
        self._read = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - as the base class
        """Reads what is there, or waits for it as long as there is time."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left)
        count: int = self._raw.readinto(buffer)
        self._read += count
        if self._read > LARGEST_ANSWER:
            raise _too_large()
        return count

    def close(self) -> None:
        """Lets go of the socket."""
        self._raw.close()
        super().close()


def _too_large() -> RestError:
    return RestError(f"answered with more than {LARGEST_ANSWER >> 20} MiB")
