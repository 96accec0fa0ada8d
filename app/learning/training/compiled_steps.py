"""Many of Keras's own training or test steps in one call: a TensorFlow graph, or the same compiled by XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from app.learning.training.examples import ExampleSource, Window

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

#: `train_step` or `test_step` of a model
Step = Callable[[tuple[Any, ...]], Any]


class NotCompilable(Exception):
    """The backend cannot compile this model's step in the mode that was asked for."""


class CompiledSteps:
    """A model's step, many times in one call, as TensorFlow functions.

    Args:
        result: returns the figures after the last step of a call.
        classes: k, the width of a one-hot label.
    """

    def __init__(
        self,
        step: Step,
        result: Callable[[], Any],
        source: ExampleSource,
        classes: int,
        batch: int,
        *,
        is_xla: bool,
    ) -> None:
        self._batch = batch
        # Keras rounds otherwise, as in batch normalisation, where it does not know the number of a batch's rows; that
        # number is known where all batches have it
        is_sized = source.rows % batch == 0
        self._graph = tf.function(_in_graph(step, result, classes, batch, is_sized=is_sized), autograph=False)
        self._xla = None
        if is_xla:
            self._xla = tf.function(_in_xla(step, result, classes, batch), jit_compile=True, autograph=False)
        self._compiled: set[str] = set()

    def limit(self, rows: int, step: int) -> int:
        """Return the step of a window of `rows` rows up to which one call can go from `step` on."""
        full = rows // self._batch
        # a smaller last batch does not go to XLA: another shape is another compilation
        return full if self._xla is not None and step < full else -(-rows // self._batch)

    def __call__(self, window: Window, rows: tuple[Any, ...], order: Any, start: int, count: int) -> dict[str, float]:
        """Take `count` steps of a window from its step `start` on, and return the figures after the last one.

        Raises:
            NotCompilable: this is the first call of its kind, and could not be compiled.
        """
        is_xla = self._xla is not None and start < len(window.order) // self._batch
        kind = "xla" if is_xla else "graph"
        span = (tf.constant(start), tf.constant(count))
        try:
            if is_xla:
                result = self._xla(*rows, order, *span)  # type: ignore[misc]
            else:
                result = self._graph(*rows, order, tf.constant(len(window.order)), *span)
            figures = {name: float(value) for name, value in result.items()}
        except tf.errors.ResourceExhaustedError:
            raise
        except (tf.errors.OpError, TypeError, ValueError, NotImplementedError) as error:
            if kind in self._compiled:
                raise
            raise NotCompilable(str(error)[:300]) from error
        self._compiled.add(kind)
        return figures


def _in_graph(step: Step, result: Callable[[], Any], classes: int, batch: int, *, is_sized: bool) -> Callable[..., Any]:
    def steps(x: Any, y: Any, weight: Any, order: Any, size: Any, start: Any, count: Any) -> Any:
        def body(i: Any) -> Any:
            first = (start + i) * batch
            rows = order[first : tf.minimum(first + batch, size)]
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
            # a gather and not a slice: XLA would compile each start of a slice anew
            step(_gathered(x, y, weight, tf.gather(batches, start + i), classes))
            return i + 1

        tf.while_loop(lambda i: i < count, body, [tf.constant(0)])
        return result()

    return steps


def _gathered(x: Any, y: Any, weight: Any, rows: Any, classes: int) -> tuple[Any, ...]:
    """Return the batch of some rows as Keras's steps take it: x, one-hot labels, and the weights where there are any."""
    batch = (tf.gather(x, rows), tf.one_hot(tf.gather(y, rows), classes))
    return batch if weight is None else (*batch, tf.gather(weight, rows))
