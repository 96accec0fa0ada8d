"""The ingest child's own side: reads requests as lines of JSON, parses files, answers in lines of JSON."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from app.errors import FitserveError, Invalid, Malformed, StorageFull, TooLarge, is_disk_full
from app.learning.tables.column import Column
from app.learning.tables.describe_column import describe
from app.learning.tables.incoming_table import MemoryBudget, TableLimits
from app.learning.tables.parse_text import parse_json
from app.learning.tables.read_raw_file import open_raw_file
from app.learning.tables.table_file import write_columns
from app.learning.tables.transcode_arrow import to_frame, write_arrow

#: how often the memory in use is looked at
WATCH_SECONDS = 0.05
#: of a file that is read by parts; larger ones are not faster
MAX_BLOCK_BYTES = 4 * 1024**2
#: of a request without its data
MAX_REST_BYTES = 1024**2


def answer(request: dict[str, Any], memory_bytes: int) -> dict[str, Any]:
    """Carry out one request: `parse` a file, `split` a JSON body, `transcode` a file or `to_arrow`."""
    if request["op"] == "split":
        return split(Path(request["body"]), Path(request["data"]))
    if request["op"] == "transcode":
        frame = to_frame(Path(request["raw"]), request["form"], TableLimits(**request["bounds"]))
        Path(request["out"]).write_bytes(frame)
        return {}
    if request["op"] == "to_arrow":
        write_arrow(Path(request["columns"]).read_bytes(), Path(request["out"]))
        return {}
    free = max(0, memory_bytes - used_bytes())
    # the column that is made of a pass's texts, and the texts of a block of short ones, take several times what they do
    return read_table(request, MemoryBudget(free // 4, min(MAX_BLOCK_BYTES, free // 32 + 1)))


def read_table(request: dict[str, Any], portions: MemoryBudget) -> dict[str, Any]:
    """Parse a file into a table file, and describe it, a column at a time."""
    source = open_raw_file(
        Path(request["raw"]), request["form"], TableLimits(**request["bounds"]), request["kinds"], portions
    )
    described = []

    def columns() -> Iterator[Column]:
        for column in source.columns:
            described.append(describe(column))
            yield column

    target = source.names[-1]
    write_columns(Path(request["out"]), columns(), len(source.names), target, source.warnings)
    return {
        "rows": source.rows,
        "columns": described,
        "warnings": list(source.warnings),
        "default_target": target,
    }


def split(body: Path, data: Path) -> dict[str, Any]:
    """Take a JSON object's member `data` out into a file; gives the rest and whether there was data."""
    document = parse_json(body.read_bytes(), "JSON")
    if not isinstance(document, dict):
        raise Invalid("Expected a JSON object.")
    has_data = "data" in document
    try:
        if has_data:
            data.write_bytes(orjson.dumps(document.pop("data")))
        # the reply is written and read by parsers that go less deep than this one
        size = len(orjson.dumps(document))
    except orjson.JSONEncodeError as error:
        raise Malformed("Expected JSON that is nested less deeply.") from error
    if size > MAX_REST_BYTES:
        raise TooLarge(f"Expected at most {MAX_REST_BYTES} bytes of JSON beside data, got {size}.")
    return {"rest": document, "has_data": has_data}


def main() -> None:
    """Be the child, by way of `app.system.child_process`: argument MEMORY_BYTES."""
    memory_bytes = int(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    writing = threading.Lock()

    def write(reply: dict[str, Any]) -> None:
        # what a large file took goes back with the process
        is_last = used_bytes() > memory_bytes / 4
        replies.write(json.dumps({**reply, "is_last": is_last}, ensure_ascii=False) + "\n")
        if is_last:
            os._exit(0)

    def watch() -> None:
        while used_bytes() <= memory_bytes:
            time.sleep(WATCH_SECONDS)
        with writing:
            message = f"Expected a file that can be read in {memory_bytes // 1024**2} MB of memory, got a larger one."
            write(_error(TooLarge(message)))

    threading.Thread(target=watch, daemon=True).start()
    for line in sys.stdin:
        # taken: the parent sends a request once more where its child died before this
        replies.write("\n")
        try:
            reply = answer(json.loads(line), memory_bytes)
        except FitserveError as error:
            reply = _error(error)
        except Exception as error:
            if not is_disk_full(error):
                raise
            reply = _error(StorageFull("The disk is full."))
        with writing:
            write(reply)


def used_bytes() -> int:
    """Give the memory that this process holds, but for the pages of files, which the kernel takes back when it needs them."""
    found = re.search(r"^RssAnon:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _error(error: FitserveError) -> dict[str, Any]:
    faults = [asdict(fault) for fault in error.faults]
    return {"error": {"code": error.code, "message": error.message, "faults": faults}}


if __name__ == "__main__":
    main()
