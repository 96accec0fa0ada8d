"""Parquet and Arrow files to tables, by groups of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from app.errors import Invalid, Malformed
from app.learning.tables.column import Column, ColumnKind
from app.learning.tables.incoming_table import IncomingTable, MemoryBudget, TableLimits, check_names, check_rows
from app.learning.tables.infer_columns import column_from_array, column_from_texts, column_from_values

_T = TypeVar("_T")
#: bytes that polars keeps of each text, beside the characters of longer texts; no other type takes more
_VIEW_BYTES = 16


def read_parquet(
    path: Path, limits: TableLimits, kinds: Mapping[str, ColumnKind], budget: MemoryBudget
) -> IncomingTable:
    """Read a Parquet file as a table, some columns at a time."""
    lazy, rows = decoded("Parquet", lambda: scan_parquet(path, limits))
    schema = lazy.collect_schema()
    names = schema.names()

    def read(group: range) -> pl.DataFrame:
        # a file that declares fewer rows than it holds is not unpacked beyond the limit either
        return decoded("Parquet", lambda: lazy.select(names[i] for i in group).head(limits.rows + 1).collect())

    return _incoming(schema, rows, read, limits, kinds, budget)


def read_arrow_file(
    path: Path, limits: TableLimits, kinds: Mapping[str, ColumnKind], budget: MemoryBudget
) -> IncomingTable:
    """Read an Arrow IPC file as a table, some columns at a time."""
    return _read_arrow(path, "an Arrow IPC file", pl.read_ipc, limits, kinds, budget)


def read_arrow_stream(
    path: Path, limits: TableLimits, kinds: Mapping[str, ColumnKind], budget: MemoryBudget
) -> IncomingTable:
    """Read an Arrow IPC stream as a table, some columns at a time."""
    return _read_arrow(path, "an Arrow IPC stream", pl.read_ipc_stream, limits, kinds, budget)


def _read_arrow(
    path: Path,
    form: str,
    read_frame: Callable[..., pl.DataFrame],
    limits: TableLimits,
    kinds: Mapping[str, ColumnKind],
    budget: MemoryBudget,
) -> IncomingTable:
    def read(group: Sequence[int] | None, n_rows: int | None = None) -> pl.DataFrame:
        with path.open("rb") as file:
            columns = None if group is None else list(group)
            return decoded(form, lambda: read_frame(file, columns=columns, n_rows=n_rows))

    schema = read(None, 0).schema
    check_schema(schema, limits)
    rows = read([0]).height if schema else 0
    check_rows(rows, limits, len(schema))
    return _incoming(schema, rows, read, limits, kinds, budget)


def _incoming(
    schema: pl.Schema,
    rows: int,
    read: Callable[[range], pl.DataFrame],
    limits: TableLimits,
    kinds: Mapping[str, ColumnKind],
    budget: MemoryBudget,
) -> IncomingTable:
    names, warnings = check_names(schema.names(), limits)

    def columns() -> Iterator[Column]:
        for group in budget.passes([_VIEW_BYTES * rows] * len(names)):
            frame = read(group)
            if frame.height != rows:
                raise Malformed(f"Expected {rows} rows in each column, got {frame.height}.")
            series = frame.get_columns()[::-1]
            del frame
            for i in group:
                yield _column(names[i], series.pop(), kinds.get(names[i]))

    return IncomingTable(names, rows, columns(), warnings)


def _column(name: str, series: pl.Series, kind: ColumnKind | None) -> Column:
    if series.dtype in (pl.Int128, pl.UInt128):
        check_64_bits(series)
    if series.dtype.is_float() or series.dtype.is_decimal():
        numbers = series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        return column_from_array(name, numbers.astype(np.float32 if series.dtype == pl.Float32 else np.float64), kind)
    if series.dtype.is_integer() or series.dtype == pl.Boolean:
        return column_from_values(name, series.to_list(), kind)
    return column_from_texts(name, to_texts(series), kind, is_csv=False)


def to_texts(series: pl.Series) -> pl.Series:
    """Spell the values of a column of texts, dates or date-times."""
    if isinstance(series.dtype, pl.Datetime):
        return series.dt.to_string("iso:strict")
    return series.cast(pl.String)


def decoded(form: str, read: Callable[[], _T]) -> _T:
    """Return what `read` returns; whatever polars raises about a file becomes `Malformed`."""
    try:
        return read()
    # a hostile file can make the reader panic, and PanicException is no Exception
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
        raise Malformed(f"Expected {form} with different column names that could be read to its end.") from error


def scan_parquet(path: Path, limits: TableLimits) -> tuple[pl.LazyFrame, int]:
    """Open a Parquet file, and refuse it by its schema and by the number of rows that it declares."""
    lazy = pl.scan_parquet(path, glob=False, hive_partitioning=False)
    schema = lazy.collect_schema()
    check_schema(schema, limits)
    # the declared size is checked before a page is decoded: a run of one value is a few bytes however long
    rows = lazy.select(pl.len()).collect().item()
    check_rows(rows, limits, len(schema))
    return lazy, rows


def check_schema(schema: pl.Schema, limits: TableLimits) -> None:
    """Refuse a file by its columns' names and types.

    Raises:
        Invalid, TooLarge: as `check_names`; or a column of another type than numbers, texts, booleans and dates.
    """
    check_names(list(schema.names()), limits)
    for name, dtype in schema.items():
        if (
            dtype.is_nested()
            or dtype in (pl.Binary, pl.Time, pl.Duration, pl.Object)
            or isinstance(dtype, pl.BaseExtension)
        ):
            raise Invalid.at(
                ("columns", name),
                f"Expected numbers, texts, booleans, dates or date-times in column {name!r}, got {_type_name(dtype)}.",
            )


def _type_name(dtype: pl.DataType) -> str:
    return type(dtype).__name__.lower()


def check_64_bits(series: pl.Series) -> None:
    """Raise `Invalid` about an integer that the JSON of an answer could not carry."""
    for row, value in enumerate(series.to_list()):
        if value is not None and not -(2**63) <= value < 2**64:
            raise Invalid.at(
                ("rows", row, series.name),
                f"Expected integers of at most 64 bits in column {series.name!r}, got a longer one in row {row}.",
            )
