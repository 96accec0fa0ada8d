"""What every request passes, whatever route it meets: its id, the Host check, time-outs, headers, the log line."""

from __future__ import annotations

import asyncio
import random
import re
import time
import types
from collections.abc import Coroutine, Generator, Iterable, Mapping
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from app.http.access_log import AccessLog
from app.http.problems import problem

_SANE_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: of every answer, beside its id
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class RequestGate:
    """ASGI middleware around the whole application.

    Args:
        hosts: the Host names that are answered, or None for all. On loopback, where no key is needed, this
            check and that of Origin keep web pages out (DNS rebinding and cross-site requests).
        body_seconds: the longest pause inside a request's body.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None, body_seconds: float) -> None:
        self.app = app
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._body_seconds = body_seconds
        #: notes a request that another way answers, too
        self.log = AccessLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, or refuse it."""
        if scope["type"] != "http":
            try:
                await self.app(scope, receive, send)
            finally:
                # the end of the process's life
                self.log.write()
            return
        headers = dict(scope["headers"])
        request_id = identify(headers)
        scope["request_id"] = request_id
        # in every line that is logged on the request's behalf
        bind_contextvars(request_id=request_id)
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self.refusal(scope["method"], headers)
            if refusal is not None:
                await problem(403, "forbidden", refusal, request_id, path=scope["path"])(scope, receive, answer)
            else:
                await self.app(scope, _Timed(receive, self._body_seconds).receive, answer)
        finally:
            self.log.add(request_id, scope["method"], scope["path"], status, time.perf_counter() - began)

    def refusal(self, method: str, headers: Mapping[bytes, bytes]) -> str | None:
        """Say why a request is not answered, by its Host and its Origin; None where it is."""
        if self._hosts is None:
            return None
        host = headers.get(b"host", b"").decode("latin-1")
        if _name(host) not in self._hosts:
            return "This Host is not answered here; FITSERVE_ALLOWED_HOSTS adds names."
        origin = headers.get(b"origin", b"").decode("latin-1")
        if method not in _SAFE_METHODS and origin and origin.lower().partition("://")[2] != host.lower():
            return "Requests from pages of another origin are not answered."
        return None


def identify(headers: Mapping[bytes, bytes]) -> str:
    """Give a request's id: the caller's where it is sane, else a new one."""
    given = headers.get(b"x-request-id")
    return given.decode() if given and _SANE_ID.fullmatch(given) else new_id()


def new_id() -> str:
    """Make an id for a request that came without one."""
    return f"{random.getrandbits(64):016x}"


class _Timed:
    """A request's body, each pause in which is limited."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive = receive
        self._seconds = seconds
        self._is_whole = False

    async def receive(self) -> Message:
        """Receive the next part, or raise `TimeoutError`; nothing is timed after the last one."""
        if self._is_whole:
            return await self._receive()
        # every server's is a coroutine
        coming = cast("Coroutine[Any, Any, Message]", self._receive())
        try:
            # most bodies are there already: to see that takes 0.7 µs, and a time-out 5 of a prediction's 90
            pause = coming.send(None)
        except StopIteration as end:
            message: Message = end.value
        else:
            async with asyncio.timeout(self._seconds):
                message = await _resumed(coming, pause)
        self._is_whole = not message.get("more_body", False)
        return message


@types.coroutine
def _resumed(coming: Coroutine[Any, Any, Message], pause: Any) -> Generator[Any, Any, Message]:
    """Go on with a coroutine that waits for `pause`, as `yield from` does with one that has not begun."""
    while True:
        try:
            try:
                given = yield pause
            except BaseException as error:  # noqa: BLE001 - a cancellation too is the coroutine's to handle
                pause = coming.throw(error)
            else:
                pause = coming.send(given)
        except StopIteration as end:
            message: Message = end.value
            return message


def _name(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
