"""The network that every peer serves, as two products in NumPy: the cheapest call, so that what is compared is the server.

It runs in each peer's own environment, which has the peer and NumPy.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

#: an NPZ of kernel and bias of the hidden layer and of the last, and the port to serve on
WEIGHTS, PORT = os.environ.get("BENCH_WEIGHTS", ""), int(os.environ.get("BENCH_PORT", "0"))


class Network:
    """Dense(relu) → Dense(softmax)."""

    def __init__(self) -> None:
        with np.load(WEIGHTS) as arrays:
            self.arrays = [arrays[name].astype(np.float32) for name in ("w1", "b1", "w2", "b2")]

    def __call__(self, rows: Any) -> list[list[float]]:
        """Give the probabilities (n, k) of rows (n, d)."""
        w1, b1, w2, b2 = self.arrays
        scores = np.maximum(np.asarray(rows, np.float32) @ w1 + b1, 0) @ w2 + b2
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        found: list[list[float]] = (powers / powers.sum(axis=1, keepdims=True)).tolist()
        return found
