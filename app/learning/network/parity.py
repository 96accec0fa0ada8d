"""Whether the network that serves answers as the one that Keras trained: ONNX Runtime against Keras, before a version is published."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.learning.network.architecture import Architecture, Weights
from app.learning.network.keras_network import KerasRuntime
from app.learning.network.runtime import Runtime

#: the most rows that are compared
PARITY_ROWS = 1000
#: the largest difference of two probabilities that is accepted
PARITY = 1e-5


def check_parity(architecture: Architecture, weights: Weights, served: Runtime, x: NDArray[np.float32]) -> None:
    """Compare a served network with Keras on the first rows of x, float32 (n, d).

    Raises:
        RuntimeError: a probability differs by more than `PARITY`.
    """
    rows = x[:PARITY_ROWS]
    reference = KerasRuntime(architecture, weights, "cpu").probabilities(rows)
    difference = float(np.abs(reference - served.probabilities(rows)).max())
    if not difference <= PARITY:
        raise RuntimeError(f"the served network differs from Keras by {difference:g}, more than {PARITY:g}")
