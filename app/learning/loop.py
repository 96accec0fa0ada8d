"""The training loop: many steps of Keras's own `train_step` in one compiled call, over rows that stay on the device.

The caller hears of each chunk of steps by way of Keras's callbacks. Given the same batches the weights are those of
`Model.fit`: to the bit in graph mode, within rounding under XLA. Knows nothing of specifications, files or jobs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning.batches import Source, Window

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

#: how the steps are computed: a TensorFlow graph, the same compiled by XLA, or Keras's own `fit`
Mode = Literal["graph", "xla", "keras"]
#: what a chunk is to take: short for a cancel or a checkpoint to be obeyed at once, long beside a call's 0.3 ms
CHUNK_SECONDS = 0.03
#: `train_step` or `test_step` of a model
Step = Callable[[tuple[Any, ...]], Any]


@dataclass(frozen=True)
class Position:
    """How many epochs are done, and how many steps of the next one."""

    epoch: int = 0
    step: int = 0


class NotCompilable(Exception):
    """The backend cannot compile this model's step in the mode that was asked for."""


def run(
    model: keras.Model,
    train: Source,
    validation: Source | None,
    callbacks: Sequence[keras.callbacks.Callback],
    *,
    mode: Mode,
    classes: int,
    batch: int,
    epochs: int,
    seed: int | None,
    at: Position = Position(),
) -> None:
    """Fit a compiled model.

    Args:
        model: built and compiled with a loss on one-hot labels.
        callbacks: hear `on_train_batch_end` after each chunk, with the index of its last step.
        classes: k, the width of a one-hot label.
        seed: of the shuffle; None visits the rows as they are stored.
        at: where to go on, for a model whose variables, those of its metrics included, are of that moment.

    Raises:
        NotCompilable: when a function is first called, which is before the end of an epoch is told. Where that was the
            first step, nothing was computed; in another mode a model of the same state may do.
    """
    steps = -(-train.rows // batch)
    listeners = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs, steps=steps)
    if mode != "keras" and model.run_eagerly:
        raise NotCompilable("the model is to be run eagerly")
    if mode == "keras":
        _run_keras(model, train, validation, listeners, classes, batch, epochs, seed, at)
    else:
        made = _Compiled(model, train, validation, classes, batch, is_xla=mode == "xla")
        made.fit(listeners, epochs, seed, at)


def prepare(model: keras.Model, width: int, classes: int) -> None:
    """Make the variables of a compiled model's optimizer and metrics, which are otherwise made by the first batch."""
    model._symbolic_build(data_batch=(np.zeros((1, width), np.float32), np.zeros((1, classes), np.float32)))


class _Pace:
    """How many steps make a chunk of `CHUNK_SECONDS`; the first call, which compiles, takes one step and is not timed."""

    def __init__(self) -> None:
        self.steps = 1
        self._calls = 0

    def note(self, steps: int, seconds: float) -> None:
        self._calls += 1
        if self._calls > 1 and steps == self.steps:
            self.steps = max(1, round(steps * min(CHUNK_SECONDS / max(seconds, 1e-6), 16.0)))
        elif self._calls == 1:
            self.steps = 4


class _Feed:
    """A source's windows as tensors; those of rows that stay in memory are made once."""

    def __init__(self, source: Source, batch: int) -> None:
        self._source, self._batch = source, batch
        self._x: NDArray[np.float32] | None = None
        self._tensors: tuple[Any, ...] = ()

    def windows(self, seed: int | None = None, epoch: int = 0, start: int = 0) -> Iterator[tuple[Window, Any, Any]]:
        """Give each window, its rows x, y and weight, and its order, padded to the number of its rows."""
        for window in self._source.windows(seed, epoch, self._batch, start):
            if window.x is not self._x:
                self._x = window.x
                weight = None if window.weight is None else tf.convert_to_tensor(window.weight)
                self._tensors = (tf.convert_to_tensor(window.x), tf.convert_to_tensor(window.y), weight)
            padding = len(window.x) - len(window.order)
            order = np.pad(window.order, (0, padding)) if padding else window.order
            yield window, self._tensors, tf.convert_to_tensor(order)


