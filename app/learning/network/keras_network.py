"""The network in Keras, whatever its backend: built, given weights, computed. Knows no files and no jobs."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning.network.architecture import Activation, Architecture, BatchNorm, Dense, Dropout, Weights

#: rows that are computed at once
_SLICE_ROWS = 4096


def build(architecture: Architecture, *, seed: int | None = None) -> keras.Sequential:
    """Build the literal Keras network; with a seed, its initial weights are those of a script that sets the seed."""
    if seed is not None:
        keras.utils.set_random_seed(seed)
    layers: list[Any] = [keras.Input((architecture.inputs,))]
    for part in architecture.parts:
        if isinstance(part, Dense):
            penalty = keras.regularizers.L2(part.l2) if part.l2 else None
            layers.append(keras.layers.Dense(part.units, activation=part.activation, kernel_regularizer=penalty))
        elif isinstance(part, BatchNorm):
            layers.append(keras.layers.BatchNormalization())
        elif isinstance(part, Activation):
            layers.append(keras.layers.Activation(part.activation))
        elif isinstance(part, Dropout):
            layers.append(keras.layers.Dropout(part.rate))
    return keras.Sequential(layers)


def get_weights(model: keras.Sequential, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """Return a model's weights under the names of `Architecture.shapes`."""
    return dict(zip(architecture.shapes(), model.get_weights(), strict=True))


def set_weights(model: keras.Sequential, architecture: Architecture, weights: Weights) -> None:
    """Set a model's weights from those under the names of `Architecture.shapes`."""
    model.set_weights([weights[name] for name in architecture.shapes()])


def network_logits(model: keras.Sequential, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the softmax's inputs, float32 (n, k), from float32 (n, d), in slices."""
    *hidden, last = model.layers
    logits = []
    for start in range(0, max(len(x), 1), _SLICE_ROWS):
        values: Any = keras.ops.convert_to_tensor(x[start : start + _SLICE_ROWS])
        for layer in hidden:
            values = layer(values, training=False)
        logits.append(keras.ops.convert_to_numpy(keras.ops.matmul(values, last.kernel) + last.bias))
    return np.concatenate(logits)


class KerasRuntime:
    """A network computed by Keras on a device of its backend: the way to predict on a GPU."""

    #: no rows go to the CPU, even where `device` is "cpu": then Keras stands in for a GPU
    cpu_rows = 0

    def __init__(self, architecture: Architecture, weights: Weights, device: str) -> None:
        self.device = device
        self.library = f"keras-{keras.backend.backend()}"
        with keras.device(device):
            self._model = build(architecture)
            set_weights(self._model, architecture, weights)

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to class probabilities float32 (n, k)."""
        with keras.device(self.device):
            out: NDArray[np.float32] = keras.ops.convert_to_numpy(self._model(x, training=False))
        return out

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to the softmax's inputs, float32 (n, k)."""
        with keras.device(self.device):
            return network_logits(self._model, x)
