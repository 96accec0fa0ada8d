"""Fitting against literal Keras scripts, against the formula by hand, and in trouble."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from app.learning.evaluation.evaluate import evaluate, higher_is_better, score
from app.learning.network.architecture import Architecture
from app.learning.network.keras_backend import is_out_of_memory
from app.learning.network.keras_network import KerasRuntime, build
from app.learning.network.onnx_network import OnnxRuntime
from app.learning.spec import TrainSpec
from app.learning.training import fit
from app.learning.training.events import Epoch, Event, Progress
from app.learning.training.examples import Examples
from app.learning.training.split_rows import class_weights, split
from app.learning.training.task import Diverged, OutOfTime, Task

N, D, K = 96, 5, 3
SEED = 7
Weights = dict[str, NDArray[np.float32]]


def blobs(n: int = N, distance: float = 1.5, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, n).astype(np.int32)
    x = rng.normal(0, 1, (n, D)) + distance * np.eye(K, D)[y]
    return Examples(x.astype(np.float32), y)


TRAIN, HELD_OUT = blobs(), blobs(40, seed=1)


def resolved(**changes: Any) -> TrainSpec:
    """The classic tutorial, but for some changes by section."""
    document: dict[str, Any] = {
        "target": "y",
        "features": {"scaling": "none", "encoding": "plain"},
        "validation": None,
        "network": {"layers": [{"units": 16, "activation": "relu"}]},
        "optimizer": {"learning_rate": 0.01, "momentum": 0.0, "schedule": "constant", "warmup": 0.0},
        "fit": {"epochs": 3, "batch_size": 32, "early_stopping": None, "seed": SEED, "max_seconds": 100},
    }
    for name, value in changes.items():
        document[name] = document[name] | value if isinstance(document.get(name), dict) else value
    return TrainSpec.model_validate(document)


def run(
    spec: TrainSpec,
    train: Examples = TRAIN,
    validation: Examples | None = None,
    events: list[Event] | None = None,
    **more: Any,
) -> fit.Fitted:
    architecture = Architecture.from_spec(spec, train.x.shape[1], K)
    told = [] if events is None else events
    return fit.fit(Task(architecture, spec, train, validation, told.append, **more))


class Batches(keras.utils.PyDataset):  # type: ignore[misc]
    """The documented batches of each epoch: `default_rng([seed, epoch]).permutation(n)`, 32 rows at a time."""

    def __init__(self, class_weight: dict[int, float] | None = None) -> None:
        super().__init__()
        self.epoch, self.class_weight = -1, class_weight

    def __len__(self) -> int:
        return math.ceil(N / 32)

    def __getitem__(self, index: int) -> tuple[NDArray[Any], ...]:
        rows = np.random.default_rng([SEED, max(self.epoch, 0)]).permutation(N)[index * 32 : (index + 1) * 32]
        batch = (TRAIN.x[rows], keras.utils.to_categorical(TRAIN.y[rows], K))
        if self.class_weight is None:
            return batch
        return (*batch, np.array([self.class_weight[label] for label in TRAIN.y[rows].tolist()], np.float32))

    def on_epoch_begin(self) -> None:
        self.epoch += 1


def literal(
    layers: list[Any],
    *,
    optimizer: Any = "sgd",
    loss: Any = "categorical_crossentropy",
    validation: Examples | None = None,
    class_weight: dict[int, float] | None = None,
    shuffle: bool = True,
    epochs: int = 3,
    callbacks: Any = (),
) -> tuple[list[NDArray[np.float32]], dict[str, list[float]]]:
    """A literal Keras script: its weights and its curve. `layers` and `optimizer` are made after the seed is set."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((D,)), *(make() for make in layers)])
    model.compile(optimizer=optimizer() if callable(optimizer) else optimizer, loss=loss, metrics=["accuracy"])
    data = (Batches(class_weight),) if shuffle else (TRAIN.x, keras.utils.to_categorical(TRAIN.y, K))
    held_out = None if validation is None else (validation.x, keras.utils.to_categorical(validation.y, K))
    curve = model.fit(
        *data,
        shuffle=False,
        validation_data=held_out,
        validation_batch_size=32,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
    )
    return model.get_weights(), curve.history


