"""The compiled loop against Keras's own `fit` on the same batches, with Keras's own callbacks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from app.learning.training.checkpoint import Position
from app.learning.training.compiled_steps import NotCompilable
from app.learning.training.events import LoopMode
from app.learning.training.examples import Examples, empty_rows
from app.learning.training.loop import build_variables, run_epochs

D, K, BATCH = 5, 3, 16
SEED = 7
SGD, layers, schedules = keras.optimizers.SGD, keras.layers, keras.optimizers.schedules
Callbacks = Sequence[keras.callbacks.Callback]


def blobs(n: int, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, n).astype(np.int32)
    return Examples((rng.normal(0, 1, (n, D)) + np.eye(K, D)[y]).astype(np.float32), y)


START = Position(0)
#: five full batches and a smaller one
TRAIN, HELD_OUT = blobs(5 * BATCH + 7), blobs(40, seed=1)
WEIGHTED = replace(TRAIN, weight=np.linspace(0.1, 3, TRAIN.rows).astype(np.float32))


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """The documented batches of each epoch: `default_rng([seed, epoch]).permutation(n)`, so many rows at a time."""

    def __init__(self, rows: Examples, seed: int | None = SEED) -> None:
        super().__init__()
        self.rows, self.seed, self.epoch = rows, seed, -1

    def __len__(self) -> int:
        return math.ceil(self.rows.rows / BATCH)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], ...]:
        order = np.arange(self.rows.rows)
        if self.seed is not None:
            order = np.random.default_rng([self.seed, max(self.epoch, 0)]).permutation(self.rows.rows)
        chosen = order[index * BATCH : (index + 1) * BATCH]
        batch = (self.rows.x[chosen], keras.utils.to_categorical(self.rows.y[chosen], K))
        return batch if self.rows.weight is None else (*batch, self.rows.weight[chosen])

    def on_epoch_begin(self) -> None:
        self.epoch += 1


def made(hidden: Callable[[], list[Any]], optimizer: Callable[[], Any], smoothing: float = 0.0, **more: Any) -> Any:
    """A model that is ready for a step, the same one at each call."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((D,)), *hidden(), layers.Dense(K, activation="softmax")])
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=smoothing)
    model.compile(optimizer(), loss, metrics=["accuracy"], **more)
    build_variables(model, D, K)
    return model


def curve(history: keras.callbacks.History) -> dict[str, list[float]]:
    """Give a history without the rate, which the compiled steps always tell, and Keras's where a callback does."""
    return {name: values for name, values in history.history.items() if name != "learning_rate"}


def ours(
    model: Any,
    train: Examples = TRAIN,
    validation: Examples | None = HELD_OUT,
    callbacks: Callbacks = (),
    *,
    mode: LoopMode = "graph",
    epochs: int = 3,
    at: Position = START,
) -> dict[str, list[float]]:
    """Fit by the loop; gives the curve."""
    history = keras.callbacks.History()
    heard = [*callbacks, history]
    run_epochs(model, train, validation, heard, mode=mode, classes=K, batch=BATCH, epochs=epochs, seed=SEED, start=at)
    return curve(history)


def theirs(
    model: Any,
    train: Examples = TRAIN,
    validation: Examples | None = HELD_OUT,
    callbacks: Callbacks = (),
    epochs: int = 3,
) -> dict[str, list[float]]:
    """Fit by Keras; gives the curve."""
    held_out = None if validation is None else Batches(validation, None)
    heard = list(callbacks)
    found = model.fit(
        Batches(train), validation_data=held_out, shuffle=False, epochs=epochs, verbose=0, callbacks=heard
    )
    return curve(found)


def state(model: Any) -> list[NDArray[Any]]:
    """Every variable of a model, of its random streams and of its optimizer."""
    return [each.numpy() for each in (*model.variables, *model.optimizer.variables)]


def sha256(model: Any) -> str:
    return hashlib.sha256(b"".join(value.tobytes() for value in state(model))).hexdigest()


def assert_same(expected: Any, found: Any) -> None:
    for wanted, value in zip(state(expected), state(found), strict=True):
        np.testing.assert_array_equal(wanted, value)


def hidden() -> list[Any]:
    return [layers.Dense(8, activation="relu")]


def normalized() -> list[Any]:
    penalty = keras.regularizers.L2(0.05)
    return [layers.Dense(8, kernel_regularizer=penalty), layers.BatchNormalization(), layers.ReLU()]


def dropped() -> list[Any]:
    return [*normalized(), layers.Dropout(0.4), layers.Dense(6, activation="tanh"), layers.Dropout(0.2)]


def light() -> list[Any]:
    return [layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.4)]


def plain() -> Any:
    return SGD(0.1, momentum=0.9)


def scheduled() -> Any:
    rate = schedules.CosineDecay(0.0, 14, warmup_target=0.3, warmup_steps=4)
    return SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.01, global_clipnorm=0.05)


