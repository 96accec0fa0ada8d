"""`python -m bench.load URL FILE CONNECTIONS SECONDS [TYPE [KEY]]`: post a file, JSON by default, again and again.

It prints the answers a second, how many they were, and the 99th percentile of their times in milliseconds.
Every connection sends its next request when the answer to the last one is there. An answer other than 200 ends it.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Caller(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._got = b""
        self.seconds: list[float] = []
        self.failure: bytes = b""
        #: whether no more requests are to be sent
        self.is_over = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the first request."""
        # uvloop's transports say by what they do that they are ones
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Count an answer when it is whole, and send the next request."""
        self._got += data
        head, end, body = self._got.partition(b"\r\n\r\n")
        if not end:
            return
        length = _LENGTH.search(head)
        if length is None or not head.startswith(b"HTTP/1.1 200"):
            self.failure = self._got[:300]
            self._transport.close()
        elif len(body) >= int(length[1]):
            self._got = b""
            self.seconds.append(time.perf_counter() - self._sent)
            if not self.is_over:
                self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note an end that was not asked for."""
        self.failure = self.failure or b"the connection was closed"


async def load(
    url: str, body: bytes, connections: int, seconds: float, media_type: str = "application/json", key: str = ""
) -> tuple[float, int, float]:
    """Give the answers a second, how many there were, and the 99th percentile of their times in milliseconds.

    Raises:
        SystemExit: an answer was not 200.
    """
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: {media_type}\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    loop, began = asyncio.get_running_loop(), time.perf_counter()
    callers = [
        (await loop.create_connection(lambda: Caller(request), parts.hostname or "", parts.port or 80))[1]
        for _ in range(connections)
    ]
    await asyncio.sleep(seconds)
    elapsed = time.perf_counter() - began
    for caller in callers:
        # the event loop runs on for a moment while it ends
        caller.is_over = True
    times = sorted(each for caller in callers for each in caller.seconds)
    failures = [caller.failure for caller in callers if caller.failure]
    if failures or not times:
        raise SystemExit(f"load: {failures[0].decode(errors='replace') if failures else 'no answer came'}")
    return len(times) / elapsed, len(times), times[len(times) * 99 // 100] * 1000


if __name__ == "__main__":
    url, file, connections, seconds, *rest = sys.argv[1:]
    print(*uvloop.run(load(url, Path(file).read_bytes(), int(connections), float(seconds), *rest)))
