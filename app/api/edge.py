"""What every request passes, whatever route it meets: its id, the Host check, time-outs, headers, the log line."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars

from app.api.problems import problem

access = logging.getLogger("fitserve.access")

_SANE_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,64}")
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Edge:
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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _SANE_ID.fullmatch(given) else secrets.token_hex(8)
        scope["request_id"] = request_id
        # in every line that is logged on the request's behalf
        bind_contextvars(request_id=request_id)
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message["headers"], *_HEADERS, (b"x-request-id", request_id.encode())],
                }
            await send(message)

        try:
            refusal = self._refusal(scope["method"], headers)
            if refusal is not None:
                await problem(403, "forbidden", refusal, request_id, path=scope["path"])(scope, receive, answer)
            else:
                await self.app(scope, self._timed(receive), answer)
        finally:
            fields = {
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "elapsed_ms": round((time.perf_counter() - began) * 1000, 2),
            }
            access.info("request", extra=fields)

    def _refusal(self, method: str, headers: Mapping[bytes, bytes]) -> str | None:
        if self._hosts is None:
            return None
        host = headers.get(b"host", b"").decode("latin-1")
        if _name(host) not in self._hosts:
            return "This Host is not answered here; FITSERVE_ALLOWED_HOSTS adds names."
        origin = headers.get(b"origin", b"").decode("latin-1")
        if method not in _SAFE_METHODS and origin and origin.lower().partition("://")[2] != host.lower():
            return "Requests from pages of another origin are not answered."
        return None

    def _timed(self, receive: Receive) -> Receive:
        is_whole = False

        async def timed() -> Message:
            nonlocal is_whole
            if is_whole:
                return await receive()
            async with asyncio.timeout(self._body_seconds):
                message = await receive()
            is_whole = not message.get("more_body", False)
            return message

        return timed


def _name(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
