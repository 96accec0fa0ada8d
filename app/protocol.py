"""HTTP on a socket: uvicorn's protocol with a limit on a request's head, and fewer writes. Knows no application."""

from __future__ import annotations

import asyncio
import secrets
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.problems import problem

MAX_HEAD_BYTES = 16 * 1024
#: what is written at once, without waiting for more
CORKED_BYTES = 64 * 1024


class _Corked:
    """A transport that writes once what was given to it within one turn of the event loop: an answer's head and body.

    A write to a socket is half of what a small answer costs.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Write soon."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)
        self._size += len(data)
        if self._size > CORKED_BYTES:
            self._flush()

    def close(self) -> None:
        """Close the connection when all is written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with a cap on the request's head, and a time by which it must be there."""

    head_seconds: float = 10.0
    _clock: asyncio.TimerHandle | None = None
    _in_head = True
    #: of the head, in the pieces before the one that is parsed now, and of that one
    _head_bytes = _piece_bytes = 0
    _is_too_large = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(cast("asyncio.Transport", _Corked(transport, self.loop)))
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
            super().on_headers_complete()

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
