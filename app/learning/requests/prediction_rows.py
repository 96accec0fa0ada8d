"""Posted rows, in every format that a prediction may come in, as columns of values; and answers as NPZ.

The values are not yet checked against a model's inputs: `cells.records_cells` does that, the same for all formats.
Parquet and Arrow are read by the ingest child, which gives them back as a frame (`frames.transcode`).
"""

from __future__ import annotations

import csv
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.errors import Invalid, Malformed, TooLarge
from app.learning.tables.parse_text import NPY_HEADER_ERRORS, clean_names, csv_delimiter, parse_json, read_npy_header


@dataclass(frozen=True)
class Rows:
    """n ≥ 1 posted rows: for each column n values, as JSON has them, or as an array of numbers."""

    columns: Mapping[str, Sequence[Any] | NDArray[Any]]
    count: int


def decode(form: str, body: bytes, inputs: Sequence[str], max_bytes: int) -> Rows:
    """Read a body.

    Args:
        form: "json", "csv", "tsv", "ndjson", "npy", "npz", "float32", or "frame", which only our own child writes.
        inputs: the names of the columns where the format has none, in their order.
        max_bytes: what a compressed array may become.

    Raises:
        TooLarge: it becomes more.
        Malformed: the bytes are not of this form.
        Invalid: they are, but no rows; says the row.
    """
    if form == "npz":
        return _npy(_unzipped(body, max_bytes), inputs)
    return _DECODERS[form](body, inputs)


def _json(body: bytes, inputs: Sequence[str]) -> Rows:
    document = parse_json(body, "JSON")
    given = set(document) if isinstance(document, dict) else set()
    if given == {"records"}:
        return records_rows(document["records"], "records", inputs)
    if given == {"columns"}:
        return columns_rows(document["columns"], "columns")
    if given == {"x"}:
        return matrix_rows(document["x"], "x", inputs)
    raise Invalid('Expected an object with one of "records", "columns" and "x".')


def records_rows(records: Any, loc: str, inputs: Sequence[str]) -> Rows:
    """Read a list of objects.

    Args:
        loc: what the list is called.

    Raises:
        Invalid: it is none, or empty.
    """
    if not isinstance(records, list) or not records:
        raise Invalid.at((loc,), f"Expected {loc} to be a list of at least one object.")
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise Invalid.at((loc, i), f"Expected record {i} to be an object.")
        names.update(dict.fromkeys(record))
    # of the others only the names matter: their cells could be as many as records times records
    wanted = set(inputs)
    return Rows(
        {
            clean: [record.get(name) for record in records] if clean in wanted else ()
            for name, clean in zip(names, clean_names(names)[0], strict=True)
        },
        len(records),
    )


def columns_rows(columns: Any, loc: str) -> Rows:
    """Read an object of lists of one length; raises `Invalid` where it is none."""
    if not isinstance(columns, dict) or not columns:
        raise Invalid.at((loc,), f"Expected {loc} to be an object of lists.")
    lengths = set()
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise Invalid.at((loc, name), f"Expected column {name[:80]!r} to be a list.")
        lengths.add(len(cells))
    if len(lengths) > 1 or lengths == {0}:
        raise Invalid.at((loc,), f"Expected columns of one length of at least 1, got {sorted(lengths)[:5]}.")
    return Rows(dict(zip(clean_names(columns)[0], columns.values(), strict=True)), lengths.pop())


def matrix_rows(rows: Any, loc: str, inputs: Sequence[str]) -> Rows:
    """Read a list of rows, each a list of a value for each input; raises `Invalid` where it is none."""
    if not isinstance(rows, list) or not rows:
        raise Invalid.at((loc,), f"Expected {loc} to be a list of at least one row.")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(inputs):
            came = len(row) if isinstance(row, list) else "something else"
            raise Invalid.at((loc, i), f"Expected {len(inputs)} values, one for each input, got {came} in row {i}.")
    return Rows(dict(zip(inputs, zip(*rows, strict=True), strict=True)), len(rows))


def refuse_unknown(rows: Rows, known: Collection[str]) -> None:
    """Raise `Invalid` for a column that a model does not know, where an answer has no place for warnings."""
    strange = next((name for name in rows.columns if name not in known), None)
    if strange is not None:
        names = ", ".join(name[:40] for name in list(known)[:10])
        raise Invalid.at((strange,), f"Expected columns of the model ({names}), got {strange[:80]!r}.")


