"""A parser process, as the service sees it: send a file, get a table. Imports no polars.

The process's own side is `parser_child`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from app.errors import FitserveError, Invalid, Malformed, StorageFull, TooLarge
from app.ingest.messages import (
    MESSAGES,
    REQUESTS,
    Answer,
    Divided,
    Parse,
    Parsed,
    ParserMessage,
    ParserRequest,
    Refused,
    Split,
    Taken,
    ToArrow,
    Transcode,
    Written,
)
from app.learning.tables.column import ColumnKind
from app.learning.tables.incoming_table import TableLimits
from app.records.dataset import ParsedTable
from app.system.json_lines import ChildProcess, MessageTooLong, UnexpectedMessage
from app.system.machine import machine_bytes

logger = logging.getLogger(__name__)

#: the errors that a parser process may refuse a file with, by code
_ERRORS: dict[str, type[FitserveError]] = {error.code: error for error in (Malformed, Invalid, TooLarge, StorageFull)}
#: memory that polars frees goes back to the kernel at once: kept for later, it would count as memory in use
_FREE_AT_ONCE = {"_RJEM_MALLOC_CONF": "dirty_decay_ms:0,muzzy_decay_ms:0"}
#: memory for one cell of a frame: 8 bytes, and about as many while the frame is made
_CELL_BYTES = 16

Reply = TypeVar("Reply", Parsed, Divided, Written)


@dataclass(frozen=True)
class SplitBody:
    """A JSON body without its member `data`, which is in a file of its own if there was one."""

    rest: dict[str, object]
    has_data: bool


class ParserProcess:
    """A process that parses one file at a time; started at the first file, and again after one that ended it.

    Args:
        max_rows, max_columns: limits of a table.
        seconds: how long one file may take.
        memory_bytes: what the process may use; 0 is half of `machine_bytes`.
    """

    def __init__(self, max_rows: int, max_columns: int, seconds: float, memory_bytes: int = 0) -> None:
        self._memory_bytes = memory_bytes or machine_bytes() // 2
        self._limits = TableLimits(max_rows, max_columns)
        self._seconds = seconds
        #: held while a request is under way
        self._busy = asyncio.Lock()
        self._process: ChildProcess[ParserRequest, ParserMessage] | None = None

    async def start(self) -> ChildProcess[ParserRequest, ParserMessage]:
        """Spawn the process, from the thread whose end is to kill it."""
        self._process = await ChildProcess.spawn(
            "app.ingest.parser_child",
            str(self._memory_bytes),
            requests=REQUESTS,
            replies=MESSAGES,
            environment={**os.environ, **_FREE_AT_ONCE},
        )
        return self._process

    async def parse(
        self, raw: Path, form: str, out: Path, kinds: Mapping[str, ColumnKind] | None = None
    ) -> ParsedTable:
        """Parse a raw file into a table file.

        Args:
            form: the raw file's format, one of those of `read_raw_file`.
            kinds: kinds that a client corrected, by column.

        Raises:
            Malformed, Invalid, TooLarge: what is wrong with the file, and where.
        """
        parsed = await self._ask(Parse(raw, form, out, self._limits, kinds or {}), Parsed)
        return ParsedTable(out, parsed.rows, parsed.columns, parsed.warnings, parsed.default_target)

    async def transcode(self, raw: Path, form: str, out: Path, max_cells: int) -> None:
        """Turn a Parquet or Arrow file into a frame, as `prediction_rows` reads it.

        Raises:
            Malformed, Invalid, TooLarge: what is wrong with the file, and where; more than `max_cells` cells are.
        """
        cells = min(self._memory_bytes // _CELL_BYTES, max_cells)
        await self._ask(Transcode(raw, form, out, replace(self._limits, cells=cells)), Written)

    async def to_arrow(self, columns: Path, out: Path) -> None:
        """Turn a JSON object of columns into an Arrow stream; columns named `probability…` become float32."""
        await self._ask(ToArrow(columns, out), Written)

    async def split(self, body: Path, data: Path) -> SplitBody:
        """Take the member `data` of a JSON body out into a file of its own, and return the rest.

        Raises:
            Malformed, Invalid: the body is not a JSON object.
        """
        divided = await self._ask(Split(body, data), Divided)
        return SplitBody(json.loads(divided.rest), divided.has_data)

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            await self._process.kill()

    async def _ask(self, request: ParserRequest, kind: type[Reply]) -> Reply:
        """Return the reply to a request; raise the error that the process refuses the file with."""
        async with self._busy:
            reply = (await self._answer(request)).reply
        if isinstance(reply, Refused):
            raise _ERRORS[reply.code](reply.message, reply.faults)
        if not isinstance(reply, kind):
            raise UnexpectedMessage(f"Expected {kind.__name__}, got {reply}.")
        return reply

    async def _answer(self, request: ParserRequest) -> Answer:
        """Have the process carry out a request; end it where it gives no answer, as it might answer the next request."""
        answer = None
        try:
            async with asyncio.timeout(self._seconds):
                answer = await self._exchange(request)
        except TimeoutError as error:
            raise Invalid(f"Expected a file that parses within {self._seconds:g} seconds.") from error
        except MessageTooLong as error:
            raise Invalid("The file could not be described; it has too many columns or too long names.") from error
        finally:
            if answer is None or answer.is_last:
                await asyncio.shield(self.close())
        if answer is None:
            assert self._process is not None
            logger.warning("parser died", extra={"said": list(self._process.last_lines)})
            raise Invalid("The file could not be parsed; the parser ran out of memory or failed.")
        return answer

    async def _exchange(self, request: ParserRequest) -> Answer | None:
        """Return the answer to a request, or None where the process dies on it.

        A request that the process has not taken, as it was dead or died before, goes to a new one.
        """
        process = self._process
        if process is None or not await self._takes(process, request):
            await self.close()
            process = await self.start()
            await self._takes(process, request)
        message = await process.read()
        if isinstance(message, Taken):
            raise UnexpectedMessage(f"Expected an answer, got {message}.")
        return message

    async def _takes(self, process: ChildProcess[ParserRequest, ParserMessage], request: ParserRequest) -> bool:
        """Send a request, and return whether the process has taken it."""
        if not process.is_alive:
            return False
        await process.send(request)
        return await process.read() == Taken()
