"""Bodies of requests: files, bytes and JSON, each with its media type."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

FilePath = str | os.PathLike[str]

CSV, JSON = "text/csv", "application/json"
CONTENT_TYPES = {
    ".csv": CSV,
    ".tsv": "text/tab-separated-values",
    ".json": JSON,
    ".ndjson": "application/x-ndjson",
    ".npz": "application/x-npz",
    ".parquet": "application/vnd.apache.parquet",
    ".arrow": "application/vnd.apache.arrow.file",
}


class Body(NamedTuple):
    """The body of a request: bytes, or a file that is read while it is sent."""

    content: bytes | Path
    content_type: str

    def open(self) -> AbstractContextManager[bytes | BinaryIO]:
        """Return the content to send; each call reads a file from its start."""
        return self.content.open("rb") if isinstance(self.content, Path) else nullcontext(self.content)


def json_body(document: Mapping[str, object]) -> Body:
    """Return a document as a JSON body; arrays, their scalars and columns of data frames become lists and numbers.

    Raises:
        TypeError: a value has no form in JSON.
        ValueError: a number is not finite.
    """
    return Body(json.dumps(document, default=_to_plain, allow_nan=False).encode(), JSON)


def table_body(source: FilePath | bytes | Mapping[str, object], content_type: str | None = None) -> Body:
    """Return the body of a table: a file, the bytes of one, or a mapping in a JSON form.

    Raises:
        ValueError: `content_type` is missing, and no file name says it.
    """
    if isinstance(source, Mapping):
        return json_body(source)
    content = source if isinstance(source, bytes) else Path(source)
    known = content_type or (CONTENT_TYPES.get(content.suffix.lower()) if isinstance(content, Path) else None)
    if known is None:
        came = content.name if isinstance(content, Path) else "bytes"
        raise ValueError(f"expected content_type, or a file named {' '.join(CONTENT_TYPES)}; got {came}")
    return Body(content, known)


def labelled_rows_body(file: FilePath) -> Body:
    """Return the body that evaluates a file: a JSON file holds a table, and the JSON body is an envelope around it."""
    body = table_body(file)
    if body.content_type == JSON and isinstance(body.content, Path):
        return Body(b'{"data":%b}' % body.content.read_bytes(), JSON)
    return body


def _to_plain(value: Any) -> Any:
    # arrays, their scalars and columns of data frames have `tolist`, so their libraries need not be imported here
    if not hasattr(value, "tolist"):
        raise TypeError(f"expected a value that JSON can hold, got {type(value).__name__}")
    return value.tolist()
