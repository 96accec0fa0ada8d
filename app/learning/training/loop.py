"""The training loop: an epoch after another, by compiled chunks of steps where the backend can, else by Keras's own `fit`.

The caller hears of each chunk by way of Keras's callbacks. With the same batches the weights are those of `Model.fit`:
to the bit in graph mode, within rounding under XLA. Knows nothing of specifications, files or jobs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from app.learning.training.checkpoint import BEGINNING, Position
from app.learning.training.compiled_steps import CompiledSteps, NotCompilable
from app.learning.training.events import LoopMode
from app.learning.training.examples import ExampleSource
from app.learning.training.keras_fit import run_keras_fit
from app.learning.training.window_tensors import WindowTensors

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

#: duration that a chunk of steps aims at: short, so that a cancel or a checkpoint does not wait, and long beside the
#: 0.3 ms of a call
CHUNK_SECONDS = 0.03


def run_epochs(
    model: keras.Model,
    train: ExampleSource,
    validation: ExampleSource | None,
    callbacks: Sequence[keras.callbacks.Callback],
    *,
    mode: LoopMode,
    classes: int,
    batch: int,
    epochs: int,
    seed: int | None,
    start: Position = BEGINNING,
) -> None:
    """Fit a compiled model.

    Args:
        model: built and compiled with a loss on one-hot labels.
        callbacks: get `on_train_batch_end` after each chunk, with the index of its last step. Where the steps are
            compiled, the logs have `learning_rate` too: the rate of the next step.
        classes: k, the width of a one-hot label.
        seed: of the shuffle; None visits the rows as they are stored.
        start: where to continue, for a model whose variables, those of its metrics included, are of that moment.

    Raises:
        NotCompilable: when a function is first called, which is before any callback hears of the end of an epoch. At
            the first step nothing has been computed yet; another mode may do for a model of the same state.
    """
    if mode == "keras":
        run_keras_fit(model, train, validation, callbacks, classes, batch, epochs, seed, start.epoch)
        return
    if model.run_eagerly:
        raise NotCompilable("the model is to be run eagerly")
    steps = -(-train.rows // batch)
    listeners = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs, steps=steps)
    _CompiledRun(model, train, validation, classes, batch, is_xla=mode == "xla").fit(listeners, epochs, seed, start)


def build_variables(model: keras.Model, width: int, classes: int) -> None:
    """Make the variables of a compiled model's optimizer and metrics, which otherwise the first batch makes."""
    model._symbolic_build(data_batch=(np.zeros((1, width), np.float32), np.zeros((1, classes), np.float32)))


class _ChunkSize:
    """The number of steps of a chunk of `CHUNK_SECONDS`. The first call compiles: it has one step, and is not timed."""

    def __init__(self) -> None:
        self.steps = 1
        self._calls = 0

    def note(self, steps: int, seconds: float) -> None:
        """Learn from the time that a chunk took; a chunk that the end of an epoch cut short says nothing."""
        self._calls += 1
        if self._calls > 1 and steps == self.steps:
            self.steps = max(1, round(steps * min(CHUNK_SECONDS / max(seconds, 1e-6), 16.0)))
        elif self._calls == 1:
            self.steps = 4


class _CompiledRun:
    """A run by compiled steps."""

    def __init__(
        self,
        model: keras.Model,
        train: ExampleSource,
        validation: ExampleSource | None,
        classes: int,
        batch: int,
        *,
        is_xla: bool,
    ) -> None:
        self._model, self._batch = model, batch
        self._rows = WindowTensors(train, batch)
        self._train = CompiledSteps(model.train_step, self._figures, train, classes, batch, is_xla=is_xla)
        self._validation_rows = None if validation is None else WindowTensors(validation, batch)
        self._test = CompiledSteps(
            model.test_step, model.get_metrics_result, validation or train, classes, batch, is_xla=is_xla
        )
        # reset in one call: each variable by itself takes 0.1 ms
        self._reset = tf.function(model.reset_metrics, autograph=False)
        self._chunk = _ChunkSize()

    def fit(self, listeners: keras.callbacks.CallbackList, epochs: int, seed: int | None, start: Position) -> None:
        """Call the callbacks as `Model.fit` does and in its order, but after each chunk in place of each step."""
        model = self._model
        model.stop_training = False
        listeners.on_train_begin()
        logs: dict[str, float] = {}
        for epoch in range(start.epoch, epochs):
            first = start.step if epoch == start.epoch else 0
            if first == 0:
                self._reset()
            else:
                logs = {name: float(value) for name, value in self._figures().items()}
            listeners.on_epoch_begin(epoch)
            for done, logs in self._run_epoch(seed, epoch, first):
                listeners.on_train_batch_end(done - 1, logs)
                if model.stop_training:
                    break
            if self._validation_rows is not None:
                logs = logs | {f"val_{name}": value for name, value in self._evaluate(self._validation_rows).items()}
            listeners.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        listeners.on_train_end(logs)

    def _run_epoch(self, seed: int | None, epoch: int, step: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Take an epoch's steps from `step` on; yields, after each chunk, the number of steps that are done."""
        for window, rows, order in self._rows.windows(seed, epoch, step * self._batch):
            first = window.start // self._batch
            while step - first < -(-len(window.order) // self._batch):
                count = min(self._chunk.steps, self._train.limit(len(window.order), step - first) - (step - first))
                began = time.perf_counter()
                logs = self._train(window, rows, order, step - first, count)
                self._chunk.note(count, time.perf_counter() - began)
                step += count
                yield step, logs

    def _evaluate(self, tensors: WindowTensors) -> dict[str, float]:
        self._reset()
        logs: dict[str, float] = {}
        for window, rows, order in tensors.windows():
            step = 0
            while step < -(-len(window.order) // self._batch):
                limit = self._test.limit(len(window.order), step)
                logs = self._test(window, rows, order, step, limit - step)
                step = limit
        return logs

    def _figures(self) -> dict[str, Any]:
        """Return the logs of a chunk. The learning rate is computed along with them: a call of its own takes 1 ms."""
        rate = tf.convert_to_tensor(self._model.optimizer.learning_rate)
        return {**self._model.get_metrics_result(), "learning_rate": rate}
