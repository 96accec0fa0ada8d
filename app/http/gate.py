"""What every request passes, whatever route it meets: its id, the checks of Host and Origin, time-outs, headers, the log."""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from app.http.access_log import AccessLog
from app.http.problems import problem

#: ids that a caller may choose
_CALLER_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
#: headers of every response, beside its id
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class RequestGate:
    """ASGI middleware around the whole application.

    Args:
        hosts: the Host names that are answered, or None for all. On loopback, where no key is needed, this check and the
            check of Origin keep web pages out (DNS rebinding and cross-site requests).
        body_seconds: the longest pause inside a request's body.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] | None, body_seconds: float) -> None:
        self.app = app
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts)
        self._body_seconds = body_seconds
        #: the fast path writes its requests here, too
        self.log = AccessLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            try:
                await self.app(scope, receive, send)
            finally:
                # the lifespan has ended, and so has the process's service
                self.log.write()
            return
        headers = dict(scope["headers"])
        request_id = identify(headers)
        scope["request_id"] = request_id
        # every line that is logged on behalf of the request has the id
        bind_contextvars(request_id=request_id)
        began, status = time.perf_counter(), 0

        async def respond(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *HEADERS, (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            refusal = self.refusal(scope["method"], headers)
            if refusal is not None:
                await problem(403, "forbidden", refusal, request_id, path=scope["path"])(scope, receive, respond)
            else:
                await self.app(scope, limit_pauses(receive, self._body_seconds), respond)
        finally:
            self.log.add(request_id, scope["method"], scope["path"], status, time.perf_counter() - began)

    def refusal(self, method: str, headers: Mapping[bytes, bytes]) -> str | None:
        """Return why a request is refused for its Host or its Origin; None where it is answered."""
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
    """Return a request's id: the caller's own where it has the form of an id, else a new one."""
    own = headers.get(b"x-request-id")
    return own.decode() if own and _CALLER_ID.fullmatch(own) else new_id()


def new_id() -> str:
    """Return an id for a request that came without one."""
    return f"{random.getrandbits(64):016x}"


def limit_pauses(receive: Receive, seconds: float) -> Receive:
    """Return a `receive` that raises `TimeoutError` where the next part of a body takes longer; behind the body it waits."""
    is_whole = False

    async def receive_part() -> Message:
        nonlocal is_whole
        if is_whole:
            return await receive()
        async with asyncio.timeout(seconds):
            message = await receive()
        is_whole = not message.get("more_body", False)
        return message

    return receive_part


def _name(host: str) -> str:
    """Return the name in a Host header, without the port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