@pytest.mark.parametrize(
    ("mode", "network", "optimizer", "smoothing", "train"),
    [
        ("graph", hidden, scheduled, 0.0, TRAIN),
        ("graph", dropped, plain, 0.0, TRAIN),
        ("graph", hidden, lambda: SGD(0.1, clipnorm=0.1), 0.2, WEIGHTED),
        ("graph", dropped, scheduled, 0.1, WEIGHTED),
        ("keras", dropped, scheduled, 0.1, WEIGHTED),
    ],
    ids=["schedule and clipping", "dropout, norm and l2", "weights and smoothing", "everything", "everything by keras"],
)
def test_a_run_is_that_of_keras_to_the_bit(
    mode: LoopMode, network: Any, optimizer: Any, smoothing: float, train: Examples
) -> None:
    expected, found = made(network, optimizer, smoothing), made(network, optimizer, smoothing)

    curve = theirs(expected, train)

    assert curve == ours(found, train, mode=mode)
    assert_same(expected, found)


def test_a_run_by_keras_goes_on_after_an_epoch() -> None:
    expected, found = made(light, plain), made(light, plain)
    curve = theirs(expected, validation=None)

    first = ours(found, validation=None, mode="keras", epochs=1)
    rest = ours(found, validation=None, mode="keras", at=Position(1))

    assert curve == {name: first[name] + rest[name] for name in curve}
    assert_same(expected, found)


@pytest.mark.parametrize("rows", [1, BATCH - 1, BATCH, 2 * BATCH, 2 * BATCH + 1])
def test_any_number_of_rows_is_visited_as_by_keras(rows: int) -> None:
    expected, found = made(normalized, plain), made(normalized, plain)

    curve = theirs(expected, blobs(rows), blobs(rows, seed=1), epochs=2)

    assert curve == ours(found, blobs(rows), blobs(rows, seed=1), epochs=2)
    assert_same(expected, found)


# Keras's own callback asks NumPy for the rate in a way that this NumPy deprecates
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("mode", ["graph", "keras"])
def test_keras_callbacks_do_what_they_do_in_its_fit(mode: LoopMode) -> None:
    """The rate is cut at plateaus, and the best weights are put back when nothing improves."""

    def callbacks() -> Callbacks:
        return [
            keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5, cooldown=1),
            keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True),
        ]

    expected, found = (made(hidden, lambda: SGD(1.5, momentum=0.9)) for _ in range(2))

    curve = theirs(expected, callbacks=callbacks(), epochs=40)

    assert curve == ours(found, callbacks=callbacks(), epochs=40, mode=mode)
    assert_same(expected, found)
    assert 4 < len(curve["loss"]) < 40
    assert float(expected.optimizer.learning_rate) == float(found.optimizer.learning_rate) < 1.5


