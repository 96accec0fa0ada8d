"""Files and JSON bodies to tables. polars lives here; only the ingest child imports this module."""

from __future__ import annotations

import codecs
import csv
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.errors import Fault, Invalid, Malformed, TooLarge
from app.learning import frames
from app.learning.columns import Bounds, check_rows, column_of_array, column_of_texts, column_of_values, named, type_of
from app.learning.rows import load_json, sniff
from app.learning.table import Column, Kind, Table

#: what the standard library raises on a broken archive, array header or compressed stream
_UNREADABLE = (
    *(ValueError, TypeError, OSError, EOFError, KeyError, MemoryError, RuntimeError, SyntaxError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)


def parse(path: Path, form: str, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    """Read an uploaded file.

    Args:
        form: "csv", "tsv", "json", "ndjson", "npz", "parquet", "arrow_stream" or "arrow_file".
        kinds: kinds that somebody corrected, by column name; the others are inferred.

    Raises:
        Malformed: the bytes are not of this form.
        Invalid: they are, but not a table that can be used; says the row and column.
        TooLarge: over the bounds.
    """
    table = _PARSERS[form](path, bounds, kinds)
    unknown = sorted(set(kinds) - set(table.names))
    if unknown:
        raise Invalid.at(("columns", unknown[0]), f"There is no column {unknown[0]!r}.")
    return table


def _csv(path: Path, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    return _delimited(path, bounds, kinds)


def _tsv(path: Path, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    return _delimited(path, bounds, kinds, prefer="\t")


def _delimited(path: Path, bounds: Bounds, kinds: Mapping[str, Kind], prefer: str | None = None) -> Table:
    _check_utf8(path)
    header, delimiter = _header(path, prefer)
    names, warnings = named(header, bounds)
    try:
        frame = pl.read_csv(path, separator=delimiter, infer_schema=False, empty_string_is_null=False)
    except pl.exceptions.PolarsError as error:
        _find_ragged(path, delimiter, len(names))
        raise Malformed("Expected CSV whose quotes are balanced and enclose whole cells.") from error
    if frame.width != len(names):
        raise Malformed(f"Expected {len(names)} columns as in the header, got {frame.width}.")
    # a row that is short, and a blank line, read as empty cells at its end; a last row may hide an empty one too many
    if (frame.to_series(frame.width - 1).fill_null("") == "").any() or _last_byte(path) == delimiter:
        blank = _find_ragged(path, delimiter, len(names))
        if blank:
            frame = frame.filter(~pl.int_range(pl.len()).is_in(blank))
    check_rows(frame.height, bounds)
    columns = [column_of_texts(n, s, kinds.get(n)) for n, s in zip(names, frame.iter_columns(), strict=True)]
    return Table(tuple(columns), names[-1], tuple(warnings))


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as file:
        while chunk := file.read(1024**2):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += chunk[: max(error.start, 0)].count(b"\n")
                raise Malformed(
                    f"Expected UTF-8 text, got byte 0x{error.object[error.start]:02x} in line {line}."
                ) from error
            line += chunk.count(b"\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise Malformed(f"Expected UTF-8 text, but the file ends inside a character in line {line}.") from error


def _header(path: Path, prefer: str | None) -> tuple[list[str], str]:
    """Read the header row; gives the names and the delimiter: the preferred one if it occurs, else the most frequent."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline(1_000_000)
        if not first.strip():
            raise Invalid(
                "Expected a header row and data rows, got an empty file."
                if not first
                else "Expected a header row, got a blank line."
            )
        delimiter = sniff(first, prefer)
        file.seek(0)
        try:
            return next(csv.reader(file, delimiter=delimiter)), delimiter
        except csv.Error as error:
            raise Malformed(f"Expected a CSV header row: {error}.") from error


def _find_ragged(path: Path, delimiter: str, width: int) -> list[int]:
    """Raise about the first row of another width; give the indices of blank lines."""
    blank = []
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=False)
        next(reader)
        for row, cells in enumerate(reader):
            if not cells:
                blank.append(row)
            elif len(cells) != width:
                message = f"Expected {width} cells as in the header, got {len(cells)} in row {row - len(blank)} (line {reader.line_num})."
                raise Invalid(message, [Fault(("rows", row - len(blank)), message, "ragged_row")])
    return blank


def _last_byte(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read().decode("latin-1")


def _json(path: Path, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    document = load_json(path.read_bytes(), "JSON")
    if not isinstance(document, dict):
        raise Invalid(f"Expected a JSON object with x and y, records, or columns; got {type_of(document)}.")
    given = set(document)
    if given == {"x", "y"}:
        return _matrix(document["x"], document["y"], bounds, kinds)
    if given == {"records"}:
        return _records(document["records"], bounds, kinds)
    if given == {"columns"}:
        return _columns(document["columns"], bounds, kinds)
    came = ", ".join(repr(name[:40]) for name in sorted(given)[:5]) or "nothing"
    raise Invalid(f'Expected {{"x", "y"}}, {{"records"}} or {{"columns"}}; got {came}.')


def _matrix(x: Any, y: Any, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, list):
            raise Invalid.at((name,), f"Expected {name} to be a list, got {type_of(value)}.")
    if len(x) != len(y):
        raise Invalid.at(("y",), f"Expected as many labels as rows, got {len(x)} rows and {len(y)} labels.")
    check_rows(len(x), bounds)
    for i, row in enumerate(x):
        if not isinstance(row, list):
            raise Invalid.at(("x", i), f"Expected row {i} of x to be a list, got {type_of(row)}.")
        if len(row) != len(x[0]):
            raise Invalid.at(("x", i), f"Expected {len(x[0])} values as in row 0, got {len(row)} in row {i}.")
    if not x[0]:
        raise Invalid.at(("x", 0), "Expected at least one value in a row, got none.")
    if isinstance(y[0], list):
        y = _from_one_hot(y)
    names = [f"x{j}" for j in range(len(x[0]))]
    cells = {name: list(column) for name, column in zip(names, zip(*x, strict=True), strict=True)}
    return _columns({**cells, "y": y}, bounds, kinds)


def _from_one_hot(y: list[Any]) -> list[int]:
    labels = []
    for i, row in enumerate(y):
        is_row = isinstance(row, list) and len(row) == len(y[0])
        if not is_row or any(type(v) not in (int, float) for v in row) or sorted(row) != [0] * (len(row) - 1) + [1]:
            raise Invalid.at(("y", i), f"Expected one-hot labels, one 1 and {len(y[0]) - 1} zeros, in row {i} of y.")
        labels.append(row.index(1))
    return labels


def _records(records: Any, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    if not isinstance(records, list):
        raise Invalid.at(("records",), f"Expected records to be a list, got {type_of(records)}.")
    check_rows(len(records), bounds)
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise Invalid.at(("records", i), f"Expected record {i} to be an object, got {type_of(record)}.")
        names.update(dict.fromkeys(record))
        if len(names) > bounds.columns:
            raise TooLarge(f"Expected at most {bounds.columns} columns, got more by record {i}.")
    return _columns({name: [record.get(name) for record in records] for name in names}, bounds, kinds)


def _columns(columns: Any, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    if not isinstance(columns, dict):
        raise Invalid.at(("columns",), f"Expected columns to be an object of lists, got {type_of(columns)}.")
    if not columns:
        raise Invalid.at(("columns",), "Expected at least one column, got none.")
    names, warnings = named(list(columns), bounds)
    lengths = {}
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise Invalid.at(("columns", name), f"Expected column {name!r} to be a list, got {type_of(cells)}.")
        lengths[name] = len(cells)
    longest = max(lengths.values())
    for name, length in lengths.items():
        if length != longest:
            raise Invalid.at(
                ("columns", name), f"Expected {longest} values as in the longest column, got {length} in {name!r}."
            )
    check_rows(longest, bounds)
    made = [column_of_values(n, cells, kinds.get(n)) for n, cells in zip(names, columns.values(), strict=True)]
    return Table(tuple(made), names[-1], tuple(warnings))


def _npz(path: Path, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
            if declared > 8 * bounds.cells:
                raise TooLarge(f"Expected arrays of at most {8 * bounds.cells} bytes, got {declared}.")
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != {"x", "y"}:
                raise Invalid(
                    f"Expected the arrays x and y, got {', '.join(repr(n[:40]) for n in sorted(file.files)[:5]) or 'none'}."
                )
            x, y = file["x"], file["y"]
            if y.dtype.kind == "U":
                y = y.astype(object)
    except _UNREADABLE as error:
        raise Malformed(
            "Expected an NPZ file of plain arrays (no pickled objects) that could be read to its end."
        ) from error
    if x.ndim != 2 or x.shape[1] == 0 or x.dtype.kind not in "fiub":
        raise Invalid.at(("x",), f"Expected x of shape (rows, columns) of numbers, got {x.shape} of {x.dtype}.")
    if len(x) != len(np.atleast_1d(y)):
        raise Invalid.at(("y",), f"Expected as many labels as rows, got {len(x)} rows and y of shape {y.shape}.")
    check_rows(len(x), bounds)
    if x.shape[1] + 1 > bounds.columns:
        raise TooLarge(f"Expected at most {bounds.columns} columns, got {x.shape[1] + 1}.")
    columns = [column_of_array(f"x{j}", x[:, j], kinds.get(f"x{j}")) for j in range(x.shape[1])]
    return Table((*columns, _array_target(y, kinds.get("y"))), "y")


def _array_target(y: NDArray[Any], kind: Kind | None) -> Column:
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "fiub":
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            row = int(np.flatnonzero(~((np.isin(y, (0, 1)).all(axis=1)) & (y.sum(axis=1) == 1)))[0])
            raise Invalid.at(("y", row), f"Expected one-hot labels, one 1 and zeros, in row {row} of y.")
        y = y.argmax(axis=1)
    if y.ndim != 1:
        raise Invalid.at(("y",), f"Expected y of shape (rows,) or one-hot (rows, classes), got {y.shape}.")
    if y.dtype.kind in "fiub":
        return column_of_array("y", y, kind)
    if y.dtype.kind != "O":
        raise Invalid.at(("y",), f"Expected y of numbers, booleans or texts, got {y.dtype}.")
    return column_of_values("y", y.tolist(), kind or "categorical")


def _ndjson(path: Path, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    records: list[Any] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            records.append(load_json(text, f"a JSON object in line {number}"))
            if len(records) > bounds.rows:
                raise TooLarge(f"Expected at most {bounds.rows} rows, got more.")
    return _records(records, bounds, kinds)


_PARSERS: dict[str, Callable[[Path, Bounds, Mapping[str, Kind]], Table]] = {
    "csv": _csv,
    "tsv": _tsv,
    "json": _json,
    "ndjson": _ndjson,
    "npz": _npz,
    "parquet": frames.parquet,
    "arrow_stream": frames.arrow_stream,
    "arrow_file": frames.arrow_file,
}
