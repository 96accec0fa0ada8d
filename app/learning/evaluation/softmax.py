"""Probabilities of logits in float64, a part at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32] | NDArray[np.float64]
Classes = NDArray[np.integer[Any]]

#: float64 cells of logits that are computed on at once
_SLICE_CELLS = 2**20


class Softmax:
    """Probabilities of logits (n, k), computed a few rows or one class at a time: never (n, k) float64 at once."""

    def __init__(self, logits: Logits) -> None:
        self._logits = logits
        self.n, self.k = logits.shape
        self._largest, self._total = np.empty(self.n), np.empty(self.n)
        for part in self.slices():
            values = logits[part].astype(np.float64)
            self._largest[part] = values.max(1)
            self._total[part] = np.exp(values - self._largest[part, None]).sum(1)

    def slices(self) -> Iterator[slice]:
        """Return slices of rows, each of at most `_SLICE_CELLS` cells or one row."""
        rows = max(_SLICE_CELLS // self.k, 1)
        return (slice(i, min(i + rows, self.n)) for i in range(0, self.n, rows))

    def log_probabilities(self, part: slice) -> NDArray[np.float64]:
        """Compute ln p of some rows, float64 (s, k)."""
        shifted: NDArray[np.float64] = self._logits[part].astype(np.float64) - self._largest[part, None]
        return shifted - np.log(self._total[part, None])

    def column(self, index: int) -> NDArray[np.float64]:
        """Compute the probability of one class, float64 (n,)."""
        p: NDArray[np.float64] = np.exp(self._logits[:, index].astype(np.float64) - self._largest) / self._total
        return p
