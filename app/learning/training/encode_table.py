"""Rows of a table to encoded examples: in memory or, where they would not fit, in files. Knows neither Keras nor jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.learning.encoding.cell_warnings import CellFaults
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.read_cells import table_cells
from app.learning.tables.table_file import TableFile
from app.learning.training.examples import Examples, ExampleSource, empty_rows
from app.learning.training.stored_examples import StoredExamples

#: bytes of cells, or of encoded rows, in float64 that are read and encoded at once
READ_BYTES = 32 * 1024**2
#: the fraction of the memory that one window of rows on disk takes, as 1/8; a second window is read meanwhile, and each
#: window is copied once
WINDOW_SHARE = 8
LARGEST_WINDOW_BYTES = 256 * 1024**2


@dataclass(frozen=True)
class LabelledRows:
    """Some rows of a table that are to be examples.

    Args:
        rows: their indices, ascending (n,).
        y: their class indices, int32 (n,).
        weight: their weights in the loss, float32 (n,), or None.
    """

    rows: NDArray[np.intp]
    y: NDArray[np.int32]
    weight: NDArray[np.float32] | None = None


def encode_table(
    table: TableFile, encoder: Encoder, parts: Sequence[LabelledRows], *, memory_bytes: int, folder: Path
) -> list[ExampleSource]:
    """Encode rows of a table, which is read once, some rows at a time.

    Args:
        parts: the rows of each source that is returned.
        memory_bytes: encoded rows go to files where they take more, together with the copy that a GPU has.
        folder: for those files, which are of use as long as the folder exists.

    Raises:
        Invalid: a row cannot be encoded; says which and why.
        OSError: the disk is full.
    """
    is_large = 2 * 4 * encoder.width * sum(len(part.rows) for part in parts) > memory_bytes
    window = min(memory_bytes // WINDOW_SHARE, LARGEST_WINDOW_BYTES)
    sinks: list[_Sink] = [
        _FileSink(folder / f"rows-{i}", part, encoder.width, window) if is_large else _MemorySink(part, encoder.width)
        for i, part in enumerate(parts)
    ]
    present = set(table.names)
    # a table that has none of the inputs has rows nonetheless, as many as its first column
    names = [each.name for each in encoder.inputs if each.name in present] or table.names[:1]
    size = max(READ_BYTES // (8 * max(len(names), encoder.width)), 1)
    for start in range(0, table.rows, size):
        spans = [np.searchsorted(part.rows, (start, start + size)) for part in parts]
        if not any(first < last for first, last in spans):
            continue
        faults = CellFaults(start)
        cells = table_cells(encoder, table.slice(start, start + size, names), faults)
        x = encoder.encode(cells, faults=faults)
        faults.check()
        for part, sink, (first, last) in zip(parts, sinks, spans, strict=True):
            sink.add(x[part.rows[first:last] - start])
    return [sink.source() for sink in sinks]


class _Sink(Protocol):
    def add(self, x: NDArray[np.float32]) -> None:
        """Take the next rows, float32 (m, d)."""

    def source(self) -> ExampleSource:
        """Return all rows that were taken."""


class _MemorySink:
    def __init__(self, part: LabelledRows, width: int) -> None:
        self._part = part
        self._x = empty_rows(len(part.rows), width)
        self._end = 0

    def add(self, x: NDArray[np.float32]) -> None:
        self._x[self._end : self._end + len(x)] = x
        self._end += len(x)

    def source(self) -> ExampleSource:
        return Examples(self._x, self._part.y, self._part.weight)


class _FileSink:
    def __init__(self, path: Path, part: LabelledRows, width: int, window_bytes: int) -> None:
        self._path, self._part, self._width, self._window_bytes = path, part, width, window_bytes
        path.write_bytes(b"")

    def add(self, x: NDArray[np.float32]) -> None:
        with self._path.open("ab") as file:
            file.write(np.ascontiguousarray(x).data)

    def source(self) -> ExampleSource:
        return StoredExamples(self._path, self._width, self._part.y, self._window_bytes, self._part.weight)
