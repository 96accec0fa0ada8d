"""Fitting with Keras, whatever its backend. The one module that imports `keras`; knows no files and no jobs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning import metrics
from app.learning.network import Activation, Architecture, BatchNorm, Dense, Dropout, Rescaling, Weights
from app.learning.spec import EarlyStopping, TrainSpec

#: at most so many progress events a second within an epoch
PROGRESS_HZ = 4
Emit = Callable[[dict[str, Any]], None]


class Diverged(Exception):
    """The loss became NaN or infinite; carries the epoch, from 1."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"The loss was not a finite number in epoch {epoch}; try a smaller learning rate.")
        self.epoch = epoch


class OutOfTime(Exception):
    """The run reached `max_seconds` in its first epoch, and so has nothing to keep."""


@dataclass(frozen=True)
class Examples:
    """Encoded rows: x float32 (n, d), y int32 (n,) in [0, k)."""

    x: NDArray[np.float32]
    y: NDArray[np.int32]


@dataclass(frozen=True)
class Fitted:
    """The weights by the names of `Architecture.shapes`, and the history, an entry for each epoch."""

    weights: dict[str, NDArray[np.float32]]
    history: list[dict[str, float | int | None]]
    stopped: str | None


def build(architecture: Architecture, *, seed: int | None = None) -> keras.Sequential:
    """Build the literal Keras network; with a seed, its initial weights are those of a script that sets it."""
    if seed is not None:
        keras.utils.set_random_seed(seed)
    layers: list[Any] = [keras.Input((architecture.inputs,))]
    for part in architecture.parts:
        if isinstance(part, Dense):
            penalty = keras.regularizers.L2(part.l2) if part.l2 else None
            layers.append(keras.layers.Dense(part.units, activation=part.activation, kernel_regularizer=penalty))
        elif isinstance(part, BatchNorm):
            layers.append(keras.layers.BatchNormalization())
        elif isinstance(part, Activation):
            layers.append(keras.layers.Activation(part.activation))
        elif isinstance(part, Dropout):
            layers.append(keras.layers.Dropout(part.rate))
    return keras.Sequential(layers)


def get_weights(model: keras.Sequential, architecture: Architecture) -> dict[str, NDArray[np.float32]]:
    """Read a model's weights under the names of `Architecture.shapes`."""
    return dict(zip(architecture.shapes(), model.get_weights(), strict=True))


def fit(
    architecture: Architecture,
    spec: TrainSpec,
    train: Examples,
    validation: Examples | None,
    class_weights: dict[int, float] | None,
    emit: Emit,
    start: Weights | None = None,
) -> Fitted:
    """Fit a dense softmax classifier by mini-batch stochastic gradient descent.

    Args:
        spec: resolved, without any "auto".
        class_weights: weight of each class index in the loss, or None.
        emit: gets `progress` and `epoch` events.
        start: weights to start from, by the names of `Architecture.shapes`; default fresh ones.

    Raises:
        Diverged: the loss became NaN or infinite.
        OutOfTime: `max_seconds` passed before an epoch ended.

    Source: Goodfellow, Bengio, Courville, Deep Learning (2016), 6.2.2 (softmax), 8.3.1 (SGD).
    """
    if spec.fit.deterministic and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    model = build(architecture, seed=spec.fit.seed)
    if start is not None:
        model.set_weights([start[name] for name in architecture.shapes()])
    classes = architecture.shapes()[f"{len(architecture.parts) - 1}.bias"][0]
    steps = math.ceil(len(train.x) / int(spec.fit.batch_size))
    model.compile(
        optimizer=_optimizer(spec, steps),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=spec.fit.label_smoothing),
        metrics=["accuracy"],
    )
    watch = _Watch(model, spec, steps, len(train.x), validation, emit)
    callbacks: list[keras.callbacks.Callback] = [watch]
    stopping = spec.fit.early_stopping
    if isinstance(stopping, EarlyStopping) and validation is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                monitor=watch.monitor,
                mode="max" if metrics.higher_is_better(watch.aim) else "min",
                patience=stopping.patience,
                min_delta=stopping.min_delta,
                restore_best_weights=stopping.restore_best_weights,
            )
        )
    model.fit(
        train.x,
        keras.utils.to_categorical(train.y, classes),
        batch_size=int(spec.fit.batch_size),
        epochs=int(spec.fit.epochs),
        shuffle=spec.fit.shuffle,
        validation_data=None
        if validation is None
        else (validation.x, keras.utils.to_categorical(validation.y, classes)),
        class_weight=class_weights,
        callbacks=callbacks,
        verbose=0,
    )
    weights = get_weights(model, architecture)
    if not all(np.isfinite(w).all() for w in weights.values()):
        raise Diverged(len(watch.history))
    return Fitted(weights, watch.history, watch.stopped)


