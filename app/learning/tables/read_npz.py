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
from app.learning.tables.infer_columns import (
    MemoryBudget,
    Source,
    TableLimits,
    check_rows,
    column_of_array,
    column_of_values,
)
from app.learning.tables.parse_text import npy_header
from app.learning.tables.table import Column, Kind

#: what the standard library raises on a broken archive, array header or compressed stream
_UNREADABLE = (
    *(ValueError, TypeError, OSError, EOFError, KeyError, MemoryError, RuntimeError, SyntaxError, struct.error),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)
_BROKEN = "Expected an NPZ file of plain arrays (no pickled objects) that could be read to its end."


def npz(path: Path, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget) -> Source:
    """Read an NPZ file as a table: `y` at once, `x` once for each group of its columns."""
    try:
        x, y = _open(path, bounds)
    except _UNREADABLE as error:
        raise Malformed(_BROKEN) from error
    if len(x.shape) != 2 or x.shape[1] == 0 or x.dtype.kind not in "fiub":
        raise Invalid.at(("x",), f"Expected x of shape (rows, columns) of numbers, got {x.shape} of {x.dtype}.")
    rows, width = x.shape
    if rows != len(np.atleast_1d(y)):
        raise Invalid.at(("y",), f"Expected as many labels as rows, got {rows} rows and y of shape {y.shape}.")
    check_rows(rows, bounds)
    if width + 1 > bounds.columns:
        raise TooLarge(f"Expected at most {bounds.columns} columns, got {width + 1}.")

    def columns() -> Iterator[Column]:
        for group in portions.groups([rows * x.dtype.itemsize] * width):
            try:
                found = x.read(group, portions.block_bytes)
            except _UNREADABLE as error:
                raise Malformed(_BROKEN) from error
            for i, values in zip(group, found, strict=True):
                yield column_of_array(f"x{i}", values, kinds.get(f"x{i}"))
        yield _array_target(y, kinds.get("y"))

    return Source([*(f"x{i}" for i in range(width)), "y"], rows, columns())


@dataclass(frozen=True)
class _Matrix:
    """An array in an archive: (n, d), or of another shape that is yet to be refused."""

    path: Path
    member: str
    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[Any]

    def read(self, group: range, block_bytes: int) -> NDArray[Any]:
        """Read some columns, as (columns, n), a block of rows at a time."""
        rows, width = self.shape
        found = np.empty((len(group), rows), self.dtype)
        with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
            npy_header(file)
            if self.is_fortran:
                file.seek(group.start * rows * self.dtype.itemsize, 1)
                for column in found:
                    column[:] = self._numbers(file.read(column.nbytes), rows)
                return found
            step = max(1, block_bytes // (width * self.dtype.itemsize))
            for start in range(0, rows, step):
                count = min(step, rows - start)
                block = self._numbers(file.read(count * width * self.dtype.itemsize), count * width)
                found[:, start : start + count] = block.reshape(count, width)[:, group.start : group.stop].T
        return found

    def _numbers(self, read: bytes, count: int) -> NDArray[Any]:
        if len(read) != count * self.dtype.itemsize:
            raise EOFError(f"Expected {count} numbers, got the end of the array.")
        return np.frombuffer(read, self.dtype)


def _open(path: Path, bounds: TableLimits) -> tuple[_Matrix, NDArray[Any]]:
    """Give x, of which nothing is read but its header, and y."""
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
        if declared > 8 * bounds.cells:
            raise TooLarge(f"Expected arrays of at most {8 * bounds.cells} bytes, got {declared}.")
        with np.load(path, allow_pickle=False) as file:
            if set(file.files) != {"x", "y"}:
                raise Invalid(
                    f"Expected the arrays x and y, got {', '.join(repr(n[:40]) for n in sorted(file.files)[:5]) or 'none'}."
                )
            y = file["y"]
        member = archive.getinfo("x.npy")
        with archive.open(member) as array:
            x = _Matrix(path, "x.npy", *npy_header(array))
            size = math.prod(x.shape) * x.dtype.itemsize
            if x.dtype.hasobject or min(x.shape, default=0) < 0 or size > member.file_size - array.tell():
                raise ValueError(f"Expected {size} bytes of numbers, got {member.file_size}.")
    return x, y.astype(object) if y.dtype.kind == "U" else y


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
