"""uvicorn's protocol with less to do for a request: plain ones without ASGI, and one write for an answer.

A cycle of uvicorn's, its task, its scope and its messages are two thirds of what a small answer costs. Knows nothing of
what is asked.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from app.errors import Busy
from app.fast_path.handler import Answer, Asked, FastPath

#: what is written at once, without waiting for more
BUFFER_BYTES = 64 * 1024
#: how long a plain request's body may take to come; after that the route waits for it, with its own limit
HELD_SECONDS = 0.5


class BufferedTransport:
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
        if self._size > BUFFER_BYTES:
            self._flush()

    def write_whole(self, data: bytes) -> None:
        """Write what nothing follows soon."""
        self._flush()
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection when all is written."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Tell whether the connection is closed, or is to be; asked for each answer, and what is handed on takes longer."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._parts:
            parts, self._parts, self._size = self._parts, [], 0
            # whoever went away meanwhile hears nothing
            if not self._transport.is_closing():
                self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class UnusedCycle:
    """What stands in the place of one of uvicorn's cycles, with all that uvicorn looks at."""

    #: that of a cycle wakes whoever waits for its body
    message_event = asyncio.Event()

    def __init__(self, *, keep_alive: bool = True) -> None:
        self.keep_alive = keep_alive
        self.response_complete = self.disconnected = False


class _Exchange(UnusedCycle):
    """A plain request and its answer."""

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.asked = asked
        self.parts: list[bytes] = []
        self.size = 0
        self.is_whole = False

    def take(self, part: bytes) -> None:
        """Take a part of the body."""
        self.parts.append(part)
        self.size += len(part)


class FastHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, where the short way is asked first, and no request changes the protocol of its connection."""

    hot: FastPath
    transport: Any
    cycle: Any
    _patience: asyncio.TimerHandle | None = None
    #: the parser has read whole requests and nothing else
    _is_between = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to write less often."""
        super().connection_made(cast("asyncio.Transport", BufferedTransport(transport, self.loop)))

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the route end what was begun."""
        super().connection_lost(exc)
        self._release_held()

    def data_received(self, data: bytes) -> None:
        """Know a request's head again, or parse it; wait a while for the rest of a plain one."""
        before, was_between = self.cycle, self._is_between
        self._unset_keepalive_if_required()
        if was_between and before is not None and before.response_complete and not self.flow.write_paused:
            recalled = self.hot.recall(data)
            if recalled is not None:
                self.cycle = _Exchange(recalled[0])
                self.cycle.take(recalled[1])
                self._ask(self.cycle)
                return
        self._parse(data)
        held = self.cycle
        if type(held) is not _Exchange or held is before:
            return
        if not held.is_whole:
            self._patience = self.loop.call_later(HELD_SECONDS, self._release_held)
        elif was_between and self._is_between:
            self.hot.learn(held.asked, data[: len(data) - held.size], held.size)

    def _parse(self, data: bytes) -> None:
        """Parse what came, and ignore each `Upgrade` in it, as RFC 9110 (7.8) allows.

        httptools ends a request at a head with `Upgrade`, and would read the request's body as the next request.
        """
        rest: bytes | memoryview = data
        try:
            while True:
                try:
                    self.parser.feed_data(rest)
                except HttpParserUpgrade as upgrade:
                    if self.parser.get_method() == b"CONNECT":
                        self.send_400_response("CONNECT is for proxies.")
                        return
                    rest = memoryview(rest)[upgrade.args[0] :]
                    self._parse_head_without_upgrade()
                else:
                    return
        except HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def _parse_head_without_upgrade(self) -> None:
        request_line = self.parser.get_method(), self.url, self.parser.get_http_version().encode()
        lines = [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        # the old parser is at the end of a request, and reads nothing behind one that was to be the last
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"%b %b HTTP/%b\r\n%b\r\n" % (*request_line, b"".join(lines)))

    def on_message_begin(self) -> None:
        """Begin with the next request."""
        super().on_message_begin()
        self._is_between = False

    def on_headers_complete(self) -> None:
        """Begin a request, unless its head is parsed again without its `Upgrade`."""
        if not self.parser.should_upgrade():
            self.on_head()

    def on_head(self) -> None:
        """Hold a plain request until it is whole."""
        asked = self._plain()
        if asked is None:
            super().on_headers_complete()
        else:
            self.cycle = _Exchange(asked)

    def _plain(self) -> Asked | None:
        parser = self.parser
        # what came before on this connection is answered, or it is some way of HTTP that is uvicorn's to know
        if (
            not self._is_idle
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or self.expect_100_continue
            or self.flow.write_paused
        ):
            return None
        return self.hot.plain(self.url, self.headers)

    @property
    def _is_idle(self) -> bool:
        """Whether all requests before have their answers."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _held(self) -> _Exchange | None:
        """The exchange whose request still comes."""
        cycle = self.cycle
        return cycle if type(cycle) is _Exchange and not cycle.is_whole else None

    def on_body(self, body: bytes) -> None:
        """Keep a part of a plain request's body, as long as it is not too large."""
        held = self._held
        if held is None:
            super().on_body(body)
            return
        held.take(body)
        if held.size > self.hot.most_bytes:
            self._release(held)

    def on_message_complete(self) -> None:
        """Have a plain request answered."""
        if self.parser.should_upgrade():
            # a head that is parsed again ends here, and no request
            return
        self._is_between = True
        held = self._held
        if held is None:
            super().on_message_complete()
            return
        self._lose_patience()
        self._ask(held)

    def _ask(self, exchange: _Exchange) -> None:
        exchange.is_whole = True
        parts = exchange.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self.hot.answer(exchange.asked, body, partial(self._answer, exchange))

    def send_away(self, busy: Busy, path: str, *, ends: bool) -> None:
        """Say when to come back.

        Args:
            ends: and close the connection.
        """
        raise NotImplementedError

    def _answer(self, exchange: _Exchange, answer: Answer | Busy | None) -> None:
        if answer is None:
            self._release(exchange)
            return
        exchange.response_complete = True
        if self.transport.is_closing():
            return
        if isinstance(answer, Busy):
            self.send_away(answer, exchange.asked.path, ends=not exchange.keep_alive)
            return
        lines = [b"%b: %b\r\n" % header for header in self.server_state.default_headers]
        if not exchange.keep_alive:
            lines.append(b"connection: close\r\n")
        self.transport.write_whole(b"".join((STATUS_LINE[200], *lines, answer.head, b"\r\n", answer.body)))
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _release_held(self) -> None:
        self._lose_patience()
        if self._held is not None:
            self._release(self._held)

    def _lose_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _release(self, exchange: _Exchange) -> None:
        """Hand a request over to ASGI, as if it had come there first."""
        self._lose_patience()
        path = exchange.asked.path
        scope: Any = {
            "type": "http",
            "asgi": {"version": self.asgi_version, "spec_version": "2.3"},
            "http_version": "1.1",
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": self.root_path,
            "headers": exchange.asked.headers,
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
            keep_alive=exchange.keep_alive,
            on_response=self.on_response_complete,
        )
        cycle.body += b"".join(exchange.parts)
        cycle.more_body = not exchange.is_whole
        cycle.disconnected = exchange.disconnected or self.transport.is_closing()
        if exchange.parts or exchange.is_whole or cycle.disconnected:
            cycle.message_event.set()
        # another request may have come behind it
        if self.cycle is exchange:
            self.cycle = cycle
        self._start_asgi_task(cycle, self.config.loaded_app)
