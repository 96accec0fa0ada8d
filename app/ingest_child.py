"""The ingest child's own side: reads requests as lines of JSON, parses files, answers in lines of JSON."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from app.errors import FitserveError, Invalid, Malformed, StorageFull, is_disk_full
from app.learning.formats import Bounds, load_json, parse


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Carry out one request: `parse` a file, or `split` the data out of a JSON body."""
    if request["op"] == "split":
        return split(Path(request["body"]), Path(request["data"]))
    table = parse(Path(request["raw"]), request["form"], Bounds(**request["bounds"]), request["kinds"])
    table.save(Path(request["out"]))
    return {
        "rows": table.rows,
        "columns": [column.describe() for column in table.columns],
        "warnings": list(table.warnings),
        "default_target": table.default_target,
    }


def split(body: Path, data: Path) -> dict[str, Any]:
    """Take a JSON object's member `data` out into a file; gives the rest and whether there was data."""
    document = load_json(body)
    if not isinstance(document, dict):
        raise Invalid("Expected a JSON object.")
    has_data = "data" in document
    try:
        if has_data:
            data.write_bytes(orjson.dumps(document.pop("data")))
        # the reply is written and read by parsers that go less deep than this one
        orjson.dumps(document)
    except orjson.JSONEncodeError as error:
        raise Malformed("Expected JSON that is nested less deeply.") from error
    return {"rest": document, "has_data": has_data}


def main() -> None:
    """Be the child, by way of `app.lifeline`."""
    replies = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except FitserveError as error:
            faults = [asdict(fault) for fault in error.faults]
            reply = {"error": {"code": error.code, "message": error.message, "faults": faults}}
        except Exception as error:
            if not is_disk_full(error):
                raise
            reply = {"error": {"code": StorageFull.code, "message": "The disk is full.", "faults": []}}
        replies.write(json.dumps(reply, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