class StopAt(keras.callbacks.Callback):  # type: ignore[misc]
    """Asks for the end of training once so many steps of an epoch are done."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.wanted = (epoch, step)
        self.epoch = self.step = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if not self.model.stop_training and (self.epoch, batch + 1) >= self.wanted:
            self.step = batch + 1
            self.model.stop_training = True


@pytest.mark.parametrize(("epoch", "step"), [(0, 1), (1, 2)])
def test_a_run_that_is_stopped_within_an_epoch_ends_as_in_keras(epoch: int, step: int) -> None:
    asked = StopAt(epoch, step)
    expected, found = made(light, plain), made(light, plain)

    curve = ours(found, callbacks=[asked])

    # a chunk is as long as this machine makes it
    assert asked.step >= step
    assert theirs(expected, callbacks=[StopAt(epoch, asked.step)]) == curve
    assert epoch + 1 == len(curve["loss"])
    assert_same(expected, found)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_each_chunk_is_told_once_with_the_figures_so_far(mode: LoopMode) -> None:
    told: list[tuple[int, float]] = []
    steps = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: told.append((batch, logs["loss"])))

    curve = ours(made(hidden, plain), blobs(40 * BATCH + 1), None, [steps], epochs=1, mode=mode)

    batches = [batch for batch, _ in told]
    assert sorted(set(batches)) == batches
    assert (0, 40) == (batches[0], batches[-1])
    assert len(batches) < 40
    assert curve["loss"] == [told[-1][1]]


def test_an_epoch_under_xla_is_that_of_keras_within_rounding() -> None:
    expected, found = made(normalized, scheduled, 0.1), made(normalized, scheduled, 0.1)

    curve = theirs(expected, WEIGHTED, epochs=1)

    again = ours(found, WEIGHTED, mode="xla", epochs=1)
    assert {name: pytest.approx(values, abs=1e-5) for name, values in curve.items()} == again
    for wanted, value in zip(state(expected), state(found), strict=True):
        if wanted.dtype == np.float32:
            np.testing.assert_allclose(wanted, value, atol=1e-5)


class Left(Exception):
    """A run was left within an epoch."""


class LeaveAt(keras.callbacks.Callback):  # type: ignore[misc]
    """Leaves the run once so many steps are done, as one does that is interrupted."""

    def __init__(self, epoch: int, step: int) -> None:
        super().__init__()
        self.wanted = Position(epoch, step)
        self.reached = Position(0)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.reached = Position(epoch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.reached = Position(self.reached.epoch, batch + 1)
        if (self.reached.epoch, self.reached.step) >= (self.wanted.epoch, self.wanted.step):
            raise Left


MANY = blobs(40 * BATCH + 3)


@pytest.fixture(scope="module")
def left_alone() -> dict[LoopMode, tuple[str, dict[str, list[float]]]]:
    """What becomes of three epochs in one go."""
    outcomes: dict[LoopMode, tuple[str, dict[str, list[float]]]] = {}
    modes: tuple[LoopMode, ...] = ("graph", "xla")
    for mode in modes:
        model = made(light, plain)
        curve = ours(model, MANY, mode=mode)
        outcomes[mode] = (sha256(model), curve)
    return outcomes


@pytest.mark.parametrize(
    ("mode", "stops"),
    [("graph", [(0, 3), (1, 41)]), ("xla", [(0, 1), (0, 7)]), ("xla", [(1, 41)])],
    ids=["graph", "xla, early", "xla, late"],
)
def test_the_weights_do_not_depend_on_how_the_steps_are_divided(
    left_alone: dict[LoopMode, tuple[str, dict[str, list[float]]]], mode: LoopMode, stops: list[tuple[int, int]]
) -> None:
    """Each part begins with one step, then four, then as many as the pace allows."""
    model, at = made(light, plain), Position(0)
    for epoch, step in stops:
        leaving = LeaveAt(epoch, step)
        with pytest.raises(Left):
            ours(model, MANY, callbacks=[leaving], mode=mode, at=at)
        at = leaving.reached
    curve = ours(model, MANY, mode=mode, at=at)

    expected, whole = left_alone[mode]
    assert expected == sha256(model)
    assert {name: values[at.epoch :] for name, values in whole.items()} == curve


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_model_that_is_to_run_eagerly_is_not_compiled(mode: LoopMode) -> None:
    model = made(hidden, plain, run_eagerly=True)
    before = sha256(model)

    with pytest.raises(NotCompilable, match="eagerly"):
        ours(model, mode=mode)

    assert before == sha256(model)


def in_python(x: Any) -> Any:
    """Double by way of Python, which XLA cannot compile."""
    doubled = tf.py_function(lambda each: each * 2, [x], tf.float32)
    return tf.ensure_shape(doubled, x.shape)


def test_what_xla_cannot_compile_is_told_ahead_of_the_first_step() -> None:
    def odd() -> list[Any]:
        return [layers.Dense(8), layers.Lambda(in_python, output_shape=(8,)), layers.Dropout(0.3)]

    def even() -> list[Any]:
        return [layers.Dense(8), layers.Lambda(lambda x: x * 2, output_shape=(8,)), layers.Dropout(0.3)]

    model = made(odd, plain)
    before = sha256(model)

    with pytest.raises(NotCompilable):
        ours(model, mode="xla")

    assert before == sha256(model)
    # and another mode does, with the very same model
    expected = made(even, plain)
    assert theirs(expected) == ours(model)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_rows_that_the_model_does_not_take_are_refused_by_keras_in_the_end(mode: LoopMode) -> None:
    """The loop cannot tell what is wrong with a step; Keras says it best."""
    model = made(hidden, plain)
    narrow = replace(TRAIN, x=TRAIN.x[:, :-1])

    with pytest.raises(NotCompilable):
        ours(model, narrow, mode=mode)
    with pytest.raises(ValueError, match="incompatible"):
        ours(model, narrow, mode="keras")


@pytest.mark.parametrize("lie", ["shared", "moved", "strided", "read only"])
def test_rows_give_the_same_bits_however_they_lie_in_memory(lie: str) -> None:
    room = empty_rows(len(TRAIN.x) + 1, 2 * D)
    x = empty_rows(*TRAIN.x.shape)
    if lie == "moved":
        x = room.reshape(-1)[1 : TRAIN.x.size + 1].reshape(TRAIN.x.shape)
    elif lie == "strided":
        x = room[: len(TRAIN.x), :D]
    x[:] = TRAIN.x
    x.flags.writeable = lie != "read only"
    expected, found = made(hidden, plain), made(hidden, plain)
    ours(expected)

    ours(found, replace(TRAIN, x=x))

    assert sha256(expected) == sha256(found)


def test_fewer_rows_than_a_batch_may_be_followed_by_what_xla_cannot_compile() -> None:
    """The only training step of an epoch is no call that XLA compiles; the validation's are."""

    def odd() -> list[Any]:
        return [layers.Dense(8), layers.Lambda(in_python, output_shape=(8,))]

    model = made(odd, plain)

    with pytest.raises(NotCompilable):
        ours(model, blobs(3), mode="xla")
