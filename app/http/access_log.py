"""The access log: a JSON line for each request."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from functools import lru_cache

import orjson

#: a logger whose messages are whole lines
access = logging.getLogger("fitserve.access")
#: longest wait of a line for other lines
LOG_SECONDS = 0.02


class AccessLog:
    """Writes a JSON line for each request: the lines of `LOG_SECONDS` together, which costs as much as one line alone."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, request_id: str, method: str, path: str, status: int, seconds: float) -> None:
        """Add the line of a request that was answered."""
        if not self._lines:
            if not access.isEnabledFor(logging.INFO):
                return
            asyncio.get_running_loop().call_later(LOG_SECONDS, self.write)
        self._lines.append(_LINE % (request_id, method, _json(path), status, seconds * 1000))

    def write(self) -> None:
        """Write the lines that were added."""
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        end = f'"timestamp":"{datetime.now(UTC).isoformat(timespec="microseconds")[:-6]}Z","message":"request"}}'
        access.info("%s", "\n".join([line + end for line in lines]))


#: a line up to the time of writing; methods and ids have nothing to escape
_LINE = f'{{"request_id":"%s","level":"info","logger":"{access.name}","method":"%s","path":%s,"status":%d,"elapsed_ms":%.2f,'


@lru_cache(maxsize=256)
def _json(path: str) -> str:
    return orjson.dumps(path).decode()
