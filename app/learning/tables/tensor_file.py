"""Arrays of one dimension in a safetensors file: written one after the other, read a part at a time.

The file is read by plain reads and not mapped into memory, because the pages of a mapped file count as memory of the
process that looks at them. Knows nothing of tables.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
from numpy.typing import DTypeLike, NDArray

_DTYPES = {
    name: np.dtype(code) for name, code in {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1"}.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
#: the most bytes that one array's entry in the header takes
_ENTRY_BYTES = 128
#: while a few rows are taken, at most these rows are in memory at once
_RUN_ROWS = 8192


class _Entry(TypedDict):
    """An array's entry in the header, as the format has it: `data_offsets` are its first byte and the one after its last."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


class TensorFile:
    """The arrays of a file; opening the file reads its header only.

    Raises:
        OSError: there is no such file.
        ValueError: the file is no safetensors file, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        length = int(self._fill(0, np.empty(1, "<u8"))[0])
        if length > os.fstat(self._file).st_size:
            raise ValueError(f"Expected a safetensors file, got one whose header has {length} bytes.")
        self._entries: dict[str, _Entry] = json.loads(self._fill(8, np.empty(length, np.uint8)).tobytes())
        self._data_start = 8 + length

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def length(self, name: str) -> int:
        """Return the length of an array."""
        return self._entries[name]["shape"][0]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read the elements [start, stop) of an array, as Python slices it."""
        entry = self._entries[name]
        dtype = _DTYPES[entry["dtype"]]
        start, stop, _ = slice(start, stop).indices(self.length(name))
        offset = self._data_start + entry["data_offsets"][0] + start * dtype.itemsize
        return self._fill(offset, np.empty(max(stop - start, 0), dtype))

    def take(self, name: str, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Read the elements at these ascending indices."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows // _RUN_ROWS)) + 1) if len(rows) else []
        parts = [self.read(name, int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs]
        return np.concatenate(parts) if parts else self.read(name, 0, 0)

    def _fill(self, offset: int, array: NDArray[Any]) -> NDArray[Any]:
        """Fill an array with the file's bytes from `offset` on, and return it."""
        rest = array.view(np.uint8).data
        while len(rest):
            count = os.preadv(self._file, [rest], offset)
            if not count:
                raise ValueError(f"Expected {len(rest)} more bytes at {offset}, got the end of the file.")
            rest, offset = rest[count:], offset + count
        return array


class TensorWriter:
    """Writes arrays to an empty file, and at the end the header, for which it leaves room at the beginning.

    Args:
        count: the most arrays there can be.
    """

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file = file
        self._entries: dict[str, _Entry] = {}
        self._header_bytes = _ENTRY_BYTES * (count + 1)
        self._size = 0
        file.seek(8 + self._header_bytes)

    def add(self, name: str, dtype: DTypeLike, parts: Iterable[bytes | memoryview]) -> None:
        """Append an array, given as the parts of its bytes."""
        start, dtype = self._size, np.dtype(dtype)
        for part in parts:
            self._size += self._file.write(part)
        shape = [(self._size - start) // dtype.itemsize]
        self._entries[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [start, self._size]}

    def finish(self) -> None:
        """Write the header; blanks fill the room that it leaves, as the format allows."""
        header = json.dumps(self._entries, separators=(",", ":")).encode()
        assert len(header) <= self._header_bytes
        self._file.seek(0)
        self._file.write(self._header_bytes.to_bytes(8, "little") + header.ljust(self._header_bytes))