class _Compiled:
    """A model's steps as TensorFlow functions."""

    def __init__(
        self, model: keras.Model, train: Source, validation: Source | None, classes: int, batch: int, *, is_xla: bool
    ) -> None:
        self._model, self._batch = model, batch
        self._feed = _Feed(train, batch)
        self._held_out = None if validation is None else _Feed(validation, batch)
        is_sized = is_xla or train.rows % batch == 0
        self._train = _many(model, model.train_step, classes, batch, is_xla=is_xla, is_sized=is_sized)
        self._train_rest = _one(model, model.train_step, classes)
        is_sized = is_xla or validation is None or validation.rows % batch == 0
        self._test = _many(model, model.test_step, classes, batch, is_xla=is_xla, is_sized=is_sized)
        self._test_rest = _one(model, model.test_step, classes)
        self._pace = _Pace()
        self._ran: set[int] = set()

    def fit(self, listeners: keras.callbacks.CallbackList, epochs: int, seed: int | None, at: Position) -> None:
        model = self._model
        model.stop_training = False
        listeners.on_train_begin()
        logs: dict[str, float] = {}
        for epoch in range(at.epoch, epochs):
            first = at.step if epoch == at.epoch else 0
            if first == 0:
                model.reset_metrics()
            else:
                logs = _floats(model.get_metrics_result())
            listeners.on_epoch_begin(epoch)
            for done, logs in self._epoch(seed, epoch, first):
                listeners.on_train_batch_end(done - 1, logs)
                if model.stop_training:
                    break
            if self._held_out is not None:
                logs = logs | {f"val_{name}": value for name, value in self._evaluate(self._held_out).items()}
            listeners.on_epoch_end(epoch, logs)
            if model.stop_training:
                break
        listeners.on_train_end(logs)

    def _epoch(self, seed: int | None, epoch: int, step: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Take an epoch's steps from `step` on; gives, after each chunk, the number of steps that are done."""
        batch = self._batch
        for window, rows, order in self._feed.windows(seed, epoch, step * batch):
            first = window.start // batch
            full = first + len(window.order) // batch
            while step < full:
                count = min(self._pace.steps, full - step)
                began = time.perf_counter()
                logs = self._call(self._train, *rows, order, tf.constant(step - first), tf.constant(count))
                self._pace.note(count, time.perf_counter() - began)
                step += count
                yield step, logs
            begin, end = (full - first) * batch, len(window.order)
            if begin < end and step == full:
                step += 1
                yield step, self._call(self._train_rest, *rows, order, tf.constant(begin), tf.constant(end))

    def _call(self, function: Any, *arguments: Any) -> dict[str, float]:
        try:
            logs = _floats(function(*arguments))
        except tf.errors.ResourceExhaustedError:
            raise
        except (tf.errors.OpError, TypeError, ValueError, NotImplementedError) as error:
            if id(function) in self._ran:
                raise
            raise NotCompilable(str(error)[:300]) from error
        self._ran.add(id(function))
        return logs

    def _evaluate(self, feed: _Feed) -> dict[str, float]:
        self._model.reset_metrics()
        logs: dict[str, float] = {}
        for window, rows, order in feed.windows():
            full, end = len(window.order) // self._batch, len(window.order)
            if full:
                logs = self._call(self._test, *rows, order, tf.constant(0), tf.constant(full))
            if full * self._batch < end:
                logs = self._call(self._test_rest, *rows, order, tf.constant(full * self._batch), tf.constant(end))
        return logs


def _many(model: keras.Model, step: Step, classes: int, batch: int, *, is_xla: bool, is_sized: bool) -> Any:
    """Compile `count` steps from step `start` on of rows that are visited in `order`.

    Args:
        is_sized: whether the number of a batch's rows is known to the compiler. To Keras it is where all batches have
            it, and what is computed from it, as by batch normalisation, is rounded otherwise where it is not.
    """

    def steps(x: Any, y: Any, weight: Any, order: Any, start: Any, count: Any) -> Any:
        full = order.shape[0] // batch
        batches = tf.reshape(order[: full * batch], [full, batch])

        def body(i: Any) -> Any:
            first = (start + i) * batch
            # XLA would compile a slice anew for each start
            rows = tf.gather(batches, start + i) if is_sized else order[first : first + batch]
            step(_gathered(x, y, weight, rows, classes))
            return i + 1

        tf.while_loop(lambda i: i < count, body, [tf.constant(0)])
        return model.get_metrics_result()

    return tf.function(steps, jit_compile=is_xla, autograph=False)


def _one(model: keras.Model, step: Step, classes: int) -> Any:
    """Compile one step of the rows [begin, end) of `order`: an epoch's last batch, which is smaller."""

    def rest(x: Any, y: Any, weight: Any, order: Any, begin: Any, end: Any) -> Any:
        step(_gathered(x, y, weight, order[begin:end], classes))
        return model.get_metrics_result()

    return tf.function(rest, autograph=False)


def _gathered(x: Any, y: Any, weight: Any, rows: Any, classes: int) -> tuple[Any, ...]:
    chosen = (tf.gather(x, rows), tf.one_hot(tf.gather(y, rows), classes))
    return chosen if weight is None else (*chosen, tf.gather(weight, rows))


def _floats(logs: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items()}


class _Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """A source's batches for Keras's `fit`, the same ones as in `_Compiled`; read in order, an epoch after another."""

    def __init__(self, source: Source, classes: int, batch: int, seed: int | None = None, epoch: int = 0) -> None:
        super().__init__()
        self._source, self._classes, self._batch = source, classes, batch
        self._seed = seed
        self._epochs = iter(range(epoch, sys.maxsize))
        # Keras looks at the first batches ahead of the first epoch
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
            for at in range(max(first * self._batch - window.start, 0), len(window.order), self._batch):
                rows = window.order[at : at + self._batch]
                chosen = (window.x[rows], keras.utils.to_categorical(window.y[rows], self._classes))
                yield chosen if window.weight is None else (*chosen, window.weight[rows])


def _run_keras(
    model: keras.Model,
    train: Source,
    validation: Source | None,
    listeners: keras.callbacks.CallbackList,
    classes: int,
    batch: int,
    epochs: int,
    seed: int | None,
    at: Position,
) -> None:
    model.fit(
        _Batches(train, classes, batch, seed, at.epoch),
        validation_data=None if validation is None else _Batches(validation, classes, batch),
        initial_epoch=at.epoch,
        epochs=epochs,
        shuffle=False,
        callbacks=listeners,
        verbose=0,
    )
