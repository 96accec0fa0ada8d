"""The windows of an example source as TensorFlow tensors, which stay on the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning.training.examples import ALIGNMENT, ExampleSource, Window

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


class WindowTensors:
    """A source's windows as tensors; the tensors of rows that stay in memory are made once."""

    def __init__(self, source: ExampleSource, batch: int) -> None:
        self._source, self._batch = source, batch
        self._x: NDArray[np.float32] | None = None
        self._tensors: tuple[Any, ...] = ()

    def windows(self, seed: int | None = None, epoch: int = 0, start: int = 0) -> Iterator[tuple[Window, Any, Any]]:
        """Return each window, its rows x, y and weight, and its order padded to the number of its rows."""
        for window in self._source.windows(seed, epoch, self._batch, start):
            if window.x is not self._x:
                self._x = window.x
                weight = None if window.weight is None else tf.convert_to_tensor(window.weight)
                self._tensors = (_shared(window.x), tf.convert_to_tensor(window.y), weight)
            padding = len(window.x) - len(window.order)
            order = np.pad(window.order, (0, padding)) if padding else window.order
            yield window, self._tensors, tf.convert_to_tensor(order)


def _shared(x: NDArray[np.float32]) -> Any:
    """Return rows as a tensor; on a CPU it shares the array's memory, of which TensorFlow would make two copies."""
    is_plain = x.flags.carray and x.ctypes.data % ALIGNMENT == 0
    if not is_plain or tf.config.list_logical_devices("GPU"):
        return tf.convert_to_tensor(x)
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__())
