"""Keras's backend, TensorFlow, JAX or PyTorch: its versions, its devices, its random streams. Knows no network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from importlib import metadata

import keras
import numpy as np
from numpy.typing import NDArray


def environment() -> dict[str, str]:
    """Return the versions of Keras, of its backend and of NumPy, and the backend's name."""
    backend = keras.backend.backend()
    return {"keras": keras.__version__, "backend": backend, backend: metadata.version(backend), "numpy": np.__version__}


def has_gpu() -> bool:
    """Return whether Keras's backend sees a GPU."""
    if keras.backend.backend() == "torch":
        # Keras does not list PyTorch's devices
        import torch

        return bool(torch.cuda.is_available())
    try:
        return bool(keras.distribution.list_devices("gpu"))
    except RuntimeError:
        # JAX raises where there is no GPU
        return False


def on(device: str) -> AbstractContextManager[None]:
    """Compute on a device, such as "cpu" or "gpu:0", inside a block."""
    block: AbstractContextManager[None] = keras.device(device)
    return block


def make_deterministic() -> None:
    """Make this process compute with operations that return the same bits each time, and no others."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif keras.backend.backend() == "torch":
        import torch

        # without this setting cuBLAS is not deterministic, and PyTorch refuses to go on
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(mode=True)


def read_random_streams() -> list[NDArray[np.uint8]]:
    """Return the random streams that are no variables of a model: PyTorch's own, from which its Dropout draws."""
    if keras.backend.backend() != "torch":
        return []
    import torch

    return [stream.numpy() for stream in (torch.get_rng_state(), *torch.cuda.get_rng_state_all())]


def set_random_streams(streams: Sequence[NDArray[np.uint8]]) -> None:
    """Put back the random streams that `read_random_streams` returned."""
    if not streams:
        return
    import torch

    first, *others = (torch.from_numpy(stream) for stream in streams)
    torch.set_rng_state(first)
    torch.cuda.set_rng_state_all(others)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error of NumPy or of a backend means that the machine's or a device's memory ran out."""
    # TensorFlow and torch have a class each; XLA, also under JAX, and torch on a CPU have only a message
    names = {kind.__name__ for kind in type(error).__mro__}
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