def dense(units: int, activation: str | None = None, **arguments: Any) -> Any:
    return lambda: keras.layers.Dense(units, activation=activation, **arguments)


TUTORIAL = [dense(16, "relu"), dense(K, "softmax")]


def assert_same(expected: tuple[list[NDArray[np.float32]], dict[str, list[float]]], found: fit.Fitted) -> None:
    """To the bit: the short runs of this file are computed in graph mode."""
    assert "graph" == found.loop
    weights, curve = expected
    for name, values in curve.items():
        assert values == [entry[name] for entry in found.history], name
    for wanted, weight in zip(weights, found.weights.values(), strict=True):
        np.testing.assert_array_equal(wanted, weight)


def test_explicit_values_give_the_tutorials_curve() -> None:
    spec = resolved(network={"layers": [{"units": 64, "activation": "relu"}]}, fit={"epochs": 10})

    assert_same(literal([dense(64, "relu"), dense(K, "softmax")], epochs=10), run(spec))


SGD = keras.optimizers.SGD
schedules = keras.optimizers.schedules
STEPS = 3 * 3


@pytest.mark.parametrize(
    ("changes", "optimizer"),
    [
        ({"momentum": 0.9}, lambda: SGD(0.01, momentum=0.9)),
        ({"momentum": 0.9, "nesterov": True}, lambda: SGD(0.01, momentum=0.9, nesterov=True)),
        ({"weight_decay": 0.1}, lambda: SGD(0.01, weight_decay=0.1)),
        ({"schedule": "cosine"}, lambda: SGD(schedules.CosineDecay(0.01, STEPS))),
        ({"schedule": "exponential"}, lambda: SGD(schedules.ExponentialDecay(0.01, STEPS, 0.01))),
        ({"schedule": "step"}, lambda: SGD(schedules.PiecewiseConstantDecay([4, 6], [0.01, 0.001, 0.0001]))),
    ],
)
def test_the_optimizer_is_that_of_keras(changes: dict[str, Any], optimizer: Any) -> None:
    assert_same(literal(TUTORIAL, optimizer=optimizer), run(resolved(optimizer=changes)))


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5] * 10),
        ("cosine", [0.5 * 0.5 * (1 + math.cos(math.pi * e / 10)) for e in range(1, 11)]),
        ("exponential", [0.5 * 0.01 ** (e / 10) for e in range(1, 11)]),
        ("step", [0.5] * 5 + [0.05] * 2 + [0.005] * 3),
    ],
)
def test_a_schedule_follows_its_formula(schedule: str, rates: list[float]) -> None:
    """The rate in the history is that of the next step: after e of 10 epochs of one step each."""
    found = run(resolved(optimizer={"schedule": schedule, "learning_rate": 0.5}, fit={"epochs": 10, "batch_size": N}))

    assert rates == pytest.approx([entry["learning_rate"] for entry in found.history], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        ({"layers": []}, [dense(K, "softmax")]),
        ({"layers": [{"units": 8, "activation": "tanh"}, {"units": 4, "activation": "elu"}]}, [dense(8, "tanh"), dense(4, "elu"), dense(K, "softmax")]),
        ({"layers": [{"units": 16, "l2": 0.1}]}, [dense(16, "relu", kernel_regularizer=keras.regularizers.L2(0.1)), dense(K, "softmax")]),
        ({"layers": [{"units": 16, "dropout": 0.5}]}, [dense(16, "relu"), lambda: keras.layers.Dropout(0.5), dense(K, "softmax")]),
        ({"layers": [{"units": 16}], "batch_norm": True}, [dense(16), keras.layers.BatchNormalization, keras.layers.ReLU, dense(K, "softmax")]),
    ],
    ids=["no layer", "two layers", "l2", "dropout", "batch norm"],
)  # fmt: skip
def test_the_network_is_that_of_keras(network: dict[str, Any], layers: list[Any]) -> None:
    assert_same(literal(layers, validation=HELD_OUT), run(resolved(network=network), validation=HELD_OUT))


