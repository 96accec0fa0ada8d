"""The ingest child, from its parent's side: send a file, get a table. Never imports polars itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app import errors
from app.errors import Fault, FitserveError, Invalid
from app.records.dataset import ParsedTable
from app.system.child_process import SAID_LINES, command, keep_said
from app.system.machine import machine_bytes

logger = logging.getLogger(__name__)

_FACTS: dict[str, type[FitserveError]] = {
    each.code: each for each in (errors.Malformed, errors.Invalid, errors.TooLarge, errors.StorageFull)
}
#: what polars frees goes back to the kernel at once: kept for later, it would count as memory in use
_AT_ONCE = {"_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"}


class ParserProcess:
    """A warm child that parses one file at a time.

    Args:
        max_rows, max_columns: bounds of a table.
        seconds: how long one file may take.
        memory_bytes: what the child may use; 0 is half of `machine_bytes`.
    """

    def __init__(self, max_rows: int, max_columns: int, seconds: float, memory_bytes: int = 0) -> None:
        self._memory_bytes = memory_bytes or machine_bytes() // 2
        self._bounds = {"rows": max_rows, "columns": max_columns}
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None
        #: the last lines of its standard error
        self._said: deque[str] = deque()

    async def start(self) -> None:
        """Spawn the child, from the thread whose end is to kill it."""
        self._child = await asyncio.create_subprocess_exec(
            *command("app.ingest.parser_child", str(self._memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=64 * 1024**2,
            env={**os.environ, **_AT_ONCE},
        )
        assert self._child.stderr is not None
        self._said = deque[str](maxlen=SAID_LINES)
        self._listener = asyncio.create_task(keep_said(self._child.stderr, self._said))

    async def parse(self, raw: Path, form: str, out: Path, kinds: Mapping[str, str] | None = None) -> ParsedTable:
        """Parse a file into a table file.

        Args:
            form: one of `formats.parse`.
            kinds: kinds that somebody corrected, by column.

        Raises:
            Malformed, Invalid, TooLarge: what is wrong with the file, and where.
        """
        request = {"op": "parse", "raw": str(raw), "form": form, "out": str(out), "kinds": dict(kinds or {})}
        reply = await self._ask({**request, "bounds": self._bounds})
        return ParsedTable(out, reply["rows"], reply["columns"], reply["warnings"], reply["default_target"])

    async def transcode(self, raw: Path, form: str, out: Path, max_cells: int) -> None:
        """Turn a Parquet or Arrow file into a frame, as `rows.decode` reads it, of so many cells at most.

        Raises:
            Malformed, Invalid, TooLarge: what is wrong with the file, and where.
        """
        request = {"op": "transcode", "raw": str(raw), "form": form, "out": str(out)}
        # in one piece: a cell is 8 bytes in the frame, and about as much again on its way there
        await self._ask({**request, "bounds": {**self._bounds, "cells": min(self._memory_bytes // 16, max_cells)}})

    async def to_arrow(self, columns: Path, out: Path) -> None:
        """Turn a JSON object of columns into an Arrow stream; columns named `probability…` become float32."""
        await self._ask({"op": "to_arrow", "columns": str(columns), "out": str(out)})

    async def split(self, body: Path, data: Path) -> dict[str, Any]:
        """Take a JSON body's `data` member out into a file of its own; gives the rest, `has_data` included.

        Raises:
            Malformed, Invalid: the body is not a JSON object.
        """
        return await self._ask({"op": "split", "body": str(body), "data": str(data)})

    async def close(self) -> None:
        """End the child."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.kill()
            await self._child.wait()

    async def _send(self, request: dict[str, Any]) -> bool:
        """Send the child a request; tells whether there is one that was alive to take it."""
        if self._child is None or self._child.returncode is not None:
            return False
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        if self._child.stdin.is_closing():
            return False
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            await self._child.stdin.drain()
            return await self._child.stdout.readline() == b"\n"
        except ConnectionError:
            return False

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            try:
                async with asyncio.timeout(self._seconds):
                    if not await self._send(request):
                        await self.close()
                        await self.start()
                        await self._send(request)
                    assert self._child is not None
                    assert self._child.stdout is not None
                    line = await self._child.stdout.readline()
            except (TimeoutError, asyncio.CancelledError, ConnectionError, ValueError) as error:
                # its answer would be taken for the next file's
                await asyncio.shield(self.close())
                if isinstance(error, TimeoutError):
                    raise Invalid(f"Expected a file that parses within {self._seconds:g} seconds.") from error
                if isinstance(error, ValueError):
                    # asyncio's word for a line beyond the limit
                    raise Invalid(
                        "The file could not be described; it has too many columns or too long names."
                    ) from error
                if isinstance(error, ConnectionError):
                    raise Invalid("The file could not be parsed; the parser ended.") from error
                raise
            if not line.endswith(b"\n"):
                await self.close()
                logger.warning("parser died", extra={"said": list(self._said)})
                raise Invalid("The file could not be parsed; the parser ran out of memory or failed.")
            reply: dict[str, Any] = json.loads(line)
            if reply.pop("is_last"):
                await self.close()
        if "error" in reply:
            fault = reply["error"]
            faults = [Fault(tuple(f["loc"]), f["message"], f["code"]) for f in fault["faults"]]
            raise _FACTS[fault["code"]](fault["message"], faults)
        return reply
