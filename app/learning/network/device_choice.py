"""A network on the CPU for few rows and on a GPU for many: from how many rows on is measured when a version is loaded.

A GPU takes about as long to start a call as a CPU takes to compute many rows. Knows neither Keras nor ONNX Runtime.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.learning.network.runtime import Runtime

#: rows of the calls that are timed
SIZES = (1, 4, 16, 64, 256, 1024, 4096)
#: timed calls of each size, after one that warms up; the quickest counts
TRIALS = 3
#: larger sizes are not timed where the CPU takes longer than this for one call
ENOUGH_SECONDS = 0.2


class Timing(NamedTuple):
    """The seconds that a call with a number of rows takes on the CPU and on the GPU."""

    rows: int
    cpu_seconds: float
    gpu_seconds: float


@dataclass(frozen=True)
class CpuOrGpuRuntime:
    """A network that computes few rows on the CPU and many on the GPU.

    Two answers for one row have the same bits only where the same device computed both.

    Args:
        cpu_rows: the most rows that the CPU computes; `sys.maxsize` where the CPU is never slower.
    """

    cpu: Runtime
    gpu: Runtime
    cpu_rows: int
    timings: tuple[Timing, ...]

    @classmethod
    def measure(cls, cpu: Runtime, gpu: Runtime, inputs: int) -> CpuOrGpuRuntime:
        """Time both runtimes on rows of `inputs` numbers."""
        timings: list[Timing] = []
        for rows in SIZES:
            x = np.zeros((rows, inputs), np.float32)
            timings.append(Timing(rows, _seconds(cpu, x), _seconds(gpu, x)))
            if timings[-1].cpu_seconds > ENOUGH_SECONDS:
                break
        return cls(cpu, gpu, _cpu_rows(timings), tuple(timings))

    @property
    def device(self) -> str:
        """The device that computes many rows."""
        return self._for(sys.maxsize).device

    @property
    def library(self) -> str:
        """The library that computes many rows."""
        return self._for(sys.maxsize).library

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to class probabilities float32 (n, k)."""
        return self._for(len(x)).probabilities(x)

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to the softmax's inputs, float32 (n, k)."""
        return self._for(len(x)).logits(x)

    def _for(self, rows: int) -> Runtime:
        return self.cpu if rows <= self.cpu_rows else self.gpu


def _seconds(runtime: Runtime, x: NDArray[np.float32]) -> float:
    seconds = []
    for _ in range(1 + TRIALS):
        began = time.perf_counter()
        runtime.probabilities(x)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _cpu_rows(timings: Sequence[Timing]) -> int:
    """Return the largest size for which the CPU was not slower; larger sizes than all timed ones go as the last one."""
    sizes = [timing.rows for timing in timings if timing.cpu_seconds <= timing.gpu_seconds]
    if timings[-1].rows in sizes:
        return sys.maxsize
    return max(sizes, default=0)
