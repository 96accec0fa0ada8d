"""Which of two runtimes computes how many rows: measured on this machine when a version is loaded, not assumed.

A GPU takes as long to be asked as a processor takes for many rows. Knows neither Keras nor ONNX Runtime.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.learning.network.architecture import Runtime

SIZES = (1, 4, 16, 64, 256, 1024, 4096)
#: of each size, after one that warms up; the quickest counts
TRIALS = 3
#: where the processor takes longer for a size, larger ones are not tried
ENOUGH_SECONDS = 0.2


class Timing(NamedTuple):
    """What a number of rows takes on the processor and on the other device, in seconds."""

    rows: int
    cpu_seconds: float
    gpu_seconds: float


@dataclass(frozen=True)
class CpuOrGpuRuntime:
    """A network on the processor for few rows, and on another device for many.

    A row has the same bits in whatever company only among those that one device computes.

    Args:
        cpu_rows: the most rows that the processor computes; `sys.maxsize` where it is never slower.
    """

    cpu: Runtime
    gpu: Runtime
    cpu_rows: int
    timings: tuple[Timing, ...]

    @classmethod
    def measure(cls, cpu: Runtime, gpu: Runtime, inputs: int) -> CpuOrGpuRuntime:
        """Time both on rows of so many numbers."""
        timings: list[Timing] = []
        for rows in SIZES:
            x = np.zeros((rows, inputs), np.float32)
            timings.append(Timing(rows, _seconds(cpu, x), _seconds(gpu, x)))
            if timings[-1].cpu_seconds > ENOUGH_SECONDS:
                break
        return cls(cpu, gpu, _cpu_rows(timings), tuple(timings))

    @property
    def device(self) -> str:
        """Where many rows are computed."""
        return (self.gpu if self.cpu_rows < sys.maxsize else self.cpu).device

    @property
    def library(self) -> str:
        """What computes them there."""
        return (self.gpu if self.cpu_rows < sys.maxsize else self.cpu).library

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to class probabilities float32 (n, k)."""
        return self._of(x).probabilities(x)

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 (n, d) to the softmax's inputs, float32 (n, k)."""
        return self._of(x).logits(x)

    def _of(self, x: NDArray[np.float32]) -> Runtime:
        return self.cpu if len(x) <= self.cpu_rows else self.gpu


def _seconds(runtime: Runtime, x: NDArray[np.float32]) -> float:
    took = []
    for _ in range(1 + TRIALS):
        began = time.perf_counter()
        runtime.probabilities(x)
        took.append(time.perf_counter() - began)
    return min(took[1:])


def _cpu_rows(timings: Sequence[Timing]) -> int:
    """Give the largest size at which the processor was not slower; what is larger than all sizes goes as the last one."""
    quick = [timing.rows for timing in timings if timing.cpu_seconds <= timing.gpu_seconds]
    if timings[-1].rows in quick:
        return sys.maxsize
    return max(quick, default=0)
