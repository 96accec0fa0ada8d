"""The network in Keras, whatever its backend: built, read, computed, exported. Knows no files and no jobs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import metadata
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning.network.architecture import Activation, Architecture, BatchNorm, Dense, Dropout, Rescaling, Weights


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

    #: this is another device, or stands for one
    cpu_rows = 0

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


def make_deterministic() -> None:
    """Have this process compute by operations alone that give the same bits each time."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        # without it cuBLAS is not, and PyTorch refuses to go on
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(mode=True)


def read_random_streams() -> list[NDArray[np.uint8]]:
    """Read the random streams that are no variables of a model: PyTorch's own, from which its Dropout draws."""
    if keras.backend.backend() != "torch":
        return []
    import torch

    return [stream.numpy() for stream in (torch.get_rng_state(), *torch.cuda.get_rng_state_all())]


def set_random_streams(streams: Sequence[NDArray[np.uint8]]) -> None:
    """Put back what `read_random_streams` has read."""
    if not streams:
        return
    import torch

    first, *others = (torch.from_numpy(stream) for stream in streams)
    torch.set_rng_state(first)
    torch.cuda.set_rng_state_all(others)


def on(device: str) -> AbstractContextManager[None]:
    """Compute on a device, such as "cpu" or "gpu:0", inside a block."""
    block: AbstractContextManager[None] = keras.device(device)
    return block


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error of NumPy or of a backend means that memory, of the machine or of a device, ran out."""
    # TensorFlow and torch have a class each; XLA, also under JAX, and torch on a CPU say it in words alone
    names = {each.__name__ for each in type(error).__mro__}
    return bool(names & {"MemoryError", "ResourceExhaustedError", "OutOfMemoryError"}) or any(
        words in str(error) for words in ("RESOURCE_EXHAUSTED", "DefaultCPUAllocator: can't allocate memory")
    )


def operation_errors() -> tuple[type[Exception], ...]:
    """Return the classes of errors that NumPy and the backend raise where an operation fails, as for want of memory."""
    if keras.backend.backend() != "tensorflow":
        # JAX and torch derive theirs from RuntimeError
        return (MemoryError, RuntimeError)
    import tensorflow as tf

    return (MemoryError, RuntimeError, tf.errors.OpError)


def has_gpu() -> bool:
    """Tell whether Keras's backend sees a GPU."""
    if keras.backend.backend() == "torch":
        # Keras lists no devices of PyTorch's
        import torch

        return bool(torch.cuda.is_available())
    try:
        return bool(keras.distribution.list_devices("gpu"))
    except RuntimeError:
        # how JAX says that there is none
        return False
