"""Rows written in every form that a prediction or an evaluation may come in."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

Columns = Mapping[str, list[Any]]

PARQUET = "application/vnd.apache.parquet"
STREAM, FILE = "application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file"
NPY, NPZ, RAW = "application/x-npy", "application/x-npz", "application/octet-stream"


def rows_of(columns: Columns) -> list[list[Any]]:
    """Turn columns into rows."""
    return [list(row) for row in zip(*columns.values(), strict=True)]


def records(columns: Columns) -> bytes:
    """Write JSON records; those of even rows lack what is missing, the others say null."""
    found = [dict(zip(columns, row, strict=True)) for row in rows_of(columns)]
    kept = [{n: c for n, c in each.items() if c is not None or i % 2} for i, each in enumerate(found)]
    # what no record names would be no column
    return json.dumps({"records": [{**dict.fromkeys(columns), **kept[0]}, *kept[1:]]}).encode()


def by_columns(columns: Columns) -> bytes:
    """Write JSON columns."""
    return json.dumps({"columns": columns}, ensure_ascii=False).encode()


def matrix(columns: Columns) -> bytes:
    """Write JSON rows in the order of the inputs."""
    return json.dumps({"x": rows_of(columns)}).encode()


def ndjson(columns: Columns) -> bytes:
    """Write a record a line, with a blank line at the end."""
    lines = [json.dumps(dict(zip(columns, row, strict=True))) for row in rows_of(columns)]
    return ("\n".join(lines) + "\n\n").encode()


def delimited(delimiter: str, missing: str = "", mark: str = "") -> Callable[[Columns], bytes]:
    """Make a writer of CSV, the columns in the reverse order."""

    def write(columns: Columns) -> bytes:
        turned = {name: columns[name] for name in [*columns][::-1]}
        out = io.StringIO()
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerow(turned)
        writer.writerows([missing if cell is None else cell for cell in row] for row in rows_of(turned))
        return (mark + out.getvalue()).encode()

    return write


def frame(columns: Columns) -> pl.DataFrame:
    """Make a frame, each column of the one type that its cells have."""
    return pl.DataFrame([pl.Series(name, cells, strict=True) for name, cells in columns.items()])


def parquet(columns: Columns) -> bytes:
    """Write a Parquet file."""
    out = io.BytesIO()
    frame(columns).write_parquet(out)
    return out.getvalue()


def arrow_stream(columns: Columns) -> bytes:
    """Write an Arrow IPC stream."""
    out = io.BytesIO()
    frame(columns).write_ipc_stream(out, compression="zstd")
    return out.getvalue()


def arrow_file(columns: Columns) -> bytes:
    """Write an Arrow IPC file."""
    out = io.BytesIO()
    frame(columns).write_ipc(out, compression="zstd")
    return out.getvalue()


def array(columns: Columns, dtype: str = "<f8") -> np.ndarray[Any, Any]:
    """Make a matrix of numbers, NaN where missing."""
    return np.array([[np.nan if cell is None else cell for cell in row] for row in rows_of(columns)], dtype)


def npy(x: Any) -> bytes:
    """Write an array as NPY."""
    out = io.BytesIO()
    np.save(out, x, allow_pickle=True)
    return out.getvalue()


def npz(compressed: bool = False, **arrays: Any) -> bytes:
    """Write arrays as NPZ."""
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


#: forms whose columns have names and whose cells may be anything: Content-Type and writer
NAMED: dict[str, tuple[str, Callable[[Columns], bytes]]] = {
    "records": ("application/json", records),
    "columns": ("application/json", by_columns),
    "ndjson": ("application/x-ndjson", ndjson),
    "comma": ("text/csv", delimited(",")),
    "semicolon": ("text/csv; charset=utf-8", delimited(";", "NA", "\ufeff")),
    "tab": ("text/csv", delimited("\t", " ? ")),
    "pipe": ("text/csv", delimited("|", "null")),
    "tsv": ("text/tab-separated-values", delimited("\t", "N/A")),
}
#: forms whose columns have a type each
TYPED: dict[str, tuple[str, Callable[[Columns], bytes]]] = {
    "parquet": (PARQUET, parquet),
    "arrow_stream": (STREAM, arrow_stream),
    "arrow_file": (FILE, arrow_file),
}
#: matrices of numbers, without names
ARRAYS: dict[str, tuple[str, Callable[[Columns], bytes]]] = {
    "npy": (NPY, lambda columns: npy(array(columns))),
    "big endian": (NPY, lambda columns: npy(array(columns, ">f8"))),
    "Fortran": (NPY, lambda columns: npy(np.asfortranarray(array(columns)))),
    "npz": (NPZ, lambda columns: npz(x=array(columns))),
    "compressed": (NPZ, lambda columns: npz(compressed=True, x=array(columns))),
}
FLOAT32: dict[str, tuple[str, Callable[[Columns], bytes]]] = {
    "float32": (RAW, lambda columns: array(columns, "<f4").tobytes()),
    "npy float32": (NPY, lambda columns: npy(array(columns, "<f4"))),
}
EVERY = {**NAMED, "x": ("application/json", matrix), **TYPED}
