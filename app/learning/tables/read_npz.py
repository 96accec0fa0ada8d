"""NPZ files to tables: the columns of `x` and the labels `y`."""

from __future__ import annotations

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid, Malformed, TooLarge
from app.learning.tables.column import Column, ColumnKind
from app.learning.tables.incoming_table import IncomingTable, MemoryBudget, TableLimits, check_rows
from app.learning.tables.infer_columns import column_from_array, column_from_values
from app.learning.tables.parse_text import read_npy_header

#: errors that the standard library raises on a broken archive, array header or compressed stream
_UNREADABLE = (
    *(ValueError, TypeError, OSError, EOFError, KeyError, MemoryError, RuntimeError, SyntaxError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
_BROKEN = "Expected an NPZ file of plain arrays (no pickled objects) that could be read to its end."


def read_npz(path: Path, limits: TableLimits, kinds: Mapping[str, ColumnKind], budget: MemoryBudget) -> IncomingTable:
    """Read an NPZ file as a table: `y` at once, `x` once for each group of its columns."""
    try:
        x, y = _open(path, limits)
    except _UNREADABLE as error:
        raise Malformed(_BROKEN) from error
    if len(x.shape) != 2 or x.shape[1] == 0 or x.dtype.kind not in "fiub":
        raise Invalid.at(("x",), f"Expected x of shape (rows, columns) of numbers, got {x.shape} of {x.dtype}.")
    rows, width = x.shape
    if rows != len(np.atleast_1d(y)):
        raise Invalid.at(("y",), f"Expected as many labels as rows, got {rows} rows and y of shape {y.shape}.")
    check_rows(rows, limits)
    if width + 1 > limits.columns:
        raise TooLarge(f"Expected at most {limits.columns} columns, got {width + 1}.")

    def columns() -> Iterator[Column]:
        for group in budget.passes([rows * x.dtype.itemsize] * width):
            try:
                arrays = x.read(group, budget.block_bytes)
            except _UNREADABLE as error:
                raise Malformed(_BROKEN) from error
            for i, values in zip(group, arrays, strict=True):
                yield column_from_array(f"x{i}", values, kinds.get(f"x{i}"))
        yield _target(y, kinds.get("y"))

    return IncomingTable([*(f"x{i}" for i in range(width)), "y"], rows, columns())


@dataclass(frozen=True)
class _StoredArray:
    """An array in an archive, of which only the header has been read: (n, d), or another shape that is yet to be refused."""

    path: Path
    member: str
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    def read(self, group: range, block_bytes: int) -> NDArray[Any]:
        """Read some columns, as (columns, n), a block of rows at a time."""
        rows, width = self.shape
        columns = np.empty((len(group), rows), self.dtype)
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            read_npy_header(file)
            if self.is_fortran:
                file.seek(group.start * rows * self.dtype.itemsize, 1)
                for column in columns:
                    column[:] = self._numbers(file.read(column.nbytes), rows)
                return columns
            step = max(1, block_bytes // (width * self.dtype.itemsize))
            for start in range(0, rows, step):
                count = min(step, rows - start)
                block = self._numbers(file.read(count * width * self.dtype.itemsize), count * width)
                columns[:, start : start + count] = block.reshape(count, width)[:, group.start : group.stop].T
        return columns

    def _numbers(self, body: bytes, count: int) -> NDArray[Any]:
        if len(body) != count * self.dtype.itemsize:
            raise EOFError(f"Expected {count} numbers, got the end of the array.")
        return np.frombuffer(body, self.dtype)


def _open(path: Path, limits: TableLimits) -> tuple[_StoredArray, NDArray[Any]]:
    """Read the header of x, and y."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
        if declared > 8 * limits.cells:
            raise TooLarge(f"Expected arrays of at most {8 * limits.cells} bytes, got {declared}.")
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != {"x", "y"}:
                raise Invalid(
                    f"Expected the arrays x and y, got {', '.join(repr(n[:40]) for n in sorted(file.files)[:5]) or 'none'}."
                )
            y = file["y"]
        member = archive.getinfo("x.npy")
        with archive.open(member) as array:
            x = _StoredArray(path, "x.npy", *read_npy_header(array))
            size = math.prod(x.shape) * x.dtype.itemsize
            if x.dtype.hasobject or min(x.shape, default=0) < 0 or size > member.file_size - array.tell():
                raise ValueError(f"Expected {size} bytes of numbers, got {member.file_size}.")
    return x, y.astype(object) if y.dtype.kind == "U" else y


def _target(y: NDArray[Any], kind: ColumnKind | None) -> Column:
    if y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "fiub":
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            row = int(np.flatnonzero(~((np.isin(y, (0, 1)).all(axis=1)) & (y.sum(axis=1) == 1)))[0])
            raise Invalid.at(("y", row), f"Expected one-hot labels, one 1 and zeros, in row {row} of y.")
        y = y.argmax(axis=1)
    if y.ndim != 1:
        raise Invalid.at(("y",), f"Expected y of shape (rows,) or one-hot (rows, classes), got {y.shape}.")
    if y.dtype.kind in "fiub":
        return column_from_array("y", y, kind)
    if y.dtype.kind != "O":
        raise Invalid.at(("y",), f"Expected y of numbers, booleans or texts, got {y.dtype}.")
    return column_from_values("y", y.tolist(), kind or "categorical")
