"""Bodies of numbers alone, as matrices, without a Python object for each number. Knows no encoder.

What is not vouched for here gives None: `rows.decode` reads it then, and words what is wrong with it.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import numpy as np
import simdjson
from numpy.typing import NDArray

from app.learning.rows import NO_HEADER, npy_header

Matrix = NDArray[np.float64] | NDArray[np.float32]
#: magic, version and length of a header in NPY's first format
_NPY_PREFIX = 10


class MatrixReader:
    """Reads one body at a time: its parser keeps memory between them."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def read(self, form: str, body: bytes, columns: int) -> Matrix | None:
        """Read n ≥ 1 rows.

        Args:
            form: "json" for `{"x": [[…], …]}`, "float32" or "npy".

        Returns:
            (n, columns), or None. A number may be NaN or infinite where its form has such numbers.
        """
        if form == "json":
            return self._json(body, columns)
        return _float32(body, columns) if form == "float32" else _npy(body, columns)

    def _json(self, body: bytes, columns: int) -> NDArray[np.float64] | None:
        document = rows = None
        # nothing before the first brace: simdjson skips a byte order mark, which is no JSON
        if not body.startswith(b"{"):
            return None
        try:
            document = self._parser.parse(body)
            # of equal keys simdjson means the first, orjson the last; its length counts both
            if not isinstance(document, simdjson.Object) or len(document) != 1:
                return None
            rows = document["x"]
            if not isinstance(rows, simdjson.Array):
                return None
            return _flat(rows, body, columns)
        except (ValueError, KeyError, TypeError, RuntimeError):
            return None
        finally:
            # the parser is not used again while something points into it
            del document, rows


def _flat(rows: simdjson.Array, body: bytes, columns: int) -> NDArray[np.float64] | None:
    count = len(rows)
    # the buffer flattens whatever is nested: there must be one list of rows, and no list inside of a row
    if not count or not _opens(body, count + 1):
        return None
    numbers = np.frombuffer(rows.as_buffer(of_type="d"), np.float64)
    if len(numbers) != count * columns or (count > 1 and any(len(row) != columns for row in rows)):  # type: ignore[arg-type]
        return None
    return numbers.reshape(count, columns)


def _opens(body: bytes, lists: int) -> bool:
    """Tell whether so many lists begin in a body; `bytes.count` looks at each byte, `find` at many at once."""
    at = -1
    for _ in range(lists):
        at = body.find(b"[", at + 1)
        if at < 0:
            return False
    return body.find(b"[", at + 1) < 0


def _float32(body: bytes, columns: int) -> NDArray[np.float32] | None:
    if not body or len(body) % (4 * columns):
        return None
    return np.frombuffer(body, "<f4").reshape(-1, columns)


def _npy(body: bytes, columns: int) -> Matrix | None:
    # in the first format the header's length is two bytes
    if body[:8] != b"\x93NUMPY\x01\x00":
        return None
    start = _NPY_PREFIX + int.from_bytes(body[8:_NPY_PREFIX], "little")
    dtype, rows = _npy_rows(body[:start], columns)
    if dtype is None or not rows or len(body) - start != rows * columns * dtype.itemsize:
        return None
    return np.frombuffer(body, dtype, offset=start).reshape(rows, columns)


@lru_cache(maxsize=256)
def _npy_rows(head: bytes, columns: int) -> tuple[np.dtype[Any] | None, int]:
    """Read a header, which costs more than the numbers of one row; callers send the same one again and again."""
    try:
        shape, is_fortran, dtype = npy_header(io.BytesIO(head))
    except NO_HEADER:
        return None, 0
    is_plain = dtype in (np.dtype("<f4"), np.dtype("<f8")) and len(shape) == 2 and not is_fortran
    return (dtype, shape[0]) if is_plain and shape[1] == columns else (None, 0)