def _optimizer(spec: TrainSpec, steps: int) -> keras.optimizers.SGD:
    rate = float(spec.optimizer.learning_rate)
    total = steps * int(spec.fit.epochs)
    schedules = keras.optimizers.schedules
    made: dict[str, Callable[[], Any]] = {
        "constant": lambda: rate,
        "cosine": lambda: schedules.CosineDecay(rate, total),
        # a hundredth of the rate at the end
        "exponential": lambda: schedules.ExponentialDecay(rate, total, 0.01),
        # a tenth after one half and again after three quarters: He et al. 2016, arXiv:1512.03385, section 4.2
        "step": lambda: schedules.PiecewiseConstantDecay(
            [max(total // 2, 1), max(total * 3 // 4, 2)], [rate, rate / 10, rate / 100]
        ),
    }
    momentum, decay = spec.optimizer.momentum, spec.optimizer.weight_decay
    return keras.optimizers.SGD(
        made[str(spec.optimizer.schedule)](),
        momentum=float(momentum or 0),
        nesterov=spec.optimizer.nesterov,
        weight_decay=decay or None,
    )


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]
    """Reports, keeps the history, and stops a run that diverges or is out of time."""

    def __init__(
        self, model: keras.Sequential, spec: TrainSpec, steps: int, rows: int, validation: Examples | None, emit: Emit
    ) -> None:
        super().__init__()
        self._network, self._spec, self._steps, self._rows = model, spec, steps, rows
        self._validation, self._emit = validation, emit
        self.history: list[dict[str, float | int | None]] = []
        self.stopped: str | None = None
        #: the score that early stopping goes by; the loss where these rows do not define the one asked for
        self.aim: str = spec.optimize
        if validation is not None:
            nothing = np.zeros((len(validation.y), model.output_shape[-1]), np.float32)
            self.aim = "log_loss" if metrics.score(spec.optimize, nothing, validation.y) is None else spec.optimize
        self.monitor = {"log_loss": "val_loss", "accuracy": "val_accuracy"}.get(self.aim, f"val_{self.aim}")
        self._began = self._said = self._epoch_began = time.monotonic()
        self._epoch = self._step = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch + 1
        self._epoch_began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._step = batch + 1
        moment = time.monotonic()
        if moment - self._began > float(self._spec.fit.max_seconds or math.inf):
            self.stopped = "max_seconds"
            self._network.stop_training = True
        if moment - self._said >= 1 / PROGRESS_HZ:
            self._said = moment
            self._emit({"type": "progress", "step": self._step, **self._position(self._step)})

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = {} if logs is None else logs
        if not math.isfinite(logs["loss"]):
            raise Diverged(epoch + 1)
        if epoch == 0 and self._step < self._steps:
            raise OutOfTime(f"The run reached its {self._spec.fit.max_seconds:g} seconds before the first epoch ended.")
        if self._validation is not None and self.monitor not in logs:
            logits = network_logits(self._network, self._validation.x)
            score = metrics.score(self.aim, logits, self._validation.y)
            # logits that are not finite give none
            logs[self.monitor] = -math.inf if score is None else score
        seconds = time.monotonic() - self._epoch_began
        entry: dict[str, float | int | None] = {"epoch": epoch + 1, "epochs": int(self._spec.fit.epochs)}
        entry |= {name: float(v) if math.isfinite(v) else None for name, v in logs.items()}
        rate = self._network.optimizer.learning_rate
        entry["learning_rate"] = float(rate)
        entry["elapsed_seconds"] = round(time.monotonic() - self._began, 3)
        entry["rows_per_second"] = round(self._rows / max(seconds, 1e-9), 1)
        self.history.append(entry)
        self._said = time.monotonic()
        self._emit({"type": "epoch", **entry})
        self._emit({"type": "progress", "step": self._steps, **self._position(self._steps)})

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self.stopped is None and len(self.history) < int(self._spec.fit.epochs):
            self.stopped = "early_stopping"

    def _position(self, step: int) -> dict[str, float | int]:
        epochs = int(self._spec.fit.epochs)
        fraction = (self._epoch - 1 + step / self._steps) / epochs
        elapsed = time.monotonic() - self._began
        return {
            "epoch": self._epoch,
            "epochs": epochs,
            "steps": self._steps,
            "fraction": round(fraction, 4),
            "eta_seconds": round(elapsed * (1 - fraction) / max(fraction, 1e-9), 1),
        }


def network_logits(model: keras.Sequential, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute the softmax's inputs, float32 (n, k), from float32 (n, d), in slices."""
    slices = [x[i : i + 4096] for i in range(0, max(len(x), 1), 4096)]
    last = model.layers[-1]
    out = []
    for rows in slices:
        at: Any = keras.ops.convert_to_tensor(rows)
        for layer in model.layers[:-1]:
            at = layer(at, training=False)
        out.append(keras.ops.convert_to_numpy(keras.ops.matmul(at, last.kernel) + last.bias))
    return np.concatenate(out)


class KerasRuntime:
    """A network computed by Keras on its backend's device: the way to predict on a GPU."""

    def __init__(self, architecture: Architecture, weights: Weights, device: str) -> None:
        self.device = device
        self.library = f"keras-{keras.backend.backend()}"
        with keras.device(device):
            self._model = build(architecture)
            self._model.set_weights([weights[name] for name in architecture.shapes()])

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to class probabilities float32 (n, k)."""
        with keras.device(self.device):
            out: NDArray[np.float32] = keras.ops.convert_to_numpy(self._model(x, training=False))
        return out

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to the softmax's inputs, float32 (n, k)."""
        with keras.device(self.device):
            return network_logits(self._model, x)


def save(form: str, architecture: Architecture, weights: Weights, rescaling: Rescaling | None, path: str) -> None:
    """Write a network as a file of another program's.

    Args:
        form: "keras" (a `.keras` file), "saved_model" (a folder) or "litert" (a `.tflite` file).
        rescaling: what the raw numbers are scaled by inside the file; None where it takes encoded rows.
    """
    inner = build(architecture)
    inner.set_weights([weights[name] for name in architecture.shapes()])
    model = inner
    if rescaling is not None:
        first = keras.layers.Rescaling(rescaling.scale, rescaling.offset)
        model = keras.Sequential([keras.Input((architecture.inputs,)), first, *inner.layers])
    if form == "keras":
        model.save(path)
    else:
        model.export(path, format={"saved_model": "tf_saved_model"}.get(form, form), verbose=False)


def predict_file(form: str, path: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Read back what `save` has just written in this process, and predict with it: float32 (n, d) to (n, k)."""
    if form == "keras":
        model = keras.models.load_model(path, compile=False)
        out: NDArray[np.float32] = keras.ops.convert_to_numpy(model(x, training=False))
        return out
    import tensorflow as tf

    if form == "saved_model":
        served = tf.saved_model.load(path).signatures["serving_default"]
        (answer,) = served(tf.constant(x)).values()
        return np.asarray(answer)
    interpreter = tf.lite.Interpreter(path)
    (given,), (wanted,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(wanted["index"]))


def environment() -> dict[str, str]:
    """Name what computed: Keras, its backend and their versions."""
    backend = keras.backend.backend()
    return {"keras": keras.__version__, "backend": backend, backend: metadata.version(backend), "numpy": np.__version__}


def on(device: str) -> AbstractContextManager[None]:
    """Compute on a device, such as "cpu" or "gpu:0", inside a block."""
    block: AbstractContextManager[None] = keras.device(device)
    return block


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error of NumPy or of a backend means that memory, of the machine or of a device, ran out."""
    # TensorFlow and torch have a class each; XLA, also under JAX, says it in words alone
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"MemoryError", "ResourceExhaustedError", "OutOfMemoryError"}) or (
        "RESOURCE_EXHAUSTED" in str(error)
    )


def has_gpu() -> bool:
    """Tell whether Keras's backend sees a GPU."""
    return bool(keras.distribution.list_devices("gpu"))
