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

from app.learning.training.batches import ALIGNMENT, Source, Window

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
        callbacks: hear `on_train_batch_end` after each chunk, with the index of its last step. Where the steps are
            compiled, the logs have `learning_rate`, that of the next step, too.
        classes: k, the width of a one-hot label.
        seed: of the shuffle; None visits the rows as they are stored.
        at: where to go on, for a model whose variables, those of its metrics included, are of that moment.

    Raises:
        NotCompilable: when a function is first called, which is before the end of an epoch is told. Where that was the
            first step, nothing was computed; in another mode a model of the same state may do.
    """
    if mode == "keras":
        _run_keras(model, train, validation, callbacks, classes, batch, epochs, seed, at)
        return
    if model.run_eagerly:
        raise NotCompilable("the model is to be run eagerly")
    steps = -(-train.rows // batch)
    listeners = keras.callbacks.CallbackList(list(callbacks), model=model, epochs=epochs, steps=steps)
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
        """Learn from how long a chunk of so many steps took; one that was cut short by an epoch's end says nothing."""
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
                self._tensors = (_shared(window.x), tf.convert_to_tensor(window.y), weight)
            padding = len(window.x) - len(window.order)
            order = np.pad(window.order, (0, padding)) if padding else window.order
            yield window, self._tensors, tf.convert_to_tensor(order)


def _shared(x: NDArray[np.float32]) -> Any:
    """Give rows as a tensor: without the two copies that TensorFlow makes of an array, where the device is the CPU."""
    is_plain = x.flags.carray and x.ctypes.data % ALIGNMENT == 0
    if not is_plain or tf.config.list_logical_devices("GPU"):
        return tf.convert_to_tensor(x)
    return tf.experimental.dlpack.from_dlpack(x.__dlpack__())