def test_label_smoothing_is_that_of_keras() -> None:
    smooth = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)

    assert_same(literal(TUTORIAL, loss=smooth), run(resolved(fit={"label_smoothing": 0.2})))


def test_class_weights_are_those_of_keras() -> None:
    weighting = {0: 1.0, 1: 5.0, 2: 0.2}
    spec = resolved(fit={"class_weight": {str(label): weight for label, weight in weighting.items()}})
    weighted = replace(TRAIN, weight=class_weights(spec, [0, 1, 2], TRAIN.y))

    assert_same(literal(TUTORIAL, class_weight=weighting), run(spec, weighted))


def test_rows_are_not_shuffled_where_that_is_asked() -> None:
    found = run(resolved(fit={"shuffle": False}))

    assert_same(literal(TUTORIAL, shuffle=False), found)
    assert found.history[-1]["loss"] != run(resolved()).history[-1]["loss"]


def test_one_step_is_the_formula_by_hand() -> None:
    spec = resolved(
        network={"layers": []},
        optimizer={"learning_rate": 0.5, "momentum": 0.9, "nesterov": True},
        fit={"epochs": 1, "batch_size": N, "label_smoothing": 0.1},
    )
    architecture = Architecture.from_spec(spec, D, K)
    w, b = (weight.astype(np.float64) for weight in build(architecture, seed=SEED).get_weights())

    found = run(spec)

    logits = TRAIN.x @ w + b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (p - (np.eye(K)[TRAIN.y] * 0.9 + 0.1 / K)) / N  # (n, k)
    # Nesterov from rest: v = -rate · g; w += momentum · v - rate · g
    np.testing.assert_allclose(w - 0.5 * 1.9 * (TRAIN.x.T @ error), found.weights["0.kernel"], atol=1e-6)
    np.testing.assert_allclose(b - 0.5 * 1.9 * error.sum(0), found.weights["0.bias"], atol=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    spec = resolved(network={"layers": [{"units": 16, "dropout": 0.3}]})

    first, again, other = run(spec), run(spec), run(resolved(network=spec.network.model_dump(), fit={"seed": 8}))

    for name, weight in first.weights.items():
        np.testing.assert_array_equal(weight, again.weights[name])
    assert (first.weights["0.kernel"] != other.weights["0.kernel"]).any()


def test_separable_blobs_are_learnt() -> None:
    spec = resolved(optimizer={"learning_rate": 0.1, "momentum": 0.9}, fit={"epochs": 15})

    assert 1.0 == run(spec, blobs(distance=20)).history[-1]["accuracy"]


@pytest.mark.parametrize("optimize", ["log_loss", "accuracy", "balanced_accuracy", "macro_f1", "roc_auc"])
def test_early_stopping_keeps_the_best_weights_by_what_is_optimized(optimize: str) -> None:
    noise = Examples(HELD_OUT.x, np.random.default_rng(3).integers(0, K, len(HELD_OUT.y)).astype(np.int32))
    spec = resolved(
        optimizer={"learning_rate": 0.3, "momentum": 0.9},
        fit={"epochs": 30, "early_stopping": {"patience": 2}},
        optimize=optimize,
    )

    found = run(spec, validation=noise)

    name = {"log_loss": "val_loss", "accuracy": "val_accuracy"}.get(optimize, f"val_{optimize}")
    scores = [float(entry[name] or 0) for entry in found.history]
    best = max(scores) if higher_is_better(optimize) else min(scores)
    runtime = OnnxRuntime(Architecture.from_spec(spec, D, K), found.weights)
    assert "early_stopping" == found.stopped
    assert 3 <= len(found.history) < 30
    assert scores.index(best) == len(scores) - 3
    assert best == pytest.approx(score(optimize, runtime.logits(noise.x), noise.y), abs=1e-5)


def test_the_last_weights_stay_where_the_best_are_not_asked_for() -> None:
    stopping = {"patience": 1, "restore_best_weights": False}
    spec = resolved(optimizer={"learning_rate": 0.9}, fit={"epochs": 30, "early_stopping": stopping})

    found = run(spec, validation=HELD_OUT)

    runtime = OnnxRuntime(Architecture.from_spec(spec, D, K), found.weights)
    last = score("log_loss", runtime.logits(HELD_OUT.x), HELD_OUT.y)
    assert found.history[-1]["val_loss"] == pytest.approx(last, abs=1e-5)


def test_where_a_score_is_not_defined_early_stopping_goes_by_the_loss() -> None:
    one_class = Examples(HELD_OUT.x, np.zeros_like(HELD_OUT.y))
    changes: dict[str, Any] = {
        "optimizer": {"learning_rate": 0.05},
        "fit": {"epochs": 6, "early_stopping": {"patience": 2}},
    }

    by_score, by_loss = (run(resolved(**changes, optimize=o), validation=one_class) for o in ("roc_auc", "log_loss"))

    assert 3 < len(by_score.history) == len(by_loss.history)
    for name, weight in by_loss.weights.items():
        np.testing.assert_array_equal(weight, by_score.weights[name])


def test_a_run_that_diverges_says_in_which_epoch() -> None:
    with pytest.raises(Diverged, match="not a finite number in epoch 1; try a smaller learning rate") as caught:
        run(resolved(optimizer={"learning_rate": 1e30}, network={"layers": [{"units": 4, "activation": "linear"}] * 3}))

    assert 1 == caught.value.epoch


def test_a_run_out_of_time_ends_after_the_epochs_it_has() -> None:
    spec = resolved(fit={"epochs": 100_000, "max_seconds": 5})

    found = run(spec)

    assert "max_seconds" == found.stopped
    assert 1 <= len(found.history) < 100_000
    assert all(np.isfinite(weight).all() for weight in found.weights.values())


def test_a_run_out_of_time_within_its_first_epoch_has_nothing_to_keep() -> None:
    with pytest.raises(OutOfTime, match=r"reached its 1e-06 seconds before the first epoch ended"):
        run(resolved(fit={"max_seconds": 1e-6}))


def test_each_epoch_is_told_with_its_figures() -> None:
    events: list[Event] = []

    found = run(resolved(), validation=HELD_OUT, events=events)

    epochs = [event for event in events if isinstance(event, Epoch)]
    assert found.history == [event.figures() for event in epochs]
    assert [(1, 3), (2, 3), (3, 3)] == [(event.epoch, event.epochs) for event in epochs]
    names = {"loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "elapsed_seconds", "rows_per_second"}
    assert {"epoch", "epochs"} | names == set(epochs[0].figures())
    last = [event for event in events if isinstance(event, Progress)][-1]
    assert Progress(epoch=3, epochs=3, step=3, steps=3, fraction=1.0, eta_seconds=0.0) == last


@pytest.mark.parametrize(
    "network", [{"layers": [{"units": 16, "l2": 0.05}]}, {"layers": [{"units": 9}], "batch_norm": True}]
)
def test_loss_and_accuracy_are_those_of_keras_evaluate(network: dict[str, Any]) -> None:
    spec = resolved(network=network, fit={"label_smoothing": 0.1})
    architecture, found = Architecture.from_spec(spec, D, K), run(spec)
    model = build(architecture)
    model.set_weights(list(found.weights.values()))
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    model.compile(optimizer="sgd", loss=loss, metrics=["accuracy"])

    theirs = model.evaluate(HELD_OUT.x, keras.utils.to_categorical(HELD_OUT.y, K), verbose=0)

    logits = OnnxRuntime(architecture, found.weights).logits(HELD_OUT.x)
    ours = evaluate(logits, HELD_OUT.y, label_smoothing=0.1, penalty=architecture.penalty(found.weights))
    assert theirs == pytest.approx([ours.loss, ours.accuracy], abs=1e-5)


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_keras_and_onnx_runtime_answer_alike(rows: int) -> None:
    layers = [{"units": 16, "activation": "gelu", "dropout": 0.2}, {"units": 5, "activation": "selu"}]
    spec = resolved(network={"layers": layers, "batch_norm": True})
    architecture, found = Architecture.from_spec(spec, D, K), run(spec)
    ours = OnnxRuntime(architecture, found.weights)
    theirs = KerasRuntime(architecture, found.weights, "cpu")
    x = HELD_OUT.x[:rows]

    np.testing.assert_allclose(theirs.probabilities(x), ours.probabilities(x), atol=1e-5)
    np.testing.assert_allclose(theirs.logits(x), ours.logits(x), atol=1e-4)
    assert ("cpu", "keras-tensorflow") == (theirs.device, theirs.library)


def test_keras_answers_more_rows_than_one_slice() -> None:
    spec = resolved()
    architecture, weights = Architecture.from_spec(spec, D, K), run(spec).weights
    x = blobs(5000).x

    found = KerasRuntime(architecture, weights, "cpu").logits(x)

    np.testing.assert_allclose(OnnxRuntime(architecture, weights).logits(x), found, atol=1e-4)


def test_running_out_of_memory_is_told_from_other_troubles() -> None:
    import tensorflow as tf

    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**62, np.uint8)

    assert is_out_of_memory(of_numpy.value)
    assert is_out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
    assert is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate"))
    assert not is_out_of_memory(tf.errors.InvalidArgumentError(None, None, "memory"))


Y = np.array([0] * 40 + [1] * 10 + [2] * 2 + [3] + [-1] * 7, np.int32)


def test_each_class_keeps_a_training_row_however_much_is_held_out() -> None:
    rows, held_out = split(Y, resolved(validation={"fraction": 0.9}))

    assert [4, 1, 1, 1] == np.bincount(Y[rows]).tolist()
    assert 53 == len(rows) + len(held_out)


def test_the_split_is_stratified_and_seeded() -> None:
    y = np.random.default_rng(0).permutation(Y)
    spec = resolved(validation={"fraction": 0.3})

    rows, held_out = split(y, spec)

    assert {0: 12, 1: 3, 2: 1} == {label: int((y[held_out] == label).sum()) for label in set(y[held_out].tolist())}
    assert {0, 1, 2, 3} == set(y[rows].tolist())
    assert sorted([*rows, *held_out]) == np.flatnonzero(y >= 0).tolist()
    assert all(np.array_equal(a, b) for a, b in zip((rows, held_out), split(y, spec), strict=True))
    assert not np.array_equal(held_out, split(y, resolved(validation={"fraction": 0.3}, fit={"seed": 1}))[1])


@pytest.mark.parametrize("validation", [None, {"dataset": "ds_1"}])
def test_without_a_fraction_every_labelled_row_trains(validation: Any) -> None:
    rows, held_out = split(Y, resolved(validation=validation))

    assert (53, 0) == (len(rows), len(held_out))


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    y = Y[Y >= 0]

    found = class_weights(resolved(fit={"class_weight": "balanced"}), ["a", "b", "c", "d"], y)

    expected = compute_class_weight("balanced", classes=np.arange(4), y=y)
    assert found is not None
    np.testing.assert_allclose(expected[y], found, rtol=1e-6)


def test_class_weights_are_found_by_label() -> None:
    y = np.array([1, 0, 1], np.int32)

    def found(asked: Any, classes: list[Any]) -> Any:
        weights = class_weights(resolved(fit={"class_weight": asked}), classes, y)
        return None if weights is None else weights.tolist()

    assert [3.0, 1.0, 3.0] == found({"5": 3.0}, [1, 5])
    assert [3.0, 1.0, 3.0] == found({"True": 3.0}, [False, True])
    assert found(None, [1, 5]) is None
    with pytest.raises(Exception, match="There is no class '6'"):
        found({"6": 3.0}, [1, 5])
