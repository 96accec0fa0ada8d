"""The ingest child, from its parent's side: send a file, get a table. Never imports polars itself."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from app import errors
from app.datasets import Parsed
from app.errors import Fault, FitserveError, Invalid
from app.lifeline import command

_FACTS: dict[str, type[FitserveError]] = {
    each.code: each for each in (errors.Malformed, errors.Invalid, errors.TooLarge, errors.StorageFull)
}


class Ingest:
    """A warm child that parses one file at a time.

    Args:
        max_rows, max_columns: bounds of a table.
        seconds: how long one file may take.
    """

    def __init__(self, max_rows: int, max_columns: int, seconds: float) -> None:
        self._bounds = {"rows": max_rows, "columns": max_columns}
        self._seconds = seconds
        self._turn = asyncio.Lock()
        self._child: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Spawn the child, from the thread whose end is to kill it."""
        self._child = await asyncio.create_subprocess_exec(
            *command("app.ingest_child"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=64 * 1024**2,
        )

    async def parse(self, raw: Path, form: str, out: Path, kinds: Mapping[str, str] | None = None) -> Parsed:
        """Parse a file into a table file.

        Args:
            form: "csv", "tsv", "json" or "npz".
            kinds: kinds that somebody corrected, by column.

        Raises:
            Malformed, Invalid, TooLarge: what is wrong with the file, and where.
        """
        request = {"op": "parse", "raw": str(raw), "form": form, "out": str(out), "kinds": dict(kinds or {})}
        reply = await self._ask({**request, "bounds": self._bounds})
        return Parsed(out, reply["rows"], reply["columns"], reply["warnings"], reply["default_target"])

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

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._turn:
            if self._child is None or self._child.returncode is not None:
                await self.start()
            assert self._child is not None
            assert self._child.stdin is not None
            assert self._child.stdout is not None
            try:
                async with asyncio.timeout(self._seconds):
                    self._child.stdin.write(json.dumps(request).encode() + b"\n")
                    await self._child.stdin.drain()
                    line = await self._child.stdout.readline()
            except (TimeoutError, asyncio.CancelledError, ConnectionError) as error:
                # its answer would be taken for the next file's
                await asyncio.shield(self.close())
                if isinstance(error, TimeoutError):
                    raise Invalid(f"Expected a file that parses within {self._seconds:g} seconds.") from error
                if isinstance(error, ConnectionError):
                    raise Invalid("The file could not be parsed; the parser ended.") from error
                raise
            if not line.endswith(b"\n"):
                await self.close()
                raise Invalid("The file could not be parsed; the parser ran out of memory or failed.")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            fault = reply["error"]
            faults = [Fault(tuple(f["loc"]), f["message"], f["code"]) for f in fault["faults"]]
            raise _FACTS[fault["code"]](fault["message"], faults)
        return reply
