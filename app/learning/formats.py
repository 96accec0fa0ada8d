"""Files and JSON bodies to tables. polars lives here; only the ingest child imports this module."""

from __future__ import annotations

import codecs
import csv
import zipfile
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
#: a text column with more distinct values than this, or with mostly distinct ones, is text and not categories
MAX_CATEGORIES = 1000
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
_PLAIN_INTEGER = r"^-?(0|[1-9]\d{0,14})$"
#: the largest integer that float64 holds exactly
_MAX_EXACT = 2**53


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
    _check_utf8(path)
    header, delimiter = _header(path)
    names, warnings = _named(header, bounds)
    blank: list[int] = []
    try:
        frame = pl.read_csv(path, separator=delimiter, infer_schema=False, empty_string_is_null=False)
    except pl.exceptions.PolarsError as error:
        _find_ragged(path, delimiter, len(names))
        reason = str(error).splitlines()[0][:120]
        raise Malformed(f"Expected CSV with balanced quotes; the parser stopped: {reason}.") from error
    if frame.width != len(names):
        raise Malformed(f"Expected {len(names)} columns as in the header, got {frame.width}.")
    # a row that is short, and a blank line, read as empty cells at its end
    if frame.height and (frame.to_series(frame.width - 1).fill_null("") == "").any():
        blank = _find_ragged(path, delimiter, len(names))
        if blank:
            frame = frame.with_row_index("").filter(~pl.col("").is_in(blank)).drop("")
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


def _header(path: Path) -> tuple[list[str], str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline(1_000_000)
        if not first.strip():
            raise Invalid(
                "Expected a header row and data rows, got an empty file."
                if not first
                else "Expected a header row, got a blank line."
            )
        bare = "".join(part for i, part in enumerate(first.split('"')) if i % 2 == 0)
        delimiter = max(DELIMITERS, key=bare.count)
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
    numbers = cells.cast(pl.Float64, strict=False)
    is_numeric = numbers.null_count() == cells.null_count()
    is_integer = is_csv and bool(present.str.contains(_PLAIN_INTEGER).all()) and len(present) > 0
    lower = present.str.to_lowercase()
    is_boolean = len(present) > 0 and bool(lower.is_in(["true", "false"]).all())
    if kind is None:
        kind = _infer(present, is_numeric=is_numeric, is_boolean=is_boolean)
    if kind == "numeric":
        if not is_numeric:
            row = int((numbers.is_null() & cells.is_not_null()).arg_true()[0])
            raise Invalid.at(("rows", row, name), f"Expected a number in column {name!r}, got text in row {row}.")
        values = numbers.fill_null(float("nan")).to_numpy().astype(np.float64)
        _check_finite(name, values)
        if is_integer or (is_csv and len(present) and not present.str.contains(r"^[+-]?0\d").any()):
            return Column(name, kind, values, posted="int" if is_integer else "float")
        return Column(name, kind, values, posted="str", **_spelled(cells))
    if kind == "boolean":
        if not is_boolean and len(present):
            raise Invalid.at((name,), f"Expected true or false in column {name!r}, got other texts.")
        truth = cells.str.to_lowercase().replace_strict(
            {"true": 1.0, "false": 0.0}, default=None, return_dtype=pl.Float64
        )
        return Column(
            name, kind, truth.fill_null(float("nan")).to_numpy().astype(np.float64), posted="str", **_spelled(cells)
        )
    codes, texts = _coded(cells)
    return Column(name, kind, codes, texts, posted="int" if is_integer else "str")


def _infer(present: pl.Series, *, is_numeric: bool, is_boolean: bool) -> Kind:
    if is_numeric:
        return "numeric"
    if is_boolean:
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
    # only a target needs its spellings, and a target has few
    return {"codes": codes, "spellings": spellings} if len(spellings) <= 10 * MAX_CATEGORIES else {}


def _check_finite(name: str, values: NDArray[Any]) -> None:
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        row = int(infinite[0])
        raise Invalid.at(
            ("rows", row, name), f"Expected finite numbers in column {name!r}, got an infinite one in row {row}."
        )


def _json(path: Path, bounds: Bounds, kinds: Mapping[str, Kind]) -> Table:
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise Malformed(f"Expected JSON: {error}.") from error
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
    if not isinstance(columns, dict) or not columns:
        raise Invalid.at(("columns",), f"Expected columns to be an object of lists, got {_type(columns)}.")
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
    return Table(tuple(made), "y" if "y" in names and "x0" in names else names[-1], tuple(warnings))


def _value_column(name: str, cells: list[Any], kind: Kind | None) -> Column:
    types = {type(cell) for cell in cells} - {type(None)}
    if types <= {int, float} and kind in (None, "numeric"):
        values = np.array([np.nan if cell is None else cell for cell in cells], np.float64)
        _check_finite(name, values)
        is_integer = types == {int} and (not len(values) or np.nanmax(np.abs(values)) <= _MAX_EXACT)
        return Column(name, "numeric", values, posted="int" if is_integer else "float")
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
    texts = pl.Series(
        [None if c is None else str(c).lower() if isinstance(c, bool) else str(c) for c in cells], dtype=pl.String
    )
    column = _text_column(name, texts, kind, is_csv=False)
    return column if column.is_number else replace(column, posted=_POSTED[types.pop()] if len(types) == 1 else "str")


_POSTED: dict[type, Posted] = {int: "int", float: "float", bool: "bool", str: "str"}


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
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, MemoryError) as error:
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
    if kind == "categorical":
        texts = [None if v != v else repr(v) if isinstance(v, float) else str(v) for v in values.tolist()]
        return _text_column(name, pl.Series(texts, dtype=pl.String), kind, is_csv=False)
    posted: Posted = {"b": "bool", "f": "float"}.get(values.dtype.kind, "int")  # type: ignore[assignment]
    numbers = values.astype(np.float32 if values.dtype in (np.float32, np.float16) else np.float64)
    _check_finite(name, numbers)
    return Column(name, kind or ("boolean" if posted == "bool" else "numeric"), numbers, posted=posted)


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
    if y.dtype.kind != "U":
        raise Invalid.at(("y",), f"Expected y of numbers, booleans or texts, got {y.dtype}.")
    return _text_column("y", pl.Series(y.tolist(), dtype=pl.String), kind or "categorical", is_csv=False)


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


_PARSERS = {"csv": _csv, "tsv": _csv, "json": _json, "npz": _npz}