class _Steps:
    """A model's step, many times in one call, as TensorFlow functions."""

    def __init__(
        self, step: Step, result: Callable[[], Any], source: Source, classes: int, batch: int, *, is_xla: bool
    ) -> None:
        self._batch = batch
        # to Keras the number of a batch's rows is known where all batches have it, and what is computed from it, as by
        # batch normalisation, is rounded otherwise where it is not
        is_sized = source.rows % batch == 0
        self._graph = tf.function(_in_graph(step, result, classes, batch, is_sized=is_sized), autograph=False)
        self._xla = None
        if is_xla:
            self._xla = tf.function(_in_xla(step, result, classes, batch), jit_compile=True, autograph=False)
        self._ran: set[str] = set()

    def limit(self, rows: int, step: int) -> int:
        """Give up to which step of a window of so many rows one call can go from `step` on."""
        full = rows // self._batch
        # the last batch, where it is smaller, is not XLA's: another shape is another compilation
        return full if self._xla is not None and step < full else -(-rows // self._batch)

    def __call__(self, window: Window, rows: tuple[Any, ...], order: Any, start: int, count: int) -> dict[str, float]:
        """Take `count` steps of a window from its step `start` on; gives the result after them.

        Raises:
            NotCompilable: this kind of call, the first one, could not be compiled.
        """
        is_xla = self._xla is not None and start < len(window.order) // self._batch
        kind = "xla" if is_xla else "graph"
        span = (tf.constant(start), tf.constant(count))
        try:
            if is_xla:
                found = self._xla(*rows, order, *span)  # type: ignore[misc]
            else:
                found = self._graph(*rows, order, tf.constant(len(window.order)), *span)
            figures = {name: float(value) for name, value in found.items()}
        except tf.errors.ResourceExhaustedError:
            raise
        except (tf.errors.OpError, TypeError, ValueError, NotImplementedError) as error:
            if kind in self._ran:
                raise
            raise NotCompilable(str(error)[:300]) from error
        self._ran.add(kind)
        return figures


def _in_graph(step: Step, result: Callable[[], Any], classes: int, batch: int, *, is_sized: bool) -> Callable[..., Any]:
    def steps(x: Any, y: Any, weight: Any, order: Any, size: Any, start: Any, count: Any) -> Any:
        def body(i: Any) -> Any:
            at = (start + i) * batch
            rows = order[at : tf.minimum(at + batch, size)]
            if is_sized:
                rows = tf.ensure_shape(rows, [batch])
            step(_gathered(x, y, weight, rows, classes))
            return i + 1

        tf.while_loop(lambda i: i < count, body, [tf.constant(0)])
        return result()

    return steps


def _in_xla(step: Step, result: Callable[[], Any], classes: int, batch: int) -> Callable[..., Any]:
    def steps(x: Any, y: Any, weight: Any, order: Any, start: Any, count: Any) -> Any:
        full = order.shape[0] // batch
        batches = tf.reshape(order[: full * batch], [full, batch])

        def body(i: Any) -> Any:
            # of a slice XLA would compile each start anew
            step(_gathered(x, y, weight, tf.gather(batches, start + i), classes))
            return i + 1

        tf.while_loop(lambda i: i < count, body, [tf.constant(0)])
        return result()

    return steps


def _gathered(x: Any, y: Any, weight: Any, rows: Any, classes: int) -> tuple[Any, ...]:
    chosen = (tf.gather(x, rows), tf.one_hot(tf.gather(y, rows), classes))
    return chosen if weight is None else (*chosen, tf.gather(weight, rows))


class _Compiled:
    """A training run by compiled steps."""

    def __init__(
        self, model: keras.Model, train: Source, validation: Source | None, classes: int, batch: int, *, is_xla: bool
    ) -> None:
        self._model, self._batch = model, batch
        self._feed = _Feed(train, batch)
        self._train = _Steps(model.train_step, self._figures, train, classes, batch, is_xla=is_xla)
        self._held_out = None if validation is None else _Feed(validation, batch)
        self._test = _Steps(
            model.test_step, model.get_metrics_result, validation or train, classes, batch, is_xla=is_xla
        )
        # in one call: each variable by itself takes 0.1 ms
        self._reset = tf.function(model.reset_metrics, autograph=False)
        self._pace = _Pace()

    def fit(self, listeners: keras.callbacks.CallbackList, epochs: int, seed: int | None, at: Position) -> None:
        """Tell the callbacks what `Model.fit` would, in its order, but for a call after each chunk in place of each step."""
        model = self._model
        model.stop_training = False
        listeners.on_train_begin()
        logs: dict[str, float] = {}
        for epoch in range(at.epoch, epochs):
            first = at.step if epoch == at.epoch else 0
            if first == 0:
                self._reset()
            else:
                logs = {name: float(value) for name, value in self._figures().items()}
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
        for window, rows, order in self._feed.windows(seed, epoch, step * self._batch):
            first = window.start // self._batch
            while step - first < -(-len(window.order) // self._batch):
                count = min(self._pace.steps, self._train.limit(len(window.order), step - first) - (step - first))
                began = time.perf_counter()
                logs = self._train(window, rows, order, step - first, count)
                self._pace.note(count, time.perf_counter() - began)
                step += count
                yield step, logs

    def _evaluate(self, feed: _Feed) -> dict[str, float]:
        self._reset()
        logs: dict[str, float] = {}
        for window, rows, order in feed.windows():
            step = 0
            while step < -(-len(window.order) // self._batch):
                limit = self._test.limit(len(window.order), step)
                logs = self._test(window, rows, order, step, limit - step)
                step = limit
        return logs

    def _figures(self) -> dict[str, Any]:
        """Give what a chunk of training tells; a schedule's rate is computed with it: by itself it takes 1 ms."""
        rate = tf.convert_to_tensor(self._model.optimizer.learning_rate)
        return {**self._model.get_metrics_result(), "learning_rate": rate}


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
    callbacks: Sequence[keras.callbacks.Callback],
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
        callbacks=list(callbacks),
        verbose=0,
    )
