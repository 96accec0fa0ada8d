"""The network as data and as an ONNX graph, against literal Keras layers."""

from __future__ import annotations

import json
from typing import Any, get_args

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from app.learning.network.architecture import Architecture, Dense
from app.learning.network.onnx_network import CALL_ROWS, OnnxRuntime, to_onnx
from app.learning.spec import ActivationName, TrainSpec, count_parameters

ACTIVATIONS = get_args(ActivationName)


def architecture(layers: list[dict[str, Any]], inputs: int = 4, classes: int = 3, **network: Any) -> Architecture:
    spec = TrainSpec.model_validate({"network": {"layers": layers, **network}})
    return Architecture.from_spec(spec, inputs, classes)


def random_weights(of: Architecture, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(0, 1, shape) for name, shape in of.shapes().items()}
    weights |= {name: np.abs(w) + 0.1 for name, w in weights.items() if name.endswith("variance")}
    return {name: w.astype(np.float32) for name, w in weights.items()}


def rows(n: int = 64, d: int = 4, scale: float = 3.0) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, scale, (n, d)).astype(np.float32)


def assert_as_keras(of: Architecture, layers: list[Any]) -> None:
    """The graph's answers are those of these literal Keras layers with the same weights."""
    model = keras.Sequential([keras.Input((of.inputs,)), *layers])
    weights = random_weights(of)
    model.set_weights(list(weights.values()))
    x = rows(d=of.inputs)

    found = OnnxRuntime(of, weights).probabilities(x)

    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x, training=False)), found, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_that_of_keras(activation: str) -> None:
    dense = keras.layers.Dense

    assert_as_keras(
        architecture([{"units": 8, "activation": activation}]),
        [dense(8, activation=activation), dense(3, activation="softmax")],
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_batch_normalisation_stands_between_a_layer_and_its_activation(activation: str) -> None:
    dense, norm = keras.layers.Dense, keras.layers.BatchNormalization

    assert_as_keras(
        architecture([{"units": 8, "activation": activation}], batch_norm=True),
        [dense(8), norm(), keras.layers.Activation(activation), dense(3, activation="softmax")],
    )


def test_dropout_does_nothing_at_prediction() -> None:
    dense = keras.layers.Dense

    assert_as_keras(
        architecture([{"units": 8, "dropout": 0.5}]),
        [dense(8, activation="relu"), keras.layers.Dropout(0.5), dense(3, activation="softmax")],
    )


@pytest.mark.parametrize("depth", [0, 1, 2, 5, 20])
def test_every_depth_is_that_of_keras(depth: int) -> None:
    dense = keras.layers.Dense

    assert_as_keras(
        architecture([{"units": 6, "activation": "tanh"}] * depth),
        [*(dense(6, activation="tanh") for _ in range(depth)), dense(3, activation="softmax")],
    )


@pytest.mark.parametrize("classes", [2, 3, 100])
def test_the_softmax_of_the_logits_are_the_probabilities(classes: int) -> None:
    of = architecture([{"units": 8}], classes=classes)
    runtime = OnnxRuntime(of, random_weights(of))

    logits = runtime.logits(rows()).astype(np.float64)

    e = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(e / e.sum(1, keepdims=True), runtime.probabilities(rows()), atol=1e-6)
    np.testing.assert_allclose(1, runtime.probabilities(rows()).sum(1), atol=1e-6)


@pytest.mark.parametrize("units", [7, 64, 300])
def test_a_row_has_the_same_bits_whatever_its_batch(units: int) -> None:
    of = architecture([{"units": units}, {"units": 33, "activation": "gelu"}], inputs=19, batch_norm=True)
    runtime, x = OnnxRuntime(of, random_weights(of)), rows(300, 19)

    whole = runtime.probabilities(x)

    for size in (1, 2, 3, 64, 255):
        parts = [runtime.probabilities(x[i : i + size]) for i in range(0, len(x), size)]
        assert whole.tobytes() == np.concatenate(parts).tobytes()
    assert whole[::-1].tobytes() == runtime.probabilities(np.ascontiguousarray(x[::-1])).tobytes()


def test_rows_beyond_one_call_have_the_bits_that_they_have_alone() -> None:
    of = Architecture(3, (Dense(5, "relu"), Dense(2, "softmax")))
    runtime = OnnxRuntime(of, random_weights(of))
    x = np.random.default_rng(0).normal(size=(2 * CALL_ROWS + 1, 3)).astype(np.float32)

    logits = runtime.logits(x)

    assert (len(x), 2) == logits.shape
    for row in (0, CALL_ROWS - 1, CALL_ROWS, 2 * CALL_ROWS):
        np.testing.assert_array_equal(logits[row], runtime.logits(x[row : row + 1])[0])


def test_no_rows_give_no_answers() -> None:
    of = architecture([{"units": 8}])

    assert (0, 3) == OnnxRuntime(of, random_weights(of)).probabilities(rows(0)).shape


def test_equal_weights_give_an_equal_graph() -> None:
    of = architecture([{"units": 8}])

    assert to_onnx(of, random_weights(of)) == to_onnx(of, random_weights(of))
    assert to_onnx(of, random_weights(of)) != to_onnx(of, random_weights(of, seed=1))


def test_an_architecture_comes_back_from_its_document() -> None:
    of = architecture([{"units": 8, "dropout": 0.5, "l2": 0.1}, {"units": 4, "activation": "elu"}], batch_norm=True)

    assert of == Architecture.from_document(json.loads(json.dumps(of.document())))


SOFTMAX = {"type": "dense", "units": 3, "activation": "softmax"}


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [{"type": "lambda"}, SOFTMAX],
        [{"type": "dense", "units": 3, "activation": "relu", "code": "x"}, SOFTMAX],
        [{"type": "activation", "activation": "eval"}, SOFTMAX],
        [{"type": "dense", "units": 3, "activation": "relu"}],
    ],
)
def test_an_architecture_of_other_parts_is_refused(parts: list[dict[str, Any]]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError)):
        Architecture.from_document({"inputs": 4, "parts": parts})


def test_the_shapes_are_those_of_keras_and_as_many_as_were_counted() -> None:
    layers = [{"units": 8, "dropout": 0.5}, {"units": 5}]
    spec = TrainSpec.model_validate({"network": {"layers": layers, "batch_norm": True}})
    of = Architecture.from_spec(spec, 4, 3)
    dense, norm, relu = keras.layers.Dense, keras.layers.BatchNormalization, keras.layers.ReLU
    model = keras.Sequential([keras.Input((4,)), dense(8), norm(), relu(), dense(5), norm(), relu(), dense(3)])

    assert [w.shape for w in model.get_weights()] == list(of.shapes().values())
    assert sum(w.size for w in model.get_weights()) == count_parameters(4, spec, 3)


def test_the_penalty_is_what_keras_adds_to_its_loss() -> None:
    of = Architecture(4, (Dense(8, "relu", l2=0.01), Dense(5, "tanh", l2=0.5), Dense(3, "softmax")))
    weights = random_weights(of)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, kernel_regularizer=keras.regularizers.L2(0.01)),
            keras.layers.Dense(5, kernel_regularizer=keras.regularizers.L2(0.5)),
            keras.layers.Dense(3),
        ]
    )
    model.set_weights(list(weights.values()))

    assert pytest.approx(sum(float(loss) for loss in model.losses), rel=1e-6) == of.penalty(weights)
