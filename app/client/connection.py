"""A connection to one service: requests that are repeated where that is safe, pages, downloads and event streams.

Does not know what a data set, a job or a model is.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import takewhile
from urllib.parse import quote

import httpx

from .bodies import Body
from .errors import ERROR_BY_STATUS, ApiError, ConnectionFailed
from .records import Document

DEFAULT_URL = "http://127.0.0.1:8000"
#: most times that a request is sent, and the pause before the second time; each further pause is twice as long
ATTEMPTS, BACKOFF_SECONDS = 5, 0.2
#: a longer `Retry-After` is not waited for: the caller gets the error
MAX_RETRY_AFTER_SECONDS = 30.0
#: an event stream is dead after this time without a line: the service sends a comment every 15 seconds
SILENCE_SECONDS = 45.0
CONNECT_SECONDS = 10.0
READY_SECONDS = 5.0


class Connection:
    """The address of a service, the key, and the open sockets; usable from several threads.

    Args:
        base_url: address of the service; default `FITSERVE_URL`, else `DEFAULT_URL`.
        api_key: the bearer key; default `FITSERVE_API_KEY`; "" sends none.
        timeout: the longest silence of the service, in seconds.
        transport: sends the requests in place of the network.

    Raises:
        ValueError: `base_url` is not the address of an HTTP service.
    """

    def __init__(
        self, base_url: str | None, api_key: str | None, timeout: float, transport: httpx.BaseTransport | None
    ) -> None:
        self.base_url = base_url or os.environ.get("FITSERVE_URL") or DEFAULT_URL
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"expected an address such as {DEFAULT_URL}, got {self.base_url!r}")
        try:
            host = httpx.URL(self.base_url).host
        except httpx.InvalidURL as error:
            raise ValueError(f"expected an address such as {DEFAULT_URL}: {error}, got {self.base_url!r}") from None
        key = os.environ.get("FITSERVE_API_KEY", "") if api_key is None else api_key
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            transport=transport,
            # a proxy from the environment cannot reach this machine's loopback
            trust_env=host not in ("localhost", "127.0.0.1", "::1"),
        )

    def close(self) -> None:
        """Close the sockets."""
        self._http.close()

    def call(
        self,
        method: str,
        path: str,
        *,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        is_repeatable: bool = False,
    ) -> Document:
        """Send a request and return the decoded answer; {} where the answer is empty.

        A GET, or a request that `is_repeatable`, is sent again after a lost connection and after a `Retry-After`.
        """
        attempts = ATTEMPTS if is_repeatable or method == "GET" else 1
        for attempt in range(1, attempts + 1):
            # at random: clients that lost the same service should not all come back at once
            pause = BACKOFF_SECONDS * 2.0 ** (attempt - 1) * random.uniform(0.7, 1.0)
            try:
                response = self._send(method, path, body, headers or {}, params)
            except httpx.TransportError as error:
                if attempt == attempts or isinstance(error, httpx.ReadTimeout):
                    raise self._connection_failed(error) from error
            else:
                retry_after = _read_retry_after(response)
                if attempt == attempts or retry_after is None:
                    break
                pause = retry_after
            time.sleep(pause)
        _raise_for_error(response)
        document: Document = response.json() if response.content else {}
        return document

    def pages(self, path: str, **filters: object) -> Iterator[Document]:
        """Return the items of a list, from one page after the other."""
        params = {"limit": "500"} | {name: str(value) for name, value in filters.items() if value is not None}
        while True:
            page = self.call("GET", path, params=params)
            yield from page["items"]
            if page["next"] is None:
                return
            params["after"] = page["next"]

    def events(self, path: str, after: int, deadline: float) -> Iterator[Document]:
        """Return the events whose id is above `after` as they come, until the stream ends or `time.monotonic` passes `deadline`."""
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        silence = max(min(SILENCE_SECONDS, deadline - time.monotonic()), 0.1)
        try:
            with self._http.stream("GET", f"/api/v1/{path}", headers=headers, timeout=silence) as response:
                _raise_for_error(response)
                yield from _parse_events(takewhile(lambda _: time.monotonic() < deadline, response.iter_lines()))
        except httpx.ReadTimeout:
            # a silent stream ends like a complete one: the caller asks for the job's state next
            return
        except httpx.TransportError as error:
            raise self._connection_failed(error) from error

    def download(self, path: str, params: Mapping[str, str]) -> Iterator[bytes]:
        """Return the parts of an answer as they come."""
        try:
            with self._http.stream("GET", f"/api/v1/{path}", params=params) as response:
                _raise_for_error(response)
                yield from response.iter_bytes()
        except httpx.TransportError as error:
            raise self._connection_failed(error) from error

    def is_ready(self) -> bool:
        """Return whether the service answers that it takes requests; asks once."""
        try:
            return self._http.get("/readyz", timeout=READY_SECONDS).is_success
        except httpx.TransportError:
            return False

    def _send(
        self,
        method: str,
        path: str,
        body: Body | None,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None,
    ) -> httpx.Response:
        url = f"/api/v1/{path}"
        if body is None:
            return self._http.request(method, url, headers=headers, params=params)
        headers = {**headers, "Content-Type": body.content_type}
        with body.open() as content:
            return self._http.request(method, url, content=content, headers=headers, params=params)

    def _connection_failed(self, error: httpx.TransportError) -> ConnectionFailed:
        return ConnectionFailed(f"no answer from {self.base_url}: {str(error) or type(error).__name__}")


def path_of(*segments: str) -> str:
    """Return a path below /api/v1 whose segments are quoted, so that none of them leads elsewhere.

    Raises:
        ValueError: a segment is empty, "." or "..".
    """
    for segment in segments:
        if segment in ("", ".", ".."):
            raise ValueError(f"expected a name or an id, got {segment!r}")
    return "/".join(quote(segment, safe="@") for segment in segments)


def _raise_for_error(response: httpx.Response) -> None:
    if response.is_success:
        return
    problem: Document = {}
    with suppress(ValueError, TypeError):
        problem = dict(json.loads(response.read()))
    status, detail = response.status_code, str(problem.get("detail") or response.reason_phrase)
    request_id = str(problem.get("request_id") or response.headers.get("X-Request-ID", ""))
    kind = ERROR_BY_STATUS.get(status, ApiError)
    raise kind(status, str(problem.get("code", "unknown")), detail, problem.get("errors") or (), request_id)


def _read_retry_after(response: httpx.Response) -> float | None:
    """Return the seconds to wait before the request is sent again, or None where sending it again is of no use."""
    with suppress(ValueError):
        seconds = float(response.headers.get("Retry-After", ""))
        if response.status_code in (429, 503) and 0 <= seconds <= MAX_RETRY_AFTER_SECONDS:
            return seconds
    return None


def _parse_events(lines: Iterable[str]) -> Iterator[Document]:
    """Return the events of a `text/event-stream`, whose data carry their ids; an event that breaks off is left out.

    Source: HTML Living Standard, 9.2.6, Interpreting an event stream.
    """
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif not line and data:
            yield json.loads("\n".join(data))
            data = []
