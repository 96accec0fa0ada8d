"""Bodies of native predictions to rows, in every format: JSON, CSV, TSV, NDJSON, NPY, NPZ, raw float32, and frames.

The parser process reads Parquet and Arrow, and turns them into a frame (`tables.transcode_arrow`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence

import numpy as np
import orjson

from app.errors import Invalid, Malformed
from app.learning.requests.prediction_rows import (
    Rows,
    rows_from_array,
    rows_from_columns,
    rows_from_matrix,
    rows_from_records,
)
from app.learning.requests.read_npy import read_npy, read_npz
from app.learning.tables.parse_text import clean_names, csv_delimiter, parse_json


def read_rows(form: str, body: bytes, inputs: Sequence[str], max_bytes: int) -> Rows:
    """Read a body.

    Args:
        form: "json", "csv", "tsv", "ndjson", "npy", "npz", "float32", or "frame", which only the parser process writes.
        inputs: the model's columns in their order, which are those of formats without names.
        max_bytes: the largest size to which a compressed array may unpack.

    Raises:
        TooLarge: a compressed array is larger.
        Malformed: the bytes are not of this form.
        Invalid: the bytes are of this form, but no rows; says the row.
    """
    if form == "npz":
        return rows_from_array(read_npz(body, max_bytes), inputs)
    return _READERS[form](body, inputs)


def _read_json(body: bytes, inputs: Sequence[str]) -> Rows:
    document = parse_json(body, "JSON")
    members = set(document) if isinstance(document, dict) else set()
    if members == {"records"}:
        return rows_from_records(document["records"], "records", inputs)
    if members == {"columns"}:
        return rows_from_columns(document["columns"], "columns")
    if members == {"x"}:
        return rows_from_matrix(document["x"], "x", inputs)
    raise Invalid('Expected an object with one of "records", "columns" and "x".')


def _read_ndjson(body: bytes, inputs: Sequence[str]) -> Rows:
    records = []
    for number, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            records.append(parse_json(line, f"a JSON object in line {number}"))
    return rows_from_records(records, "rows", inputs)


def _read_csv(body: bytes, _inputs: Sequence[str]) -> Rows:
    return _delimited(body)


def _read_tsv(body: bytes, _inputs: Sequence[str]) -> Rows:
    return _delimited(body, prefer="\t")


def _delimited(body: bytes, prefer: str | None = None) -> Rows:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"Expected UTF-8 text, got byte 0x{body[error.start]:02x} at offset {error.start}.") from error
    delimiter = csv_delimiter(text.partition("\n")[0], prefer)
    # cells have no limit of their own, as in the other formats: the body has one
    csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = next(reader, [])
        # csv reads a column's only, empty cell as a blank line
        lines = [line or [""] for line in reader if line or len(header) == 1]
    except csv.Error as error:
        raise Malformed(f"Expected CSV: {error}.") from error
    if not header or not lines:
        raise Invalid("Expected a header row and at least one data row.")
    names, _ = clean_names(header)
    for i, line in enumerate(lines):
        if len(line) != len(header):
            raise Invalid.at(("rows", i), f"Expected {len(header)} cells as in the header, got {len(line)} in row {i}.")
    return Rows(dict(zip(names, zip(*lines, strict=True), strict=True)), len(lines))


def _read_float32(body: bytes, inputs: Sequence[str]) -> Rows:
    if not body or len(body) % (4 * len(inputs)):
        raise Invalid(
            f"Expected rows of {len(inputs)} little-endian float32, {4 * len(inputs)} bytes each, got {len(body)} bytes."
        )
    return rows_from_array(np.frombuffer(body, "<f4").reshape(-1, len(inputs)), inputs)


def _read_npy(body: bytes, inputs: Sequence[str]) -> Rows:
    return rows_from_array(read_npy(body), inputs)


def _read_frame(body: bytes, _inputs: Sequence[str]) -> Rows:
    offset = body.index(b"\n") + 1
    document = orjson.loads(body[:offset])
    count, columns = document["rows"], document["columns"]
    if not count or not columns:
        raise Invalid("Expected a file of at least one column and one row.")
    for name, cells in columns.items():
        if isinstance(cells, str):
            columns[name] = np.frombuffer(body, cells, count, offset)
            offset += columns[name].nbytes
    return Rows(dict(zip(clean_names(columns)[0], columns.values(), strict=True)), count)


_READERS: dict[str, Callable[[bytes, Sequence[str]], Rows]] = {
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "ndjson": _read_ndjson,
    "npy": _read_npy,
    "float32": _read_float32,
    "frame": _read_frame,
}
