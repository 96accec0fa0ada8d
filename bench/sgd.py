"""Compile `sgd.c` and call it: the training loop on one core without any framework."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: of the hidden layer, and of the vectors that hold the classes' scores
UNITS, LANES = 64, 16
OPTIONS = ("-O3", "-march=native", "-ffast-math", "-shared", "-fPIC")


def compiler() -> str | None:
    """Give this machine's C compiler, if it has one."""
    return shutil.which("cc") or shutil.which("gcc")


class Network:
    """Dense(64, relu) → Dense(k, softmax).

    Args:
        weights: kernels and biases as Keras orders them, float32 (d, 64), (64,), (64, k) and (k,), with d a multiple of
            4 and k at most 16; they are copied.
        folder: for the compiled library.

    Raises:
        subprocess.CalledProcessError: the compiler refused.
    """

    def __init__(self, weights: Sequence[NDArray[np.float32]], folder: Path) -> None:
        library = folder / "sgd.so"
        if not library.exists():
            command = [str(compiler()), *OPTIONS, "-o", str(library), str(Path(__file__).with_suffix(".c")), "-lm"]
            subprocess.run(command, check=True)
        self._epoch = ctypes.CDLL(str(library)).epoch
        self._epoch.restype = ctypes.c_double
        w1, b1, w2, b2 = weights
        self._columns, self._classes = len(w1), len(b2)
        padding = (0, LANES - self._classes)
        self._weights = [w1.copy(), b1.copy(), np.pad(w2, ((0, 0), padding)), np.pad(b2, padding)]

    def epoch(
        self, x: NDArray[np.float32], y: NDArray[np.int32], order: NDArray[np.int32], batch: int, rate: float
    ) -> float:
        """Take the steps of one epoch, and give its mean loss.

        Args:
            x: float32 (n, d).
            y: classes, int32 (n,).
            order: in which rows are visited, int32 (n,).
        """
        sizes = (len(order), self._columns, self._classes, batch)
        pointers = map(_pointer, self._weights)
        loss = self._epoch(_pointer(x), _pointer(y), _pointer(order), *sizes, ctypes.c_float(rate), *pointers)
        if loss < 0:
            raise MemoryError
        return float(loss)


def _pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)
