"""Training on whichever backend of Keras this process has; `make test-backends` runs it on all three.

TensorFlow's loop is compiled, the others' is Keras's own `fit`; what comes of them is held to the same.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from app.client import Client, Job
from app.errors import Invalid
from app.learning.artifact.artifact import weights_sha256
from app.learning.artifact.artifact_files import load_artifact
from app.learning.encoding.read_cells import records_cells
from app.learning.evaluation.evaluate import score
from app.learning.network import keras_backend
from app.learning.network.architecture import Architecture
from app.learning.network.keras_network import KerasRuntime
from app.learning.network.onnx_network import OnnxRuntime
from app.learning.training import fit
from app.learning.training.checkpoint import Checkpoint, load_checkpoint, write_checkpoint
from app.learning.training.events import LoopChosen
from app.learning.training.examples import Examples
from app.learning.training.loop import build_variables as prepare_variables
from app.learning.training.split_rows import class_weights
from app.learning.training.task import Interrupted, Task
from tests.jobs.test_training_child import converse, ended, prepare, train
from tests.learning.training.test_fit import HELD_OUT, SEED, STEPS, TRAIN, TUTORIAL, D, K, dense, resolved, run
from tests.service import ROOT

# Keras reads its variables in a way that NumPy will not go on to support
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

BACKEND = keras.backend.backend()
OTHERS = [name for name in ("tensorflow", "jax", "torch") if name != BACKEND and importlib.util.find_spec(name)]
LOOP = "graph" if BACKEND == "tensorflow" else "keras"
#: everything that keeps a state between steps
FULL: dict[str, Any] = {
    "network": {"layers": [{"units": 16, "dropout": 0.3, "l2": 0.01}], "batch_norm": True},
    "optimizer": {"momentum": 0.9, "nesterov": True, "schedule": "cosine", "warmup": 1 / 3},
}


def literal(
    layers: list[Any], optimizer: Any, loss: Any, class_weight: dict[int, float] | None = None
) -> tuple[list[NDArray[np.float32]], list[float]]:
    """A literal Keras script, an epoch at a time: its weights and each epoch's loss. Layers are made after the seed is set."""
    keras.utils.set_random_seed(SEED)
    model = keras.Sequential([keras.Input((D,)), *(make() for make in layers)])
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    # PyTorch's dropout draws from the process's own stream, which this moves on
    prepare_variables(model, D, K)
    losses = []
    for epoch in range(3):
        order = np.random.default_rng([SEED, epoch]).permutation(TRAIN.rows)
        labels = TRAIN.y[order]
        weight = None if class_weight is None else np.array([class_weight[label] for label in labels.tolist()])
        rows = (TRAIN.x[order], keras.utils.to_categorical(labels, K))
        curve = model.fit(*rows, sample_weight=weight, batch_size=32, shuffle=False, verbose=0)
        losses += curve.history["loss"]
    return model.get_weights(), losses


def full_layers() -> list[Any]:
    """The literal layers of `FULL`."""
    return [
        dense(16, kernel_regularizer=keras.regularizers.L2(0.01)),
        keras.layers.BatchNormalization,
        keras.layers.ReLU,
        lambda: keras.layers.Dropout(0.3),
        dense(K, "softmax"),
    ]


def softmax_of_layers(architecture: Architecture, weights: Any, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """`FULL`'s network in prediction, by hand."""
    w = [weight.astype(np.float64) for weight in weights.values()]
    kernel, bias, gamma, beta, mean, variance, last, last_bias = w
    at = (x @ kernel + bias - mean) / np.sqrt(variance + 1e-3) * gamma + beta
    logits = np.maximum(at, 0) @ last + last_bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(p / p.sum(1, keepdims=True))


def assert_same(expected: tuple[list[NDArray[np.float32]], list[float]], found: fit.Fitted) -> None:
    weights, losses = expected
    assert LOOP == found.loop
    assert losses == pytest.approx([entry["loss"] for entry in found.history], rel=1e-6)
    for wanted, weight in zip(weights, found.weights.values(), strict=True):
        np.testing.assert_allclose(wanted, weight, atol=1e-6)


def test_the_tutorials_weights_are_those_of_keras_own_fit() -> None:
    assert_same(literal(TUTORIAL, "sgd", "categorical_crossentropy"), run(resolved()))


def test_with_everything_at_once_the_weights_are_those_of_keras_own_fit() -> None:
    weighting = {0: 1.0, 1: 5.0, 2: 0.2}
    schedule = keras.optimizers.schedules.CosineDecay(0.0, STEPS - 3, warmup_target=0.01, warmup_steps=3)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)
    smooth = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
    by_name = {str(label): weight for label, weight in weighting.items()}
    spec = resolved(**FULL, fit={"label_smoothing": 0.1, "class_weight": by_name})

    found = run(spec, replace(TRAIN, weight=class_weights(spec, [0, 1, 2], TRAIN.y)))

    assert_same(literal(full_layers(), optimizer, smooth, weighting), found)


