"""Connections: how many there may be, and how a request's head may come; what is no HTTP is answered here."""

from __future__ import annotations

import asyncio
import re
import secrets
from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

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
        if self._is_too_large and self.transport is not None and not self.transport.is_closing():
            self.send_400_response("too large")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too much of it; uvicorn's own answer is plain text."""
        if self._is_too_large:
            self._refuse(431, "too_large", f"Expected a request head of at most {MAX_HEAD_BYTES} bytes, got more.")
        else:
            self._refuse(400, "malformed", f"Expected HTTP/1.1: {msg}")

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
        if not self._is_too_large:
            self.app = self._refusal() or self.config.loaded_app
            super().on_headers_complete()

    def _refusal(self) -> ASGIApp | None:
        """Give what answers in the application's place: nearly all of a busy process's time is to go to those it serves."""
        if len(self.connections) > MAX_CONNECTIONS:
            detail = f"Expected at most {MAX_CONNECTIONS} connections, got one more; try again later."
            # uvicorn's own answer is plain text
            return _Refusal(Busy(detail, RETRY_AFTER_SECONDS), {"Connection": "close"})
        if self.predictions.is_full and _PREDICTS.search(self.url):
            return _Refusal(self.predictions.refusal(), {})
        return None

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _refuse(self, status: int, code: str, detail: str) -> None:
        request_id = secrets.token_hex(8)
        headers = {"Connection": "close", "X-Request-ID": request_id}
        # empty where no address was read yet
        path = self.url.partition(b"?")[0].decode("latin-1")
        answer = problem(status, code, detail, request_id, headers=headers, path=path)
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        head += [name + b": " + value for name, value in answer.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(answer.body)]))
        self.transport.close()

    def _too_slow(self) -> None:
        if self.transport is not None:
            self.transport.close()


class _Refusal:
    """An ASGI application that says when to come back. It is counted, and has no line in the log."""

    def __init__(self, busy: Busy, headers: dict[str, str]) -> None:
        self._busy, self._headers = busy, headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = secrets.token_hex(8)
        headers = {"X-Request-ID": request_id, "Retry-After": str(self._busy.retry_seconds), **self._headers}
        answer = problem(503, self._busy.code, self._busy.message, request_id, headers=headers, path=scope["path"])
        await answer(scope, receive, send)
