"""The same epochs by Keras's own `fit`: for JAX and PyTorch, and for models whose steps cannot be compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from numpy.typing import NDArray

from app.learning.training.examples import ExampleSource


def run_keras_fit(
    model: keras.Model,
    train: ExampleSource,
    validation: ExampleSource | None,
    callbacks: Sequence[keras.callbacks.Callback],
    classes: int,
    batch: int,
    epochs: int,
    seed: int | None,
    first_epoch: int,
) -> None:
    """Fit a compiled model from the beginning of an epoch on; arguments as in `loop.run_epochs`."""
    model.fit(
        _Batches(train, classes, batch, seed, first_epoch),
        validation_data=None if validation is None else _Batches(validation, classes, batch),
        initial_epoch=first_epoch,
        epochs=epochs,
        shuffle=False,
        callbacks=list(callbacks),
        verbose=0,
    )


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """A source's batches, the same ones as in compiled steps; read in order, an epoch after another."""

    def __init__(
        self, source: ExampleSource, classes: int, batch: int, seed: int | None = None, epoch: int = 0
    ) -> None:
        super().__init__()
        self._source, self._classes, self._batch = source, classes, batch
        self._seed = seed
        self._epochs = iter(range(epoch, sys.maxsize))
        # Keras looks at the first batches before the first epoch
        self._epoch = epoch
        self._next = -1
        self._iterator = self._read(0)

    def __len__(self) -> int:
        return -(-self._source.rows // self._batch)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], ...]:
        if index != self._next:
            self._iterator = self._read(index)
        self._next = index + 1
        return next(self._iterator)

    def on_epoch_begin(self) -> None:
        self._epoch = next(self._epochs)
        self._next = -1

    def _read(self, first: int) -> Iterator[tuple[NDArray[Any], ...]]:
        for window in self._source.windows(self._seed, self._epoch, self._batch, first * self._batch):
            for start in range(max(first * self._batch - window.start, 0), len(window.order), self._batch):
                rows = window.order[start : start + self._batch]
                batch = (window.x[rows], keras.utils.to_categorical(window.y[rows], self._classes))
                yield batch if window.weight is None else (*batch, window.weight[rows])