def test_early_stopping_keeps_the_best_weights() -> None:
    noise = Examples(HELD_OUT.x, np.random.default_rng(3).integers(0, K, len(HELD_OUT.y)).astype(np.int32))
    fits = {"epochs": 30, "early_stopping": {"patience": 2}}
    spec = resolved(optimizer={"learning_rate": 0.3, "momentum": 0.9}, fit=fits)

    found = run(spec, validation=noise)

    losses = [float(entry["val_loss"] or 0) for entry in found.history]
    logits = OnnxRuntime(Architecture.from_spec(spec, D, K), found.weights).logits(noise.x)
    assert "early_stopping" == found.stopped
    assert losses.index(min(losses)) == len(losses) - 3
    assert min(losses) == pytest.approx(score("log_loss", logits, noise.y), abs=1e-5)


@pytest.mark.parametrize("interrupted_after", [1, 3])
def test_a_run_taken_up_again_ends_as_one_left_alone(tmp_path: Path, interrupted_after: int) -> None:
    spec = resolved(**FULL, fit={"epochs": 5, "early_stopping": {"patience": 4}})
    alone = run(spec, validation=HELD_OUT)
    kept: list[Path] = []

    def keep(state: Checkpoint) -> None:
        kept.append(tmp_path / f"checkpoint-{len(kept)}")
        write_checkpoint(state, kept[-1])

    with pytest.raises(Interrupted):
        run(
            spec,
            validation=HELD_OUT,
            keep=keep,
            is_stopping=lambda: len(kept) >= interrupted_after,
            checkpoint_seconds=0.0,
        )
    saved = load_checkpoint(kept[interrupted_after - 1])
    architecture = Architecture.from_spec(spec, D, K)
    again = fit.fit(Task(architecture, spec, TRAIN, HELD_OUT, lambda _event: None), saved)

    assert (interrupted_after, 0) == (saved.position.epoch, saved.position.step)
    assert weights_sha256(alone.weights) == weights_sha256(again.weights)
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"):
        assert [entry[name] for entry in alone.history] == [entry[name] for entry in again.history]


def test_ten_runs_give_the_same_bits() -> None:
    spec = resolved(**FULL, fit={"epochs": 2})

    assert 1 == len({weights_sha256(run(spec, validation=HELD_OUT).weights) for _ in range(10)})


def test_deterministic_operations_train() -> None:
    # in a process of its own, which stays so
    code = (
        "from tests.learning.training.test_fit import resolved, run; from app.learning.artifact.artifact import weights_sha256;"
        "spec = resolved(fit={'deterministic': True});"
        "print(len({weights_sha256(run(spec).weights) for _ in range(2)}))"
    )

    assert "1" == in_another_process(code)


def test_keras_onnx_runtime_and_the_formula_answer_alike() -> None:
    spec = resolved(**FULL)
    architecture, weights = Architecture.from_spec(spec, D, K), run(spec).weights
    ours, theirs = OnnxRuntime(architecture, weights), KerasRuntime(architecture, weights, "cpu")

    expected = softmax_of_layers(architecture, weights, HELD_OUT.x)

    np.testing.assert_allclose(expected, ours.probabilities(HELD_OUT.x), atol=1e-5)
    np.testing.assert_allclose(expected, theirs.probabilities(HELD_OUT.x), atol=1e-5)
    np.testing.assert_allclose(ours.logits(HELD_OUT.x), theirs.logits(HELD_OUT.x), atol=1e-4)
    assert ("cpu", f"keras-{BACKEND}") == (theirs.device, theirs.library)


