"""Typed tables to ours, Parquet and Arrow; and back to Arrow. polars lives here, in `columns` and in `formats`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from app.errors import Invalid, Malformed
from app.learning.tables.infer_columns import (
    MemoryBudget,
    Source,
    TableLimits,
    check_rows,
    column_of_array,
    column_of_texts,
    column_of_values,
    named,
)
from app.learning.tables.table import Column, Kind

_T = TypeVar("_T")
#: those of 64 bits at most
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_Read = Callable[..., pl.DataFrame]


def parquet(path: Path, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget) -> Source:
    """Read a Parquet file as a table, some columns at a time."""
    lazy, rows = _decoded("Parquet", lambda: _scan_parquet(path, bounds))
    names = lazy.collect_schema().names()
    # a file that declares fewer than it holds is not unpacked beyond the limit either
    return _source(
        lazy.collect_schema(),
        rows,
        lambda group: _decoded("Parquet", lambda: lazy.select(names[i] for i in group).head(bounds.rows + 1).collect()),
        bounds,
        kinds,
        portions,
    )


def arrow_file(path: Path, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget) -> Source:
    """Read an Arrow IPC file as a table, some columns at a time."""
    return _arrow(path, "an Arrow IPC file", pl.read_ipc, bounds, kinds, portions)


def arrow_stream(path: Path, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget) -> Source:
    """Read an Arrow IPC stream as a table, some columns at a time."""
    return _arrow(path, "an Arrow IPC stream", pl.read_ipc_stream, bounds, kinds, portions)


def _arrow(
    path: Path, form: str, read: _Read, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget
) -> Source:
    def columns(group: Sequence[int] | None, n_rows: int | None = None) -> pl.DataFrame:
        with path.open("rb") as file:
            return read(file, columns=None if group is None else list(group), n_rows=n_rows)

    schema = _decoded(form, lambda: columns(None, 0)).schema
    _check_schema(schema, bounds)
    rows = _decoded(form, lambda: columns([0])).height if schema else 0
    check_rows(rows, bounds, len(schema))
    return _source(schema, rows, lambda group: _decoded(form, lambda: columns(group)), bounds, kinds, portions)


def _source(
    schema: pl.Schema,
    rows: int,
    read: Callable[[range], pl.DataFrame],
    bounds: TableLimits,
    kinds: Mapping[str, Kind],
    portions: MemoryBudget,
) -> Source:
    names, warnings = named(schema.names(), bounds)

    def columns() -> Iterator[Column]:
        # a text has a view of 16 bytes, and no type takes more
        for group in portions.groups([16 * rows] * len(names)):
            frame = read(group)
            if frame.height != rows:
                raise Malformed(f"Expected {rows} rows in each column, got {frame.height}.")
            series = frame.get_columns()[::-1]
            del frame
            for i in group:
                yield _column(names[i], series.pop(), kinds.get(names[i]))

    return Source(names, rows, columns(), warnings)


def _scan_parquet(path: Path, bounds: TableLimits) -> tuple[pl.LazyFrame, int]:
    lazy = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    schema = lazy.collect_schema()
    _check_schema(schema, bounds)
    # the declared size, before a page is decoded: a run of one value is a few bytes however long
    rows = lazy.select(pl.len()).collect().item()
    check_rows(rows, bounds, len(schema))
    return lazy, rows


def _read_parquet(path: Path, bounds: TableLimits) -> pl.DataFrame:
    lazy, _ = _decoded("Parquet", lambda: _scan_parquet(path, bounds))
    return _checked(_decoded("Parquet", lambda: lazy.head(bounds.rows + 1).collect()), bounds)


def _read_arrow_file(path: Path, bounds: TableLimits) -> pl.DataFrame:
    with path.open("rb") as file:
        return _checked(_decoded("an Arrow IPC file", lambda: pl.read_ipc(file)), bounds)


def _read_arrow_stream(path: Path, bounds: TableLimits) -> pl.DataFrame:
    with path.open("rb") as file:
        return _checked(_decoded("an Arrow IPC stream", lambda: pl.read_ipc_stream(file)), bounds)


def _checked(frame: pl.DataFrame, bounds: TableLimits) -> pl.DataFrame:
    _check_schema(frame.schema, bounds)
    check_rows(frame.height, bounds, frame.width)
    for series in frame:
        if series.dtype in (pl.Int128, pl.UInt128):
            _check_64_bits(series)
    return frame


def _check_64_bits(series: pl.Series) -> None:
    """Refuse an integer that the JSON of an answer could not carry."""
    for row, value in enumerate(series.to_list()):
        if value is not None and not -(2**63) <= value < 2**64:
            raise Invalid.at(
                ("rows", row, series.name),
                f"Expected integers of at most 64 bits in column {series.name!r}, got a longer one in row {row}.",
            )


def _decoded(form: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    # a hostile file can make the reader panic, which is no Exception
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise Malformed(f"Expected {form} with different column names that could be read to its end.") from error


def _check_schema(schema: pl.Schema, bounds: TableLimits) -> None:
    named(list(schema.names()), bounds)
    for name, dtype in schema.items():
        if (
            dtype.is_nested()
            or dtype in (pl.Binary, pl.Time, pl.Duration, pl.Object)
            or isinstance(dtype, pl.BaseExtension)
        ):
            raise Invalid.at(
                ("columns", name),
                f"Expected numbers, texts, booleans, dates or date-times in column {name!r}, got {_spell(dtype)}.",
            )


def _spell(dtype: pl.DataType) -> str:
    return type(dtype).__name__.lower()


def _column(name: str, series: pl.Series, kind: Kind | None) -> Column:
    if series.dtype in (pl.Int128, pl.UInt128):
        _check_64_bits(series)
    if series.dtype.is_float() or series.dtype.is_decimal():
        numbers = series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return column_of_array(name, numbers.astype(np.float32 if series.dtype == pl.Float32 else np.float64), kind)
    if series.dtype.is_integer() or series.dtype == pl.Boolean:
        return column_of_values(name, series.to_list(), kind)
    return column_of_texts(name, _texts(series), kind, is_csv=False)


def _texts(series: pl.Series) -> pl.Series:
    if isinstance(series.dtype, pl.Datetime):
        return series.dt.to_string("iso:strict")
    return series.cast(pl.String)


def transcode(path: Path, form: str, bounds: TableLimits) -> bytes:
    """Turn a Parquet or Arrow file into what `rows.decode` reads as "frame".

    That is a line of JSON, `{"rows": n, "columns": {name: values, or the type of an array of numbers}}`, and the arrays' bytes.
    In an array NaN is missing.

    Args:
        form: "parquet", "arrow_file" or "arrow_stream".
    """
    frame = _FRAMES[form](path, bounds)
    columns: dict[str, list[Any] | str] = {}
    arrays: list[bytes] = []
    for name, series in zip(named(frame.columns, bounds)[0], frame, strict=True):
        values = _posted(series)
        if isinstance(values, np.ndarray):
            arrays.append(values.tobytes())
            columns[name] = values.dtype.str
        else:
            columns[name] = values
    return b"".join([orjson.dumps({"rows": frame.height, "columns": columns}), b"\n", *arrays])


def _posted(series: pl.Series) -> list[Any] | NDArray[Any]:
    if series.dtype.is_float() or series.dtype.is_decimal():
        return series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if series.dtype in _INTEGERS and not series.has_nulls():
        return series.to_numpy()
    return (series if series.dtype.is_numeric() or series.dtype == pl.Boolean else _texts(series)).to_list()


def write_arrow(columns: bytes, out: Path) -> None:
    """Write a JSON object of `columns` as an Arrow stream: probabilities are float32, the others labels as `classes`."""
    document = orjson.loads(columns)
    label = pl.Series(document["classes"]).dtype
    series = [
        pl.Series(name, values, dtype=pl.Float32 if name.startswith("probability_") else label)
        for name, values in document["columns"].items()
    ]
    with out.open("wb") as file:
        pl.DataFrame(series).write_ipc_stream(file)


_FRAMES: dict[str, Callable[[Path, TableLimits], pl.DataFrame]] = {
    "parquet": _read_parquet,
    "arrow_file": _read_arrow_file,
    "arrow_stream": _read_arrow_stream,
}
