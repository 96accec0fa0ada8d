"""What a network that is ready to compute can do, whatever computes it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runtime(Protocol):
    """A network that is ready to compute."""

    @property
    def device(self) -> str:
        """The device that computes: "cpu" or "gpu:0"."""

    @property
    def library(self) -> str:
        """The library that computes."""

    @property
    def cpu_rows(self) -> int:
        """The most rows of one call that the CPU computes."""

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to class probabilities float32 (n, k)."""

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to the softmax's inputs, float32 (n, k)."""
