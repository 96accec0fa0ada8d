"""The rows that a network is fitted on, and the order in which an epoch visits them. Knows neither Keras nor tables.

The order is a function of (seed, epoch) alone, so that a resumed run visits the very same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

#: bytes that an array of rows is aligned to: EIGEN_MAX_ALIGN_BYTES of TensorFlow's own tensors
ALIGNMENT = 64


@dataclass(frozen=True)
class Window:
    """Rows that are in memory at once, and the order to visit them in.

    Args:
        x: float32 (m, d).
        y: class indices int32 (m,).
        weight: of each row in the loss, float32 (m,), or None.
        order: indices into these rows, int32 (r,), r ≤ m; rows from r on are padding.
        start: the number of rows of the epoch in the windows before this one.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int32]
    weight: NDArray[np.float32] | None
    order: NDArray[np.int32]
    start: int


class ExampleSource(Protocol):
    """Encoded, labelled rows, n of d numbers."""

    @property
    def rows(self) -> int:
        """The number of rows, n."""

    def windows(self, seed: int | None, epoch: int, batch: int, start: int = 0) -> Iterator[Window]:
        """Return one epoch's rows in windows; all windows but the last have a multiple of `batch` rows.

        Args:
            seed: of the shuffle; None visits the rows as they are stored.
            start: windows that end before this row of the epoch are left out.
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
        """Return all rows at once, permuted as a whole."""
        yield Window(self.x, self.y, self.weight, row_order(self.rows, seed, epoch), 0)


def row_order(rows: int, seed: int | None, *key: int) -> NDArray[np.int32]:
    """Return the order to visit rows in, int32 (rows,): a permutation by the seed and the key, or 0, 1, 2 without a seed."""
    order = np.arange(rows) if seed is None else np.random.default_rng([seed, *key]).permutation(rows)
    return order.astype(np.int32)


def empty_rows(rows: int, width: int) -> NDArray[np.float32]:
    """Return room for float32 (rows, width), aligned so that TensorFlow can compute on it without a copy."""
    room = np.empty(rows * width * 4 + ALIGNMENT, np.uint8)
    first = -room.ctypes.data % ALIGNMENT
    return room[first : first + rows * width * 4].view(np.float32).reshape(rows, width)


def sample(source: ExampleSource, classes: int) -> Examples:
    """Return rows to compute scores on: all rows of a source in memory, else a shuffled part.

    The part is so small that it fits into a window, and so do its logits (m, classes).
    """
    if isinstance(source, Examples):
        return source
    window = next(iter(source.windows(0, 0, 1)))
    rows = window.order[: max(window.x.size // max(window.x.shape[1], classes), 1)]
    return Examples(window.x[rows], window.y[rows])
