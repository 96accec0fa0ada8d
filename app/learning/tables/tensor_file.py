"""Arrays of one dimension in a safetensors file: written one after the other, read a part at a time.

By plain reads and writes, for the pages of a mapped file count as memory of the process that looks at them. Knows
nothing of tables.
"""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

_DTYPES = {
    name: np.dtype(code) for name, code in {"F64": "<f8", "F32": "<f4", "I64": "<i8", "I32": "<i4", "U8": "u1"}.items()
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
#: bytes of one array's entry in the header, at most
_ENTRY_BYTES = 128
#: rows of which at most one run is in memory while a few are taken
_RUN_ROWS = 8192


class Tensors:
    """The arrays of a file; opening it reads no more than its header.

    Raises:
        OSError: there is no such file.
        ValueError: it is none, or is cut off.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        length = int(self._read(0, np.empty(1, "<u8"))[0])
        if length > os.fstat(self._file).st_size:
            raise ValueError(f"Expected a safetensors file, got one whose header has {length} bytes.")
        self._entries: dict[str, Any] = json.loads(self._read(8, np.empty(length, np.uint8)).tobytes())
        self._start = 8 + length

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def length(self, name: str) -> int:
        """Give the length of an array."""
        return int(self._entries[name]["shape"][0])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Read the elements [start, stop) of an array, as Python slices it."""
        entry = self._entries[name]
        dtype = _DTYPES[entry["dtype"]]
        start, stop, _ = slice(start, stop).indices(self.length(name))
        at = self._start + entry["data_offsets"][0] + start * dtype.itemsize
        return self._read(at, np.empty(max(stop - start, 0), dtype))

    def take(self, name: str, rows: NDArray[np.intp]) -> NDArray[Any]:
        """Read the elements at these indices, which ascend."""
        runs = np.split(rows, np.flatnonzero(np.diff(rows // _RUN_ROWS)) + 1) if len(rows) else []
        taken = [self.read(name, int(run[0]), int(run[-1]) + 1)[run - run[0]] for run in runs]
        return np.concatenate(taken) if taken else self.read(name, 0, 0)

    def _read(self, at: int, into: NDArray[Any]) -> NDArray[Any]:
        rest = into.view(np.uint8).data
        while len(rest):
            count = os.preadv(self._file, [rest], at)
            if not count:
                raise ValueError(f"Expected {len(rest)} more bytes at {at}, got the end of the file.")
            rest, at = rest[count:], at + count
        return into


class TensorWriter:
    """Writes arrays to a file that is empty, and at the end its header, for which it leaves room.

    Args:
        count: how many arrays there will be at most.
    """

    def __init__(self, file: BinaryIO, count: int) -> None:
        self._file = file
        self._entries: dict[str, Any] = {}
        self._room = _ENTRY_BYTES * (count + 1)
        self._size = 0
        file.seek(8 + self._room)

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
        assert len(header) <= self._room
        self._file.seek(0)
        self._file.write(self._room.to_bytes(8, "little") + header.ljust(self._room))
