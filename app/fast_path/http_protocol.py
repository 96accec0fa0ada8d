"""uvicorn's protocol with the fast path ahead of ASGI. Knows nothing of what a request asks.

A cycle of uvicorn's, its task, its scope and its messages are two thirds of what a small response costs.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import Busy
from app.fast_path.buffered_transport import BufferedTransport
from app.fast_path.formats import Response
from app.fast_path.handler import FastPath
from app.fast_path.request import Request
from app.http.gate import HEADERS

#: longest wait for the body of a plain request; after it the route waits, with its own limit
BODY_SECONDS = 0.5
_HEAD = b"%bcontent-length: %d\r\ncontent-type: %b\r\n%bx-request-id: %b\r\n\r\n"
_HEADERS = b"".join(b"%b: %b\r\n" % header for header in HEADERS)


class FastHttpProtocol(HttpToolsProtocol):
    """Offers each request to the fast path first; to be combined with a class that has `is_between` and `refuse`.

    Args:
        fast_path: answers plain requests.
        arguments, named: those of uvicorn's protocol.
    """

    #: whether the parser has read whole requests, and nothing behind the last one
    is_between: bool
    transport: Any
    cycle: Any

    def __init__(self, *arguments: Any, fast_path: FastPath, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._fast_path = fast_path
        self._body_timer: asyncio.TimerHandle | None = None

    def refuse(self, busy: Busy, path: str, *, closes: bool) -> None:
        """Say when to come back, and close the connection where that is wanted."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Buffer what is written."""
        super().connection_made(cast("asyncio.Transport", BufferedTransport(transport, self.loop)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the route end a request that was not whole."""
        super().connection_lost(exc)
        self._hand_over_incoming()

    def data_received(self, data: bytes) -> None:
        """Recall a request whose head came before, or parse it; wait a while for the rest of a plain one."""
        before, was_between = self.cycle, self.is_between
        if was_between and before is not None and before.response_complete and not self.flow.write_paused:
            recalled = self._fast_path.recall(data, self._respond)
            if recalled is not None:
                self._unset_keepalive_if_required()
                self.cycle = recalled
                self._answer(recalled)
                return
        super().data_received(data)
        request = self.cycle
        if type(request) is not Request or request is before:
            return
        if not request.is_whole:
            self._body_timer = self.loop.call_later(BODY_SECONDS, self._hand_over_incoming)
        elif was_between and self.is_between:
            self._fast_path.remember(request, data[: len(data) - request.size])

    def on_headers_complete(self) -> None:
        """Begin a plain request, or leave the request to uvicorn."""
        request = self._fast_path.read_head(self.url, self.headers, self._respond) if self._is_plain() else None
        if request is None:
            super().on_headers_complete()
        else:
            self.cycle = request

    def _is_plain(self) -> bool:
        # only an idle HTTP/1.1 keep-alive connection takes the fast path; uvicorn handles the rest
        parser = self.parser
        return (
            (self.cycle is None or self.cycle.response_complete)
            and parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not self.expect_100_continue
            and not self.flow.write_paused
        )

    @property
    def _incoming(self) -> Request | None:
        """The plain request whose body still comes."""
        request = self.cycle
        return request if type(request) is Request and not request.is_whole else None

    def on_body(self, body: bytes) -> None:
        """Keep a part of a plain request's body; a body that grows too large goes to the route."""
        request = self._incoming
        if request is None:
            super().on_body(body)
            return
        request.take(body)
        if request.size > self._fast_path.most_bytes:
            self._hand_over(request)

    def on_message_complete(self) -> None:
        """Have a plain request answered."""
        request = self._incoming
        if request is None:
            super().on_message_complete()
            return
        self._stop_body_timer()
        self._answer(request)

    def _answer(self, request: Request) -> None:
        request.is_whole = True
        self._fast_path.answer(request)

    def _respond(self, request: Request, response: Response | Busy | None) -> None:
        # without this, the connection and the request would keep each other in memory
        del request.on_response
        if response is None:
            self._hand_over(request)
            return
        request.response_complete = True
        if self.transport.is_closing():
            return
        if isinstance(response, Busy):
            self.refuse(response, request.head.path, closes=not request.keep_alive)
            return
        self._write(request, response)
        self.on_response_complete()

    def _write(self, request: Request, response: Response) -> None:
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        if not request.keep_alive:
            lines.append(b"connection: close\r\n")
        head = _HEAD % (response.lines, len(response.body), response.media_type, _HEADERS, request.id.encode())
        self.transport.write_whole(b"".join((STATUS_LINE[200], *lines, head, response.body)))
        if not request.keep_alive:
            self.transport.close()

    def _hand_over_incoming(self) -> None:
        self._stop_body_timer()
        if self._incoming is not None:
            self._hand_over(self._incoming)

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _hand_over(self, request: Request) -> None:
        """Hand a request to ASGI, as if the fast path had not taken it."""
        self._stop_body_timer()
        path = request.head.path
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": request.head.headers,
            "state": self.app_state.copy(),
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
        }
        cycle = RequestResponseCycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=request.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += request.body
        cycle.more_body = not request.is_whole
        cycle.disconnected = request.disconnected or self.transport.is_closing()
        if request.parts or request.is_whole or cycle.disconnected:
            cycle.message_event.set()
        # another request may have come behind this one
        if self.cycle is request:
            self.cycle = cycle
        self._start_asgi_task(cycle, self.config.loaded_app)