def _ndjson(body: bytes, inputs: Sequence[str]) -> Rows:
    records = []
    for number, line in enumerate(body.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if line.strip():
            records.append(parse_json(line, f"a JSON object in line {number}"))
    return records_rows(records, "rows", inputs)


def _csv(body: bytes, _inputs: Sequence[str]) -> Rows:
    return _delimited(body)


def _tsv(body: bytes, _inputs: Sequence[str]) -> Rows:
    return _delimited(body, prefer="\t")


def _delimited(body: bytes, prefer: str | None = None) -> Rows:
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Malformed(f"Expected UTF-8 text, got byte 0x{body[error.start]:02x} at offset {error.start}.") from error
    delimiter = csv_delimiter(text.partition("\n")[0], prefer)
    # a cell may be as long as in the other forms: the body has its limit
    csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        header = next(reader, [])
        # a column of one empty cell reads as a blank line
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


def _float32(body: bytes, inputs: Sequence[str]) -> Rows:
    if not body or len(body) % (4 * len(inputs)):
        raise Invalid(
            f"Expected rows of {len(inputs)} little-endian float32, {4 * len(inputs)} bytes each, got {len(body)} bytes."
        )
    return _array(np.frombuffer(body, "<f4").reshape(-1, len(inputs)), inputs)


def _array(x: NDArray[Any], inputs: Sequence[str]) -> Rows:
    if x.ndim != 2 or x.shape[1] != len(inputs) or not len(x) or x.dtype.kind not in "fiub":
        raise Invalid.at(
            ("x",),
            f"Expected numbers of shape (rows, {len(inputs)}), a column for each input, got {x.shape} of {x.dtype}.",
        )
    return Rows({name: x[:, j] for j, name in enumerate(inputs)}, len(x))


def _npy(body: bytes, inputs: Sequence[str]) -> Rows:
    return _array(_read_npy(io.BytesIO(body), len(body)), inputs)


def _frame(body: bytes, _inputs: Sequence[str]) -> Rows:
    at = body.index(b"\n") + 1
    document = orjson.loads(body[:at])
    count, columns = document["rows"], document["columns"]
    if not count or not columns:
        raise Invalid("Expected a file of at least one column and one row.")
    for name, cells in columns.items():
        if isinstance(cells, str):
            columns[name] = np.frombuffer(body, cells, count, at)
            at += columns[name].nbytes
    return Rows(dict(zip(clean_names(columns)[0], columns.values(), strict=True)), count)


def _unzipped(body: bytes, max_bytes: int) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            names = archive.namelist()
            if names != ["x.npy"]:
                came = ", ".join(repr(name[:40]) for name in names[:5]) or "none"
                raise Invalid(f"Expected one array, x, got {came}.")
            if archive.getinfo("x.npy").file_size > max_bytes:
                raise TooLarge(f"Expected an array of at most {max_bytes} bytes.")
            if archive.getinfo("x.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Malformed("Expected an NPZ file as NumPy writes it, stored or deflated.")
            with archive.open("x.npy") as member:
                return member.read(max_bytes)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
        raise Malformed("Expected an NPZ file that could be read to its end.") from error


def _read_npy(file: io.BytesIO, size: int) -> NDArray[Any]:
    # numpy's own reader would allocate what the header declares, before it reads
    try:
        shape, is_fortran, dtype = read_npy_header(file)
    except NPY_HEADER_ERRORS as error:
        raise Malformed("Expected an NPY array of plain numbers.") from error
    if dtype.kind not in "fiub" or dtype.subdtype or min(shape, default=0) < 0:
        raise Malformed(f"Expected an NPY array of plain numbers, got {str(dtype)[:40]}.")
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise Malformed("Expected an NPY array of plain numbers, as many as its header says.")
    x: NDArray[Any] = np.frombuffer(file.read(), dtype)
    return x.reshape(shape, order="F" if is_fortran else "C")


_DECODERS: dict[str, Callable[[bytes, Sequence[str]], Rows]] = {
    "json": _json,
    "csv": _csv,
    "tsv": _tsv,
    "ndjson": _ndjson,
    "npy": _npy,
    "float32": _float32,
    "frame": _frame,
}
