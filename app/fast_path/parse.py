"""Bodies of numbers alone, as matrices, without a Python object for each number. Knows no encoder.

Where a function returns None, `read_rows` reads the body, and says what is wrong with it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import simdjson
from numpy.typing import NDArray

from app.learning.encoding.numeric_inputs import Matrix
from app.learning.tables.parse_text import NPY_HEADER_ERRORS, read_npy_header

#: magic, version and length of a header in NPY's first format
_NPY_PREFIX = 10


class MatrixReader:
    """Reads one body at a time: its parser keeps memory between bodies."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def read(self, form: str, body: bytes, columns: int) -> Matrix | None:
        """Read n ≥ 1 rows.

        Args:
            form: "json" for `{"x": [[…], …]}`, "float32" or "npy".

        Returns:
            (n, columns), or None. A number may be NaN or infinite where the form has such numbers.
        """
        if form == "json":
            return self.read_json(body, "x", columns)
        return _float32(body, columns) if form == "float32" else _npy(body, columns)

    def read_json(self, body: bytes, key: str, columns: int) -> NDArray[np.float64] | None:
        """Read n ≥ 1 rows from an object with one key, (n, columns), or None."""
        document = rows = None
        # nothing before the first brace: simdjson skips a byte order mark, which is no JSON
        if not body.startswith(b"{"):
            return None
        try:
            document = self._parser.parse(body)
            # of equal keys simdjson returns the first, orjson the last; the length counts both
            if not isinstance(document, simdjson.Object) or len(document) != 1:
                return None
            rows = document[key]
            if not isinstance(rows, simdjson.Array):
                return None
            return _flat(rows, body, columns)
        except (ValueError, KeyError, TypeError, RuntimeError):
            return None
        finally:
            # the parser refuses the next body while an object points into this one
            del document, rows

    def read_tensor(
        self, body: bytes, inputs: Sequence[str]
    ) -> tuple[NDArray[np.float64], Mapping[str, object]] | None:
        """Read the one tensor of an inference request in JSON, a matrix of numbers in all columns.

        Args:
            inputs: the columns; a tensor with one of these names is a column, not a matrix.

        Returns:
            (n, columns) with n ≥ 1, and the request without its inputs; or None.
        """
        document = None
        if not body.startswith(b"{"):
            return None
        try:
            document = self._parser.parse(body)
            return _tensor(document, body, inputs) if isinstance(document, simdjson.Object) else None
        except (ValueError, KeyError, TypeError, RuntimeError, IndexError):
            return None
        finally:
            del document


def _tensor(
    document: Any, body: bytes, inputs: Sequence[str]
) -> tuple[NDArray[np.float64], Mapping[str, object]] | None:
    keys = list(document.keys())
    if len(set(keys)) != len(keys) or not {"inputs"} <= set(keys) <= {"id", "inputs", "outputs", "parameters"}:
        return None
    (tensor,) = tensors = document["inputs"]
    name, data, shape = tensor["name"], tensor["data"], tensor["shape"]
    if len(tensor) != 4 or tensor["datatype"] not in ("FP32", "FP64") or not isinstance(name, str) or name in inputs:
        return None
    if not all(isinstance(part, simdjson.Array) for part in (tensors, data, shape, document.get("outputs", data))):
        return None
    count, width = shape
    if (type(count), type(width), width) != (int, int, len(inputs)) or not count:
        return None
    is_nested = isinstance(data[0], simdjson.Array)
    # the lists of inputs, shape and data, of each row, and of outputs
    lists = 3 + (count if is_nested else 0) + ("outputs" in keys)
    if len(data) != (count if is_nested else count * width) or not _has_lists(body, lists):
        return None
    if is_nested and any(not isinstance(row, simdjson.Array) or len(row) != width for row in data):
        return None
    numbers = np.frombuffer(data.as_buffer(of_type="d"), np.float64)
    if len(numbers) != count * width:
        return None
    return numbers.reshape(count, width), {key: _to_python(document[key]) for key in keys if key != "inputs"}


def _to_python(value: Any) -> object:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


def _flat(rows: simdjson.Array, body: bytes, columns: int) -> NDArray[np.float64] | None:
    count = len(rows)
    # simdjson's buffer flattens nested lists: there must be one list of rows, and no list inside of a row
    if not count or not _has_lists(body, count + 1):
        return None
    numbers = np.frombuffer(rows.as_buffer(of_type="d"), np.float64)
    if len(numbers) != count * columns or (count > 1 and any(len(row) != columns for row in rows)):  # type: ignore[arg-type]
        return None
    return numbers.reshape(count, columns)


def _has_lists(body: bytes, lists: int) -> bool:
    """Return whether exactly that many lists begin in a body. `bytes.count` looks at each byte, `find` at many at once."""
    place = -1
    for _ in range(lists):
        place = body.find(b"[", place + 1)
        if place < 0:
            return False
    return body.find(b"[", place + 1) < 0


def _float32(body: bytes, columns: int) -> NDArray[np.float32] | None:
    if not body or len(body) % (4 * columns):
        return None
    return np.frombuffer(body, "<f4").reshape(-1, columns)


def _npy(body: bytes, columns: int) -> Matrix | None:
    # in NPY's first format the header's length is two bytes
    if body[:8] != b"\x93NUMPY\x01\x00":
        return None
    start = _NPY_PREFIX + int.from_bytes(body[8:_NPY_PREFIX], "little")
    dtype, rows = _npy_rows(body[:start], columns)
    if dtype is None or not rows or len(body) - start != rows * columns * dtype.itemsize:
        return None
    return np.frombuffer(body, dtype, offset=start).reshape(rows, columns)


@lru_cache(maxsize=256)
def _npy_rows(head: bytes, columns: int) -> tuple[np.dtype[Any] | None, int]:
    """Read a header, which costs more than the numbers of one row; clients send the same header again and again."""
    try:
        shape, is_fortran, dtype = read_npy_header(io.BytesIO(head))
    except NPY_HEADER_ERRORS:
        return None, 0
    is_plain = dtype in (np.dtype("<f4"), np.dtype("<f8")) and len(shape) == 2 and not is_fortran
    return (dtype, shape[0]) if is_plain and shape[1] == columns else (None, 0)
