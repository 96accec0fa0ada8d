"""Connections: how many there may be, and how a request's head may come; what is no HTTP is answered here."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from typing import NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.errors import Busy
from app.fast_path.http_protocol import FastHttpProtocol, UnusedCycle
from app.http.gate import new_id
from app.http.problems import RETRY_AFTER_SECONDS, problem
from app.serving.admission import Lane

MAX_HEAD_BYTES = 16 * 1024
MAX_CONNECTIONS = 1000
#: the ends of the paths that predict, whatever the protocol
_PREDICTS = re.compile(rb"[/:](?:predict|classify|regress|infer)$")

#: as long as an id is
_ANY_ID = b"an-id-of-nobody."


class _LastWords(NamedTuple):
    status: int
    code: str
    detail: str


class HttpProtocol(FastHttpProtocol):
    """uvicorn's protocol with caps on connections and on a request's head, and a time by which the head must be there."""

    head_seconds: float = 10.0
    predictions: Lane
    _clock: asyncio.TimerHandle | None = None
    _in_head = True
    _is_one_too_many = False
    #: of the names and values of this request's head, and of its trailers
    _head_bytes = 0
    #: of the pieces since the last one that began a request, or ended it, or had a part of its body
    _idle_bytes = 0
    _is_piece_idle = True
    #: what is said when those before have their answers
    _last_words: _LastWords | None = None
    #: when a body that nobody reads must have come
    _unread_until: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._is_one_too_many = len(self.connections) > MAX_CONNECTIONS
        self._clock = self.loop.call_later(self.head_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_clock()
        super().connection_lost(exc)
        # uvicorn's own goes on where the connection was reset
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Count what brings a request no further, and see that there is a time by which something must come."""
        if self._last_words is not None:
            return
        before, self._is_piece_idle = self.cycle, True
        super().data_received(data)
        # a known request is not parsed
        is_idle = self._is_piece_idle and self.cycle is before
        self._idle_bytes = self._idle_bytes + len(data) if is_idle else 0
        if self._idle_bytes > MAX_HEAD_BYTES:
            self._end_with(_too_large())
        elif self._in_head and not self._is_between:
            # most heads are whole in their first piece, and need no clock
            if self._clock is None and self._last_words is None:
                self._clock = self.loop.call_later(self.head_seconds, self._too_slow)
        elif self.cycle is not None and self.cycle.response_complete and self.timeout_keep_alive_task is None:
            self._wait_again()

    def _wait_again(self) -> None:
        """Wait for the next request, or for the rest of a body that nobody reads, which has one time for all of it."""
        now = self.loop.time()
        until = now + self.timeout_keep_alive
        if self._is_between:
            self._unread_until = None
        else:
            self._unread_until = until = until if self._unread_until is None else self._unread_until
        self.timeout_keep_alive_task = self.loop.call_at(max(until, now), self.timeout_keep_alive_handler)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it; uvicorn's own answer is plain text."""
        is_too_large = self._head_bytes > MAX_HEAD_BYTES
        self._end_with(_too_large() if is_too_large else _LastWords(400, "malformed", f"Expected HTTP/1.1: {msg}"))

    def on_message_begin(self) -> None:
        """Begin to count the next request's head."""
        super().on_message_begin()
        self._stop_clock()
        self._in_head, self._is_piece_idle = True, False
        self._head_bytes, self._unread_until = 0, None

    def on_url(self, url: bytes) -> None:
        """Count it."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count it, in the head or behind the body."""
        super().on_header(name, value)
        self._count(len(name) + len(value))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            # nothing behind it is read: the parser ends here
            raise ValueError("the head is too large")

    def on_head(self) -> None:
        """Stop the clock; a busy process's time is nearly all to go to those it serves, and such a request meets no route."""
        self._stop_clock()
        self._in_head = False
        busy = self._busy() if self._is_idle and not self.flow.write_paused else None
        if busy is None:
            super().on_head()
            return
        # a body that was not asked for may not come
        keeps = self.parser.should_keep_alive() and not self.expect_100_continue
        self.cycle = UnusedCycle(keep_alive=keeps)
        self.cycle.response_complete = True
        self.send_away(busy, self.url.partition(b"?")[0].decode("latin-1"), ends=not keeps)

    def on_body(self, body: bytes) -> None:
        """See that the request comes on."""
        self._is_piece_idle = False
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See that the request came to its end."""
        self._is_piece_idle = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Say the last words when it is their turn."""
        super().on_response_complete()
        if self._last_words is not None and self._is_idle:
            self._end_with(self._last_words)

    def _busy(self) -> Busy | None:
        """Say why a request meets no route. Such an answer is counted, and has no line in the log."""
        if self._is_one_too_many:
            detail = f"Expected at most {MAX_CONNECTIONS} connections, got one more; try again later."
            # uvicorn's own answer is plain text
            return Busy(detail, RETRY_AFTER_SECONDS)
        is_full = self.predictions.is_full and self.parser.get_method() == b"POST"
        return self.predictions.refusal() if is_full and _PREDICTS.search(self.url.partition(b"?")[0]) else None

    def send_away(self, busy: Busy, path: str, *, ends: bool) -> None:
        """Say when to come back."""
        headers = {"Retry-After": str(busy.retry_seconds)}
        self._say(_LastWords(503, busy.code, busy.message), path, headers, ends=ends or self._is_one_too_many)
        self.on_response_complete()

    def _end_with(self, words: _LastWords) -> None:
        """Say what is wrong after the answers to what came before, and close."""
        self._stop_clock()
        self._last_words = words
        if self.transport.is_closing():
            return
        if self._is_idle:
            # empty where no address was read yet
            self._say(words, self.url.partition(b"?")[0].decode("latin-1"), {}, ends=True)
        else:
            self.flow.pause_reading()

    def _say(self, words: _LastWords, path: str, headers: dict[str, str], *, ends: bool) -> None:
        """Answer without a route.

        Args:
            ends: and close the connection.
        """
        status, rest = _written(words, path, tuple(headers.items()), ends)
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        self.transport.write(b"".join((status, *lines, rest.replace(_ANY_ID, new_id().encode()))))
        if ends:
            self.transport.close()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _too_slow(self) -> None:
        if self.transport is not None:
            self.transport.close()


@lru_cache(maxsize=256)
def _written(words: _LastWords, path: str, headers: tuple[tuple[str, str], ...], ends: bool) -> tuple[bytes, bytes]:
    """Give the first line of an answer, and all behind the headers that every answer has; any id stands for the request's.

    A process that refuses thousands a second says the same again and again.
    """
    own = {**dict(headers), **({"Connection": "close"} if ends else {}), "X-Request-ID": _ANY_ID.decode()}
    answer = problem(words.status, words.code, words.detail, _ANY_ID.decode(), headers=own, path=path)
    head = b"".join(b"%b: %b\r\n" % header for header in answer.raw_headers)
    # other protocols know fewer statuses
    return STATUS_LINE[answer.status_code], b"%b\r\n%b" % (head, bytes(answer.body))


def _too_large() -> _LastWords:
    return _LastWords(431, "too_large", f"Expected a request head of at most {MAX_HEAD_BYTES} bytes, got more.")
