"""Encoded rows in a file, shuffled in two levels: blocks of the file, then rows within a window of blocks.

Knows neither Keras nor tables. Source of the design: docs/decisions/0011-a-shuffle-in-two-levels.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.learning.training.examples import Window, empty_rows, row_order

#: bytes of a block: small, so that a window has rows from a thousand places, and large enough for a disk
BLOCK_BYTES = 256 * 1024

#: the rows [first, last) of the file
_Range = tuple[int, int]


@dataclass(frozen=True)
class StoredExamples:
    """Rows in a file, float32 (n, d) in row-major order.

    The file is read and not mapped into memory, because mapped pages would count as this process's memory.

    Args:
        width: the features of a row, d.
        y: class indices, int32 (n,).
        window_bytes: the size of a window; while one is visited a second one is read.
        weight: float32 (n,) or None.
        block_rows: the rows of a block, 0 for as many as `BLOCK_BYTES` holds.
    """

    path: Path
    width: int
    y: NDArray[np.int32]
    window_bytes: int
    weight: NDArray[np.float32] | None = None
    block_rows: int = 0

    @property
    def rows(self) -> int:
        """The number of rows, n."""
        return len(self.y)

    def windows(self, seed: int | None, epoch: int, batch: int, start: int = 0) -> Iterator[Window]:
        """Return the rows in windows of equal size, the last one padded to that size."""
        # no larger than the data, so that little of a window is padding
        capacity = min(max(self.window_bytes // (4 * self.width) // batch, 1), -(-self.rows // batch)) * batch
        groups = enumerate(_groups(self._blocks(seed, epoch), capacity))
        wanted = ((number, ranges) for number, ranges in groups if (number + 1) * capacity > start)
        with self.path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:

            def read(number: int, ranges: list[_Range]) -> Window:
                return self._read_window(file.fileno(), ranges, capacity, number, seed, epoch)

            ahead: Future[Window] | None = None
            for number, ranges in wanted:
                window, ahead = ahead, reader.submit(read, number, ranges)
                if window is not None:
                    yield window.result()
            if ahead is not None:
                yield ahead.result()

    def _blocks(self, seed: int | None, epoch: int) -> Iterator[_Range]:
        """Return the file's blocks in the order of the epoch."""
        size = self.block_rows or max(BLOCK_BYTES // (4 * self.width), 1)
        for block in row_order(-(-self.rows // size), seed, epoch).tolist():
            yield block * size, min((block + 1) * size, self.rows)

    def _read_window(
        self, descriptor: int, ranges: list[_Range], capacity: int, number: int, seed: int | None, epoch: int
    ) -> Window:
        x = empty_rows(capacity, self.width)
        y = np.zeros(capacity, np.int32)
        weight = None if self.weight is None else np.zeros(capacity, np.float32)
        end = 0
        for first, last in ranges:
            place = slice(end, end := end + last - first)
            _read(descriptor, x[place], first * 4 * self.width)
            y[place] = self.y[first:last]
            if weight is not None and self.weight is not None:
                weight[place] = self.weight[first:last]
        x[end:] = 0.0
        return Window(x, y, weight, row_order(end, seed, epoch, number), number * capacity)


def _groups(ranges: Iterator[_Range], capacity: int) -> Iterator[list[_Range]]:
    """Gather ranges into groups of `capacity` rows, the last one of fewer; a range may be divided."""
    group: list[_Range] = []
    room = capacity
    for first, last in ranges:
        while last - first >= room:
            yield [*group, (first, first + room)]
            first += room
            group, room = [], capacity
        if last > first:
            group.append((first, last))
            room -= last - first
    if group:
        yield group


def _read(descriptor: int, rows: NDArray[np.float32], offset: int) -> None:
    """Fill an array with the file's bytes from `offset` on."""
    rest = rows.data.cast("B")
    while rest:
        count = os.preadv(descriptor, [rest], offset)
        if not count:
            raise EOFError("the file of encoded rows ended early")
        rest, offset = rest[count:], offset + count
