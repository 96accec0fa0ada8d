"""The parser process's own side: reads one request after the other, and answers each."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson

from app.errors import FitserveError, Invalid, Malformed, StorageFull, TooLarge, is_disk_full
from app.ingest.messages import (
    MESSAGES,
    REQUESTS,
    Answer,
    Divided,
    Parse,
    Parsed,
    ParserMessage,
    ParserReply,
    ParserRequest,
    Refused,
    Split,
    Taken,
    ToArrow,
    Transcode,
    Written,
)
from app.learning.tables.column import Column
from app.learning.tables.describe_column import ColumnDescription, describe
from app.learning.tables.incoming_table import MemoryBudget
from app.learning.tables.parse_text import parse_json
from app.learning.tables.read_raw_file import open_raw_file
from app.learning.tables.table_file import write_columns
from app.learning.tables.transcode_arrow import to_frame, write_arrow
from app.system.json_lines import ParentProcess

#: between two looks at the memory in use
WATCH_SECONDS = 0.05
#: most bytes of a file that are read at once, in formats that are read in blocks; larger blocks are not faster
MAX_BLOCK_BYTES = 4 * 1024**2
#: of a JSON body without its data
MAX_REST_BYTES = 1024**2


class Parser:
    """Carries out requests within a memory limit, which a thread watches.

    Args:
        memory_bytes: what this process may hold.
    """

    def __init__(self, service: ParentProcess[ParserRequest, ParserMessage], memory_bytes: int) -> None:
        self._service, self._memory_bytes = service, memory_bytes
        #: held while an answer is sent: the request has one, from this thread or from the one that watches
        self._answering = threading.Lock()

    def run(self) -> None:
        """Answer requests until there are no more."""
        threading.Thread(target=self._watch, daemon=True).start()
        while (request := self._service.read()) is not None:
            self._service.send(Taken())
            reply = self._reply(request)
            with self._answering:
                self._answer(reply)

    def _reply(self, request: ParserRequest) -> ParserReply:
        try:
            return self._carry_out(request)
        except FitserveError as error:
            return _refused(error)
        except OSError as error:
            if not is_disk_full(error):
                raise
            return _refused(StorageFull("The disk is full."))

    def _carry_out(self, request: ParserRequest) -> ParserReply:
        match request:
            case Parse():
                return parse(request, self._budget())
            case Split():
                return split(request.body, request.data)
            case Transcode():
                request.out.write_bytes(to_frame(request.raw, request.form, request.limits))
                return Written()
            case ToArrow():
                write_arrow(request.columns.read_bytes(), request.out)
                return Written()

    def _budget(self) -> MemoryBudget:
        free = max(0, self._memory_bytes - used_bytes())
        # the column that is made of a pass's texts takes several times what they do, and so does a block of short texts
        return MemoryBudget(free // 4, min(MAX_BLOCK_BYTES, free // 32 + 1))

    def _answer(self, reply: ParserReply) -> None:
        is_last = used_bytes() > self._memory_bytes / 4
        self._service.send(Answer(reply, is_last))
        if is_last:
            os._exit(0)

    def _watch(self) -> None:
        """Refuse the request, and exit, once this process holds too much memory."""
        while used_bytes() <= self._memory_bytes:
            time.sleep(WATCH_SECONDS)
        with self._answering:
            size = self._memory_bytes // 1024**2
            self._answer(
                _refused(TooLarge(f"Expected a file that can be read in {size} MB of memory, got a larger one."))
            )


def parse(request: Parse, budget: MemoryBudget) -> Parsed:
    """Parse a raw file into a table file, and describe it, a column at a time."""
    incoming = open_raw_file(request.raw, request.form, request.limits, request.kinds, budget)
    descriptions: list[ColumnDescription] = []

    def columns() -> Iterator[Column]:
        for column in incoming.columns:
            descriptions.append(describe(column))
            yield column

    target = incoming.names[-1]
    write_columns(request.out, columns(), len(incoming.names), target, incoming.warnings)
    return Parsed(incoming.rows, descriptions, list(incoming.warnings), target)


def split(body: Path, data: Path) -> Divided:
    """Take the member `data` of a JSON object out into a file.

    Raises:
        Malformed, Invalid, TooLarge: the body is not JSON, not an object, or large without its data.
    """
    document = parse_json(body.read_bytes(), "JSON")
    if not isinstance(document, dict):
        raise Invalid("Expected a JSON object.")
    has_data = "data" in document
    try:
        if has_data:
            data.write_bytes(orjson.dumps(document.pop("data")))
        rest = orjson.dumps(document)
    except orjson.JSONEncodeError as error:
        # the parsers of the data and of the rest go less deep than the parser of this body
        raise Malformed("Expected JSON that is nested less deeply.") from error
    if len(rest) > MAX_REST_BYTES:
        raise TooLarge(f"Expected at most {MAX_REST_BYTES} bytes of JSON beside data, got {len(rest)}.")
    return Divided(rest.decode(), has_data)


def used_bytes() -> int:
    """Return the memory that this process holds, without the pages of files: the kernel takes those back as it needs."""
    resident = re.search(r"^RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert resident is not None
    return int(resident[1]) * 1024


def _refused(error: FitserveError) -> Refused:
    return Refused(error.code, error.message, error.faults)


def main() -> None:
    """Be the parser process, by way of `app.system.child_process`: argument MEMORY_BYTES."""
    Parser(ParentProcess(REQUESTS, MESSAGES), memory_bytes=int(sys.argv[1])).run()


if __name__ == "__main__":
    main()
