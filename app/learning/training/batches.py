"""The rows that a network is fitted on, and the order in which an epoch visits them. Knows neither Keras nor tables.

The order is a function of (seed, epoch) alone, so a run that is taken up again visits the very same batches.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

#: read at once by `StoredExamples`; small, so that a window has rows from a thousand places, and large enough for a disk
BLOCK_BYTES = 256 * 1024
#: of the address of rows, in bytes: EIGEN_MAX_ALIGN_BYTES of TensorFlow's own tensors
ALIGNMENT = 64


@dataclass(frozen=True)
class Window:
    """Rows that are in memory at once, and the order to visit them in.

    Args:
        x: float32 (m, d).
        y: class indices int32 (m,).
        weight: of each row in the loss, float32 (m,), or None.
        order: indices into these rows, int32 (r,), r ≤ m; what lies beyond r is padding.
        start: how many rows of the epoch come before this window's.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int32]
    weight: NDArray[np.float32] | None
    order: NDArray[np.int32]
    start: int


def empty_rows(rows: int, width: int) -> NDArray[np.float32]:
    """Make room for float32 (rows, width) at an address that TensorFlow can compute on without a copy."""
    room = np.empty(rows * width * 4 + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    return room[first : first + rows * width * 4].view(np.float32).reshape(rows, width)


class Source(Protocol):
    """Encoded, labelled rows, n of d numbers."""

    @property
    def rows(self) -> int:
        """The number of rows, n."""

    def windows(self, seed: int | None, epoch: int, batch: int, start: int = 0) -> Iterator[Window]:
        """Give one epoch's rows in windows whose rows are a multiple of `batch`, but for the last one's.

        Args:
            seed: of the shuffle; None visits the rows as they are stored.
            start: leave out the windows that end before this row of the epoch.
        """


@dataclass(frozen=True)
class Examples:
    """Rows in memory, as one window: x float32 (n, d), y int32 (n,) in [0, k), weight float32 (n,) or None."""

    x: NDArray[np.float32]
    y: NDArray[np.int32]
    weight: NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """The number of rows, n."""
        return len(self.y)

    def windows(self, seed: int | None, epoch: int, batch: int, start: int = 0) -> Iterator[Window]:
        """Give all rows at once, permuted as a whole."""
        order = np.arange(self.rows) if seed is None else np.random.default_rng([seed, epoch]).permutation(self.rows)
        yield Window(self.x, self.y, self.weight, order.astype(np.int32), 0)


@dataclass(frozen=True)
class StoredExamples:
    """Rows in a file, float32 (n, d) in row-major order; shuffled in two levels: blocks, then rows within a window.

    It is read, not mapped: mapped pages would count as this process's memory.

    Args:
        y: class indices, int32 (n,).
        weight: float32 (n,) or None.
        window_bytes: how much is in memory at once; a second window is read meanwhile.
        block_rows: how many rows that lie together in the file stay together in a window.
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
        """Give the rows in windows of equal size, the last one padded to it."""
        # no larger than the data, so that little of it is padding
        capacity = min(max(self.window_bytes // (4 * self.width) // batch, 1), -(-self.rows // batch)) * batch
        groups = enumerate(_groups(self._ranges(seed, epoch), capacity))
        wanted = ((number, ranges) for number, ranges in groups if (number + 1) * capacity > start)
        with self.path.open("rb", buffering=0) as file, ThreadPoolExecutor(1) as reader:

            def read(number: int, ranges: list[tuple[int, int]]) -> Window:
                key = None if seed is None else [seed, epoch, number]
                return self._window(file.fileno(), ranges, capacity, number * capacity, key)

            ahead: Future[Window] | None = None
            for number, ranges in wanted:
                window, ahead = ahead, reader.submit(read, number, ranges)
                if window is not None:
                    yield window.result()
            if ahead is not None:
                yield ahead.result()

    def _ranges(self, seed: int | None, epoch: int) -> Iterator[tuple[int, int]]:
        """Give the file's rows as ranges in the order of the epoch."""
        size = self.block_rows or max(BLOCK_BYTES // (4 * self.width), 1)
        blocks = -(-self.rows // size)
        numbers = np.arange(blocks) if seed is None else np.random.default_rng([seed, epoch]).permutation(blocks)
        for block in numbers.tolist():
            yield block * size, min((block + 1) * size, self.rows)

    def _window(
        self, descriptor: int, ranges: list[tuple[int, int]], capacity: int, start: int, seed: list[int] | None
    ) -> Window:
        x = empty_rows(capacity, self.width)
        y = np.zeros(capacity, np.int32)
        weight = None if self.weight is None else np.zeros(capacity, np.float32)
        at = 0
        for first, last in ranges:
            here = slice(at, at + last - first)
            _read(descriptor, x[here], first * 4 * self.width)
            y[here] = self.y[first:last]
            if weight is not None and self.weight is not None:
                weight[here] = self.weight[first:last]
            at += last - first
        x[at:] = 0.0
        order = np.arange(at) if seed is None else np.random.default_rng(seed).permutation(at)
        return Window(x, y, weight, order.astype(np.int32), start)


def _groups(ranges: Iterator[tuple[int, int]], capacity: int) -> Iterator[list[tuple[int, int]]]:
    """Gather ranges into groups of `capacity` rows, the last one of fewer; a range may be divided."""
    group: list[tuple[int, int]] = []
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


def _read(descriptor: int, into: NDArray[np.float32], offset: int) -> None:
    view = into.data.cast("B")
    while view:
        got = os.preadv(descriptor, [view], offset)
        if not got:
            raise EOFError("the file of encoded rows ended early")
        view, offset = view[got:], offset + got


def sample(source: Source, classes: int) -> Examples:
    """Give all rows of a source that is in memory; of another one a shuffled part that fits a window, its logits too."""
    if isinstance(source, Examples):
        return source
    window = next(iter(source.windows(0, 0, 1)))
    rows = window.order[: max(window.x.size // max(window.x.shape[1], classes), 1)]
    return Examples(window.x[rows], window.y[rows])
