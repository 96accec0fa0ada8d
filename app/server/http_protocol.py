"""Connections: how many there may be, how a request's head may come, and when; wrong HTTP is answered here."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import Any, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from app.errors import Busy
from app.http.gate import new_id
from app.http.problems import RETRY_AFTER_SECONDS, problem
from app.server.request_parser import RequestParser
from app.serving.admission import Lane

MAX_HEAD_BYTES = 16 * 1024
MAX_CONNECTIONS = 1000
#: the ends of the paths that predict, in every protocol
_PREDICTS = re.compile(rb"[/:](?:predict|classify|regress|infer)$")

#: stands for the id of a request in a response that is kept, and is as long as an id
_ANY_ID = b"an-id-of-nobody."


class FinalError(NamedTuple):
    """The error that a connection ends with, or that refuses a request."""

    status: int
    code: str
    detail: str


class _RefusedCycle:
    """Stands in the place of uvicorn's cycle for a refused request: uvicorn passes over the rest of the request."""

    response_complete, disconnected, keep_alive = True, False, False
    message_event = asyncio.Event()


_REFUSED: Any = _RefusedCycle()


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on connections and on a request's head, and a time by which the head must have come.

    Args:
        head_seconds: that time.
        predictions: where its lane is full, a prediction is refused when its head has come.
        arguments, named: those of uvicorn's protocol.
    """

    transport: Any
    cycle: Any

    def __init__(self, *arguments: Any, head_seconds: float, predictions: Lane, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.parser = RequestParser(self)
        #: whether the parser has read whole requests, and nothing behind the last one
        self.is_between = True
        #: the error that ends the connection, after the responses to the requests before
        self.final_error: FinalError | None = None
        self._head_seconds, self._predictions = head_seconds, predictions
        self._clock: asyncio.TimerHandle | None = None
        self._is_in_head = True
        self._is_one_too_many = False
        #: bytes of the names and values of this request's head, and of its trailers
        self._head_bytes = 0
        #: bytes of the pieces since the last piece that began a request, ended one, or had a part of a body
        self._idle_bytes = 0
        self._is_piece_idle = True
        #: when a body that nobody reads must have come, by the event loop's clock
        self._unread_until: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first head."""
        super().connection_made(transport)
        self._is_one_too_many = len(self.connections) > MAX_CONNECTIONS
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_clock()
        super().connection_lost(exc)
        # uvicorn lets its own clock run on where the connection was reset
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Count bytes that bring no request further, and see that a clock runs while a request is awaited."""
        if self.final_error is not None:
            return
        before, self._is_piece_idle = self.cycle, True
        super().data_received(data)
        # a request may begin without the parser: the fast path recalls a whole request by its bytes
        is_idle = self._is_piece_idle and self.cycle is before
        self._idle_bytes = self._idle_bytes + len(data) if is_idle else 0
        if self._idle_bytes > MAX_HEAD_BYTES:
            self._end_with(_too_large())
        elif self._is_in_head and not self.is_between:
            # most heads are whole in their first piece, and need no clock
            if self._clock is None and self.final_error is None:
                self._start_clock()
        elif self.cycle is not None and self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self._await_more()

    def _await_more(self) -> None:
        """Start the clock of the next request, or of the rest of a body that nobody reads, which has one time for all of it."""
        now = self.loop.time()
        until = now + self.timeout_keep_alive
        if self.is_between:
            self._unread_until = None
        else:
            self._unread_until = until = until if self._unread_until is None else self._unread_until
        self.timeout_keep_alive_task = self.loop.call_at(max(until, now), self.timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, or too much of it, with a problem; uvicorn's own response is plain text."""
        is_too_large = self._head_bytes > MAX_HEAD_BYTES
        self._end_with(_too_large() if is_too_large else FinalError(400, "malformed", f"Expected HTTP/1.1: {msg}"))

    def on_message_begin(self) -> None:
        """Begin to count the next request's head."""
        super().on_message_begin()
        self._stop_clock()
        self.is_between, self._is_in_head, self._is_piece_idle = False, True, False
        self._head_bytes, self._unread_until = 0, None

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the address."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header, in the head or behind the body."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            # the parser ends here, and reads nothing behind
            raise ValueError("the head is too large")

    def on_headers_complete(self) -> None:
        """Refuse a request for which there is no place, or begin it.

        A refused request meets no route: a busy process is to spend its time on the requests that it serves.
        """
        if self.parser.should_upgrade():
            # the head is parsed again, without its `Upgrade`
            return
        self._stop_clock()
        self._is_in_head = False
        busy = self._find_busy() if self._is_idle and not self.flow.write_paused else None
        if busy is None:
            super().on_headers_complete()
            return
        # a client that was not asked for its body may not send it
        keeps = self.parser.should_keep_alive() and not self.expect_100_continue
        self.cycle = _REFUSED
        self.refuse(busy, self._path, closes=not keeps)

    def on_body(self, body: bytes) -> None:
        """Note that the request came on."""
        self._is_piece_idle = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the request came to its end."""
        if self.parser.should_upgrade():
            # the head is parsed again, without its `Upgrade`; the request has not ended
            return
        self.is_between, self._is_piece_idle = True, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Write the final error when its turn has come."""
        super().on_response_complete()
        if self.final_error is not None and self._is_idle:
            self._end_with(self.final_error)

    @property
    def _is_idle(self) -> bool:
        """Whether all requests before have their responses."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _path(self) -> str:
        """The path of the request; empty where no address was read yet."""
        return self.url.partition(b"?")[0].decode("latin-1")

    def _find_busy(self) -> Busy | None:
        """Return why a request meets no route, or None. The refusal is counted, and has no line in the access log."""
        if self._is_one_too_many:
            # uvicorn's own response is plain text
            detail = f"Expected at most {MAX_CONNECTIONS} connections, got one more; try again later."
            return Busy(detail, RETRY_AFTER_SECONDS)
        is_full = self._predictions.is_full and self.parser.get_method() == b"POST"
        return self._predictions.refusal() if is_full and _PREDICTS.search(self.url.partition(b"?")[0]) else None

    def refuse(self, busy: Busy, path: str, *, closes: bool) -> None:
        """Answer with 503 and say when to come back.

        Args:
            closes: whether to close the connection.
        """
        headers = (("Retry-After", str(busy.retry_seconds)),)
        error = FinalError(503, busy.code, busy.message)
        self._write_error(error, path, headers, closes=closes or self._is_one_too_many)
        self.on_response_complete()

    def _end_with(self, error: FinalError) -> None:
        """Write an error after the responses to the requests before, and close the connection."""
        self._stop_clock()
        self.final_error = error
        if self.transport.is_closing():
            return
        if self._is_idle:
            self._write_error(error, self._path, (), closes=True)
        else:
            self.flow.pause_reading()

    def _write_error(self, error: FinalError, path: str, headers: tuple[tuple[str, str], ...], *, closes: bool) -> None:
        status, rest = _response_to(error, path, headers, closes)
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        self.transport.write(b"".join((status, *lines, rest.replace(_ANY_ID, new_id().encode()))))
        if closes:
            self.transport.close()

    def _start_clock(self) -> None:
        self._clock = self.loop.call_later(self._head_seconds, self._close)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _close(self) -> None:
        if self.transport is not None:
            self.transport.close()


@lru_cache(maxsize=256)
def _response_to(
    error: FinalError, path: str, headers: tuple[tuple[str, str], ...], closes: bool
) -> tuple[bytes, bytes]:
    """Return the first line of a response, and everything behind the headers that each response has, with `_ANY_ID` as the id.

    A process that refuses thousands of requests a second writes the same response again and again.
    """
    own = {**dict(headers), **({"Connection": "close"} if closes else {}), "X-Request-ID": _ANY_ID.decode()}
    response = problem(error.status, error.code, error.detail, _ANY_ID.decode(), headers=own, path=path)
    head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
    # the protocol of the path may have another status for the error
    return STATUS_LINE[response.status_code], b"%b\r\n%b" % (head, bytes(response.body))


def _too_large() -> FinalError:
    return FinalError(431, "too_large", f"Expected a request head of at most {MAX_HEAD_BYTES} bytes, got more.")
