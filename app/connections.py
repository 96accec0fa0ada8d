"""Connections: how many there may be, and how a request's head may come; what is no HTTP is answered here."""

from __future__ import annotations

import asyncio
import re
import secrets

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.admission import Lane
from app.api.problems import RETRY_AFTER_SECONDS, problem
from app.errors import Busy
from app.exchange import ExchangeProtocol

MAX_HEAD_BYTES = 16 * 1024
MAX_CONNECTIONS = 1000
#: the ends of the paths that predict, whatever the protocol
_PREDICTS = re.compile(rb"[/:](?:predict|classify|regress|infer)(?:\?|$)")


class Protocol(ExchangeProtocol):
    """uvicorn's protocol with caps on connections and on a request's head, and a time by which the head must be there."""

    head_seconds: float = 10.0
    predictions: Lane
    _clock: asyncio.TimerHandle | None = None
    _in_head = True
    #: of the head, in the pieces before the one that is parsed now, and of that one
    _head_bytes = _piece_bytes = 0
    _is_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._clock = self.loop.call_later(self.head_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head, and refuse a large one."""
        self._piece_bytes = len(data)
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            self._is_too_large = self._is_too_large or self._head_bytes > MAX_HEAD_BYTES
            # most heads are whole in their first piece, and need no clock
            if self._clock is None:
                self._clock = self.loop.call_later(self.head_seconds, self._too_slow)
        elif type(self.cycle) is _Refused and not self._is_between and self.timeout_keep_alive_task is None:
            # whoever sends what nobody reads is not waited for
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        if self._is_too_large and self.transport is not None and not self.transport.is_closing():
            self.send_400_response("too large")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it; uvicorn's own answer is plain text."""
        if self._is_too_large:
            detail = f"Expected a request head of at most {MAX_HEAD_BYTES} bytes, got more."
            self._say(431, "too_large", detail, ends=True)
        else:
            self._say(400, "malformed", f"Expected HTTP/1.1: {msg}", ends=True)

    def on_message_begin(self) -> None:
        """Begin to count the next request's head."""
        super().on_message_begin()
        self._stop_clock()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        """Stop the clock; a head that is too large meets no route."""
        self._stop_clock()
        self._in_head = False
        # a head is counted as it arrives, and as it was parsed where a piece of it came with other bytes
        if self._head_bytes + self._piece_bytes > MAX_HEAD_BYTES:
            parsed = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            self._is_too_large = self._is_too_large or max(self._head_bytes, parsed) > MAX_HEAD_BYTES
        if self._is_too_large:
            return
        busy = self._busy() if self.cycle is None or self.cycle.response_complete else None
        if busy is None:
            super().on_headers_complete()
        else:
            self.cycle = _Refused()
            self.send_away(busy)

    def send_away(self, busy: Busy) -> None:
        """Say when to come back."""
        self._say(503, busy.code, busy.message, {"Retry-After": str(busy.retry_seconds)}, ends=self._is_one_too_many)
        self.on_response_complete()

    @property
    def _is_one_too_many(self) -> bool:
        return len(self.connections) > MAX_CONNECTIONS

    def _busy(self) -> Busy | None:
        """Say why a request meets no route: nearly all of a busy process's time is to go to those it serves.

        Such an answer is counted, and has no line in the log.
        """
        if self._is_one_too_many:
            detail = f"Expected at most {MAX_CONNECTIONS} connections, got one more; try again later."
            # uvicorn's own answer is plain text
            return Busy(detail, RETRY_AFTER_SECONDS)
        if self.predictions.is_full and _PREDICTS.search(self.url):
            return self.predictions.refusal()
        return None

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _say(self, status: int, code: str, detail: str, headers: dict[str, str] | None = None, *, ends: bool) -> None:
        """Answer without a route.

        Args:
            ends: and close the connection.
        """
        request_id = secrets.token_hex(8)
        headers = {**(headers or {}), **({"Connection": "close"} if ends else {}), "X-Request-ID": request_id}
        # empty where no address was read yet
        path = self.url.partition(b"?")[0].decode("latin-1")
        answer = problem(status, code, detail, request_id, headers=headers, path=path)
        # other protocols know fewer statuses
        head = [STATUS_LINE[answer.status_code]]
        head += [b"%b: %b\r\n" % header for header in (*self.server_state.default_headers, *answer.raw_headers)]
        self.transport.write(b"".join([*head, b"\r\n", bytes(answer.body)]))
        if ends:
            self.transport.close()

    def _too_slow(self) -> None:
        if self.transport is not None:
            self.transport.close()


class _Refused:
    """In a cycle's place, a request that has its answer, and whose body is passed over."""

    message_event = asyncio.Event()
    response_complete = True
    keep_alive = True
