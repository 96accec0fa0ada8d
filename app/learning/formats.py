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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from app.errors import Fault, Invalid, Malformed, TooLarge
from app.learning.table import MISSING, Column, Kind, Posted, Table

DELIMITERS = ",;\t|"
#: what the standard library raises on a broken archive, array header or compressed stream
_UNREADABLE = (
    *(ValueError, TypeError, OSError, EOFError, KeyError, MemoryError, RuntimeError, SyntaxError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
#: a text column with more distinct values than this, or with mostly distinct ones, is text and not categories
MAX_CATEGORIES = 1000
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
#: within int64
_PLAIN_INTEGER = r"^-?(0|[1-9]\d{0,17})$"
#: what a float64 does not spell back: leading zeros, and the longest integers
_ODD_NUMBER = r"^[+-]?(0\d|\d{16,}$)"
#: from here on float64 does not hold every integer
_INEXACT = 2**53
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class Bounds:
    """What a table may be at most."""

    rows: int
    columns: int
    cells: int = 2_000_000_000


def parse(path: Path, form: str, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    """Read an uploaded file.

    Args:
        form: "csv", "tsv", "json" or "npz".
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
    names, warnings = _named(header, bounds)
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
            frame = frame.filter(~pl.int_range(frame.height, eager=True).is_in(blank))
    _check_rows(frame.height, bounds)
    columns = [_text_column(n, s, kinds.get(n)) for n, s in zip(names, frame.iter_columns(), strict=True)]
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
        bare = "".join(part for i, part in enumerate(first.split('"')) if i % 2 == 0)
        delimiter = prefer if prefer is not None and prefer in bare else max(DELIMITERS, key=bare.count)
        file.seek(0)
        try:
            return next(csv.reader(file, delimiter=delimiter)), delimiter
        except csv.Error as error:
            raise Malformed(f"Expected a CSV header row: {error}.") from error


def _named(header: Sequence[str], bounds: Bounds) -> tuple[list[str], list[str]]:
    if len(header) > bounds.columns:
        raise TooLarge(f"Expected at most {bounds.columns} columns, got {len(header)}.")
    names, warnings = [], []
    for i, raw in enumerate(header):
        name = raw.strip()
        if not name:
            name = f"unnamed_{i}"
            warnings.append(f"column {i} has no name in the header; it is called {name!r}")
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name) or len(name) > 200:
            raise Invalid.at(
                ("columns", i), f"Expected column names of at most 200 printable characters; column {i} has another."
            )
        names.append(name)
    seen: set[str] = set()
    for i, name in enumerate(names):
        if name in seen:
            raise Invalid.at(("columns", i), f"Expected different column names, got {name!r} twice.")
        seen.add(name)
    return names, warnings


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


def _check_rows(rows: int, bounds: Bounds) -> None:
    if rows == 0:
        raise Invalid("Expected data rows after the header, got none.")
    if rows > bounds.rows:
        raise TooLarge(f"Expected at most {bounds.rows} rows, got {rows}.")


def _text_column(name: str, cells: pl.Series, kind: Kind | None, *, is_csv: bool = True) -> Column:
    """Make a column of texts (nulls allowed); `is_csv` gives integers their type back as labels."""
    cells = cells.fill_null("").str.strip_chars()
    cells = cells.set(cells.is_in(list(MISSING)), None)
    present = cells.drop_nulls()
    # "NAN" and the like, which are no spelling of a missing cell here, are no numbers either
    numbers = cells.cast(pl.Float64, strict=False).fill_nan(None)
    is_numeric = numbers.null_count() == cells.null_count()
    is_integer = is_csv and bool(present.str.contains(_PLAIN_INTEGER).all()) and len(present) > 0
    kind = kind or _infer(present, is_numeric=is_numeric)
    if kind == "numeric":
        values = _numbers(name, numbers, cells, "a number")
        _check_finite(name, values)
        is_odd = (np.abs(values) >= _INEXACT).any() if is_integer else present.str.contains(_ODD_NUMBER).any()
        if not is_csv or is_odd:
            return Column(name, kind, values, posted="int" if is_integer else "str", **_spelled(cells))
        return Column(name, kind, values, posted="int" if is_integer else "float")
    if kind == "boolean":
        truth = _truth(cells)
        values = _numbers(name, truth.fill_null(numbers.set(~numbers.is_in([0.0, 1.0]), None)), cells, "true or false")
        if is_integer:
            return Column(name, kind, values, posted="int")
        # "True" and "true" are one label
        lower = cells.str.to_lowercase()
        return Column(
            name, kind, values, posted="str", **_spelled(cells if cells.n_unique() <= lower.n_unique() else lower)
        )
    codes, texts = _coded(cells)
    return Column(name, kind, codes, texts, posted="int" if is_integer else "str")


def _truth(cells: pl.Series) -> pl.Series:
    return cells.str.to_lowercase().replace_strict(_TRUTH, default=None, return_dtype=pl.Float64)


def _numbers(name: str, numbers: pl.Series, cells: pl.Series, expected: str) -> NDArray[np.float64]:
    """Give the numbers, NaN where missing; refuses a cell that is there and gave no number."""
    strange = (numbers.is_null() & cells.is_not_null()).arg_true()
    if len(strange):
        row = int(strange[0])
        raise Invalid.at(("rows", row, name), f"Expected {expected} in column {name!r}, got another text in row {row}.")
    return numbers.fill_null(float("nan")).to_numpy().astype(np.float64)


def _infer(present: pl.Series, *, is_numeric: bool) -> Kind:
    if is_numeric:
        return "numeric"
    if _truth(present).null_count() == 0:
        return "boolean"
    if present.str.contains(_ISO_DATE).all():
        return "datetime"
    unique = present.n_unique()
    return "text" if unique > MAX_CATEGORIES or (unique > 20 and unique > 0.5 * len(present)) else "categorical"


def _coded(cells: pl.Series) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    texts = cells.drop_nulls().unique().sort()
    codes = (
        cells.replace_strict(texts, pl.int_range(len(texts), eager=True, dtype=pl.Int32), default=None)
        if len(texts)
        else pl.Series([None] * len(cells), dtype=pl.Int32)
    )
    return codes.cast(pl.Int32).fill_null(-1).to_numpy().astype(np.int32), tuple(texts.to_list())


def _spelled(cells: pl.Series) -> dict[str, Any]:
    codes, spellings = _coded(cells)
    # a target and a category need their spellings, and have few
    return {"codes": codes, "spellings": spellings} if len(spellings) <= 10 * MAX_CATEGORIES else {}


def _check_finite(name: str, values: NDArray[Any]) -> None:
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        row = int(infinite[0])
        raise Invalid.at(
            ("rows", row, name), f"Expected finite numbers in column {name!r}, got an infinite one in row {row}."
        )


def load_json(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        Malformed: it is not JSON.
        Invalid: a number in it is too large for float64.
    """
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        if "infinity" in str(error):
            raise Invalid(f"Expected finite numbers: {error}.") from error
        raise Malformed(f"Expected JSON: {error}.") from error


def _json(path: Path, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    document = load_json(path)
    if not isinstance(document, dict):
        raise Invalid(f"Expected a JSON object with x and y, records, or columns; got {_type(document)}.")
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
            raise Invalid.at((name,), f"Expected {name} to be a list, got {_type(value)}.")
    if len(x) != len(y):
        raise Invalid.at(("y",), f"Expected as many labels as rows, got {len(x)} rows and {len(y)} labels.")
    _check_rows(len(x), bounds)
    for i, row in enumerate(x):
        if not isinstance(row, list):
            raise Invalid.at(("x", i), f"Expected row {i} of x to be a list, got {_type(row)}.")
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
        raise Invalid.at(("records",), f"Expected records to be a list, got {_type(records)}.")
    _check_rows(len(records), bounds)
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise Invalid.at(("records", i), f"Expected record {i} to be an object, got {_type(record)}.")
        names.update(dict.fromkeys(record))
        if len(names) > bounds.columns:
            raise TooLarge(f"Expected at most {bounds.columns} columns, got more by record {i}.")
    return _columns({name: [record.get(name) for record in records] for name in names}, bounds, kinds)


def _columns(columns: Any, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    if not isinstance(columns, dict):
        raise Invalid.at(("columns",), f"Expected columns to be an object of lists, got {_type(columns)}.")
    if not columns:
        raise Invalid.at(("columns",), "Expected at least one column, got none.")
    names, warnings = _named(list(columns), bounds)
    lengths = {}
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise Invalid.at(("columns", name), f"Expected column {name!r} to be a list, got {_type(cells)}.")
        lengths[name] = len(cells)
    longest = max(lengths.values())
    for name, length in lengths.items():
        if length != longest:
            raise Invalid.at(
                ("columns", name), f"Expected {longest} values as in the longest column, got {length} in {name!r}."
            )
    _check_rows(longest, bounds)
    made = [_value_column(n, cells, kinds.get(n)) for n, cells in zip(names, columns.values(), strict=True)]
    return Table(tuple(made), names[-1], tuple(warnings))


def _value_column(name: str, cells: list[Any], kind: Kind | None) -> Column:
    """Make a column of Python values: numbers, texts, booleans and None."""
    types = {type(cell) for cell in cells} - {type(None)}
    if types <= {int, float} and kind in (None, "numeric"):
        values = np.array([np.nan if cell is None else cell for cell in cells], np.float64)
        _check_finite(name, values)
        if types != {int}:
            return Column(name, "numeric", values, posted="float")
        is_exact = np.nanmax(np.abs(values)) < _INEXACT
        return Column(name, "numeric", values, posted="int", **({} if is_exact else _spelled(_texts(cells))))
    if types == {bool} and kind in (None, "boolean"):
        return Column(name, "boolean", np.array([np.nan if c is None else float(c) for c in cells]), posted="bool")
    for row, cell in enumerate(cells):
        if cell is not None and type(cell) not in (int, float, str, bool):
            raise Invalid.at(
                (name, row),
                f"Expected a number, text, boolean or null in column {name!r}, got {_type(cell)} in row {row}.",
            )
    if bool in types and len(types) > 1:
        raise Invalid.at((name,), f"Expected one type in column {name!r}, got booleans among other values.")
    if types == {int, float}:
        cells = [None if cell is None else float(cell) for cell in cells]
    column = _text_column(name, _texts(cells), kind, is_csv=False)
    posted: Posted = "str" if str in types else "float" if float in types else "int" if int in types else "bool"
    if not column.is_number or posted == "str":
        return replace(column, posted=posted)
    return replace(column, posted=posted, codes=None, spellings=())


def _texts(cells: Sequence[Any]) -> pl.Series:
    """Spell values as JSON does."""
    return pl.Series(
        [None if c is None else str(c).lower() if isinstance(c, bool) else str(c) for c in cells], dtype=pl.String
    )


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
    _check_rows(len(x), bounds)
    if x.shape[1] + 1 > bounds.columns:
        raise TooLarge(f"Expected at most {bounds.columns} columns, got {x.shape[1] + 1}.")
    columns = [_array_column(f"x{j}", x[:, j], kinds.get(f"x{j}")) for j in range(x.shape[1])]
    return Table((*columns, _array_target(y, kinds.get("y"))), "y")


def _array_column(name: str, values: NDArray[Any], kind: Kind | None) -> Column:
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32 if values.dtype in (np.float32, np.float16) else np.float64)
    _check_finite(name, numbers)
    if values.dtype.kind == "f" and kind in (None, "numeric"):
        return Column(name, "numeric", numbers, posted="float")
    if values.dtype.kind == "b" and kind in (None, "boolean"):
        return Column(name, "boolean", numbers, posted="bool")
    items = numbers.tolist() if values.dtype.kind == "f" else values.tolist()
    return _value_column(name, [None if item != item else item for item in items], kind)


def _array_target(y: NDArray[Any], kind: Kind | None) -> Column:
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "fiub":
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            row = int(np.flatnonzero(~((np.isin(y, (0, 1)).all(axis=1)) & (y.sum(axis=1) == 1)))[0])
            raise Invalid.at(("y", row), f"Expected one-hot labels, one 1 and zeros, in row {row} of y.")
        y = y.argmax(axis=1)
    if y.ndim != 1:
        raise Invalid.at(("y",), f"Expected y of shape (rows,) or one-hot (rows, classes), got {y.shape}.")
    if y.dtype.kind in "fiub":
        return _array_column("y", y, kind)
    if y.dtype.kind != "O":
        raise Invalid.at(("y",), f"Expected y of numbers, booleans or texts, got {y.dtype}.")
    return _value_column("y", y.tolist(), kind or "categorical")


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


_PARSERS = {"csv": _csv, "tsv": _tsv, "json": _json, "npz": _npz}
