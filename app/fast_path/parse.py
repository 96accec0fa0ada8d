"""Bodies of numbers alone, as matrices, without a Python object for each number. Knows no encoder.

What is not vouched for here gives None: `rows.decode` reads it then, and words what is wrong with it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import simdjson
from numpy.typing import NDArray

from app.learning.tables.parse_text import NPY_HEADER_ERRORS, read_npy_header

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
            # of equal keys simdjson means the first, orjson the last; its length counts both
            if not isinstance(document, simdjson.Object) or len(document) != 1:
                return None
            rows = document[key]
            if not isinstance(rows, simdjson.Array):
                return None
            return _flat(rows, body, columns)
        except (ValueError, KeyError, TypeError, RuntimeError):
            return None
        finally:
            # the parser is not used again while something points into it
            del document, rows

    def read_tensor(self, body: bytes, inputs: Sequence[str]) -> tuple[NDArray[np.float64], dict[str, Any]] | None:
        """Read the one tensor of an inference request in JSON, of numbers in all columns.

        Args:
            inputs: the columns; a tensor of one of these names is that column, and no matrix.

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


def _tensor(document: Any, body: bytes, inputs: Sequence[str]) -> tuple[NDArray[np.float64], dict[str, Any]] | None:
    keys = list(document.keys())
    if len(set(keys)) != len(keys) or not {"inputs"} <= set(keys) <= {"id", "inputs", "outputs", "parameters"}:
        return None
    (tensor,) = tensors = document["inputs"]
    name, data, shape = tensor["name"], tensor["data"], tensor["shape"]
    if len(tensor) != 4 or tensor["datatype"] not in ("FP32", "FP64") or not isinstance(name, str) or name in inputs:
        return None
    if not all(isinstance(each, simdjson.Array) for each in (tensors, data, shape, document.get("outputs", data))):
        return None
    count, width = shape
    if (type(count), type(width), width) != (int, int, len(inputs)) or not count:
        return None
    is_nested = isinstance(data[0], simdjson.Array)
    # those of inputs, shape and data, and of the rows, and of outputs
    lists = 3 + (count if is_nested else 0) + ("outputs" in keys)
    if len(data) != (count if is_nested else count * width) or not _opens(body, lists):
        return None
    if is_nested and any(not isinstance(row, simdjson.Array) or len(row) != width for row in data):
        return None
    numbers = np.frombuffer(data.as_buffer(of_type="d"), np.float64)
    if len(numbers) != count * width:
        return None
    return numbers.reshape(count, width), {key: _plain(document[key]) for key in keys if key != "inputs"}


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Array):
        return value.as_list()
    return value.as_dict() if isinstance(value, simdjson.Object) else value


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
        shape, is_fortran, dtype = read_npy_header(io.BytesIO(head))
    except NPY_HEADER_ERRORS:
        return None, 0
    is_plain = dtype in (np.dtype("<f4"), np.dtype("<f8")) and len(shape) == 2 and not is_fortran
    return (dtype, shape[0]) if is_plain and shape[1] == columns else (None, 0)
