"""Predictions in Parquet and Arrow: bodies to a frame that needs no polars to be read, and answers to Arrow.

The serving process imports no polars, so the parser process runs this for it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from app.learning.tables.incoming_table import TableLimits, check_names, check_rows
from app.learning.tables.read_arrow import check_64_bits, check_schema, decoded, scan_parquet, to_texts

#: integer types of at most 64 bits
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)


def to_frame(path: Path, form: str, limits: TableLimits) -> bytes:
    """Turn a Parquet or Arrow file into the form "frame" of `requests.read_rows`.

    A frame is a line of JSON, `{"rows": n, "columns": {name: values, or the type of an array of numbers}}`, and then
    the arrays' bytes. In an array NaN is missing.

    Args:
        form: "parquet", "arrow_file" or "arrow_stream".

    Raises:
        Malformed: the bytes are not of this form.
        Invalid, TooLarge: the rows cannot be predicted, or are over the limits.
    """
    frame = _READERS[form](path, limits)
    columns: dict[str, list[Any] | str] = {}
    arrays: list[bytes] = []
    for name, series in zip(check_names(frame.columns, limits)[0], frame, strict=True):
        values = _values(series)
        if isinstance(values, np.ndarray):
            arrays.append(values.tobytes())
            columns[name] = values.dtype.str
        else:
            columns[name] = values
    return b"".join([orjson.dumps({"rows": frame.height, "columns": columns}), b"\n", *arrays])


def _values(series: pl.Series) -> list[Any] | NDArray[Any]:
    if series.dtype.is_float() or series.dtype.is_decimal():
        return series.cast(pl.Float64).fill_null(float("nan")).to_numpy()
    if series.dtype in _INTEGERS and not series.has_nulls():
        return series.to_numpy()
    return (series if series.dtype.is_numeric() or series.dtype == pl.Boolean else to_texts(series)).to_list()


def _read_parquet(path: Path, limits: TableLimits) -> pl.DataFrame:
    lazy, _ = decoded("Parquet", lambda: scan_parquet(path, limits))
    return _checked(decoded("Parquet", lambda: lazy.head(limits.rows + 1).collect()), limits)


def _read_arrow_file(path: Path, limits: TableLimits) -> pl.DataFrame:
    with path.open("rb") as file:
        return _checked(decoded("an Arrow IPC file", lambda: pl.read_ipc(file)), limits)


def _read_arrow_stream(path: Path, limits: TableLimits) -> pl.DataFrame:
    with path.open("rb") as file:
        return _checked(decoded("an Arrow IPC stream", lambda: pl.read_ipc_stream(file)), limits)


_READERS: dict[str, Callable[[Path, TableLimits], pl.DataFrame]] = {
    "parquet": _read_parquet,
    "arrow_file": _read_arrow_file,
    "arrow_stream": _read_arrow_stream,
}


def _checked(frame: pl.DataFrame, limits: TableLimits) -> pl.DataFrame:
    check_schema(frame.schema, limits)
    check_rows(frame.height, limits, frame.width)
    for series in frame:
        if series.dtype in (pl.Int128, pl.UInt128):
            check_64_bits(series)
    return frame


def write_arrow(columns: bytes, out: Path) -> None:
    """Write an answer as an Arrow stream.

    Args:
        columns: a JSON object; in `columns` probabilities become float32, and labels get the type of its `classes`.
    """
    document = orjson.loads(columns)
    label = pl.Series(document["classes"]).dtype
    series = [
        pl.Series(name, values, dtype=pl.Float32 if name.startswith("probability_") else label)
        for name, values in document["columns"].items()
    ]
    with out.open("wb") as file:
        pl.DataFrame(series).write_ipc_stream(file)