def test_a_child_trains_a_version_that_every_backend_here_serves(tmp_path: Path) -> None:
    request = prepare(tmp_path, {"network": FULL["network"], "fit": {"epochs": 4, "class_weight": "balanced"}})

    code, messages = converse(request)

    assert (0, "done") == (code, messages[-1].type)
    assert {LOOP} == {message.loop for message in messages if isinstance(message, LoopChosen)}
    done = ended(messages)
    environment = done.version.environment
    assert (BACKEND, LOOP) == (environment["backend"], environment["loop"])
    made = load_artifact(tmp_path / "version", done.sha256)
    x = made.encoder.encode(records_cells(made.encoder, made.golden.columns, len(made.golden.records)))
    assert made.golden.probabilities == OnnxRuntime(made.architecture, made.weights).probabilities(x).tolist()
    answer = (
        "import json, sys; from pathlib import Path; import numpy as np;"
        "from app.learning.artifact.artifact_files import load_artifact; from app.learning.network.keras_network import KerasRuntime;"
        f"made = load_artifact(Path({str(tmp_path / 'version')!r}), {done.sha256!r});"
        f"x = np.array({x.tolist()!r}, np.float32);"
        "runtime = KerasRuntime(made.architecture, made.weights, 'cpu');"
        "print(json.dumps([runtime.library, runtime.probabilities(x).tolist()]))"
    )
    for backend in (BACKEND, *OTHERS):
        library, found = json.loads(in_another_process(answer, KERAS_BACKEND=backend))
        assert f"keras-{backend}" == library
        np.testing.assert_allclose(made.golden.probabilities, found, atol=1e-5)


def test_a_child_computes_the_same_bits_on_one_core_and_on_all(tmp_path: Path) -> None:
    code = (
        "import app.jobs.training_child; import numpy as np; from tests.learning.training.test_fit import resolved, run;"
        "from app.learning.artifact.artifact import weights_sha256; from app.learning.training.examples import Examples;"
        "rng = np.random.default_rng(0); x = rng.normal(0, 1, (1024, 300)).astype(np.float32);"
        "train = Examples(x, rng.integers(0, 3, 1024).astype(np.int32));"
        "spec = resolved(network={'layers': [{'units': 512}, {'units': 256}]}, fit={'epochs': 1, 'batch_size': 512});"
        "print(weights_sha256(run(spec, train).weights))"
    )
    first = min(os.sched_getaffinity(0))

    with ThreadPoolExecutor(2) as pool:
        digests = set(pool.map(in_another_process, [code, f"import os; os.sched_setaffinity(0, {{{first}}}); {code}"]))

    assert 1 == len(digests)


def test_a_gpu_trains_where_there_is_one_and_is_refused_elsewhere(tmp_path: Path) -> None:
    request = prepare(tmp_path, {"device": "gpu", "fit": {"epochs": 2}})

    if keras_backend.has_gpu():
        assert "gpu:0" == train(request).version.environment["device"]
    else:
        with pytest.raises(Invalid, match=r"Expected a GPU that .* can use for device 'gpu', got none"):
            train(request)


def test_running_out_of_memory_is_told_from_other_troubles() -> None:
    code = (
        "import keras; from app.learning.network.keras_backend import is_out_of_memory\n"
        "try: keras.ops.ones((2**22, 2**22), dtype='float32')\n"
        "except Exception as error: print(is_out_of_memory(error))"
    )

    # with oneDNN TensorFlow hopes for memory for ten seconds
    assert "True" == in_another_process(code, TF_ENABLE_ONEDNN_OPTS="0")
    assert not keras_backend.is_out_of_memory(RuntimeError("shapes do not match"))


def test_the_child_imports_no_other_backend() -> None:
    code = "import sys, app.jobs.training_child, app.learning.training.loop; print(*({'tensorflow', 'jax', 'torch'} & set(sys.modules)))"

    assert BACKEND == in_another_process(code)


def test_a_service_uploads_trains_evaluates_and_predicts(client: Client, http: httpx.Client, penguins: Job) -> None:
    accuracy = client.evaluate(penguins.ref, dataset=penguins.document["dataset"])["accuracy"]
    record = {"island": "Biscoe", "bill_length_mm": 50.4, "body_mass_g": 5750}
    answer = client.predict(penguins.ref, records=[record])
    system = http.get("/api/v1/system").raise_for_status().json()
    exported = http.get(f"/api/v1/models/penguins/versions/{penguins.version}/export?format=saved_model", timeout=100)

    assert 0.9 < accuracy
    assert ["Gentoo"] == answer.predictions
    assert BACKEND in system["libraries"]
    if "tensorflow" in (BACKEND, *OTHERS):
        assert exported.is_success
    else:
        assert 422 == exported.status_code
        assert "Expected TensorFlow to be installed" in exported.text


def in_another_process(code: str, **variables: str) -> str:
    """Run a program in the root of the repository; gives what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
