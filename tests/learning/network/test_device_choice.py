"""Which device computes how many rows is measured, and what is measured decides."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input
from app.learning.network.device_choice import ENOUGH_SECONDS, SIZES, CpuOrGpuRuntime
from app.learning.network.keras_network import KerasRuntime
from app.learning.network.onnx_network import OnnxRuntime
from tests.stored_rows import artifact_of


@dataclass
class Device:
    """A network that takes so long to be asked, and for each row."""

    device: str
    asked_seconds: float
    row_seconds: float
    library: str = "a clock"
    cpu_rows: int = 0
    calls: list[int] = field(default_factory=list)

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        self.calls.append(len(x))
        time.sleep(self.asked_seconds + len(x) * self.row_seconds)
        return np.zeros((len(x), 2), np.float32)

    logits = probabilities


def test_the_processor_computes_few_rows_and_the_other_device_many() -> None:
    cpu, gpu = Device("cpu", 0, 0.001), Device("gpu:0", 0.03, 0)

    found = CpuOrGpuRuntime.measure(cpu, gpu, 3)

    assert (16, "gpu:0", "a clock") == (found.cpu_rows, found.device, found.library)
    assert [1, 4, 16, 64, 256] == [timing.rows for timing in found.timings]
    assert all(timing.cpu_seconds >= timing.rows * 0.001 for timing in found.timings)
    assert all(timing.gpu_seconds >= 0.03 for timing in found.timings)
    cpu.calls, gpu.calls = [], []
    for rows in (1, 16, 17, 5000):
        found.probabilities(np.zeros((rows, 3), np.float32))
        found.logits(np.zeros((rows, 3), np.float32))
    assert ([1, 1, 16, 16], [17, 17, 5000, 5000]) == (cpu.calls, gpu.calls)


def test_a_device_that_is_never_quicker_computes_nothing() -> None:
    found = CpuOrGpuRuntime.measure(Device("cpu", 0, 0), Device("gpu:0", 0.01, 0), 3)

    assert (sys.maxsize, "cpu") == (found.cpu_rows, found.device)
    assert list(SIZES) == [timing.rows for timing in found.timings]


def test_a_device_that_is_always_quicker_computes_all() -> None:
    found = CpuOrGpuRuntime.measure(Device("cpu", 0.02, 0), Device("gpu:0", 0, 0), 3)

    assert (0, "gpu:0") == (found.cpu_rows, found.device)


def test_sizes_for_which_the_processor_would_take_long_are_not_tried() -> None:
    cpu = Device("cpu", ENOUGH_SECONDS + 0.01, 0)

    found = CpuOrGpuRuntime.measure(cpu, Device("gpu:0", 0, 0), 3)

    assert [1] == [timing.rows for timing in found.timings]


@pytest.mark.parametrize("cpu_rows", [0, 3, sys.maxsize])
def test_keras_and_onnx_runtime_agree_on_either_side(cpu_rows: int) -> None:
    encoder = Encoder(tuple(Input(name, "numeric", "impute", marks_missing=False) for name in "abcd"))
    made = artifact_of(encoder, [dict.fromkeys("abcd", 1.0)], units=33)
    cpu = OnnxRuntime(made.architecture, made.weights)
    both = CpuOrGpuRuntime(cpu, KerasRuntime(made.architecture, made.weights, "cpu"), cpu_rows, ())

    for rows in (1, 3, 4, 100):
        x = np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)
        assert np.abs(both.probabilities(x) - cpu.probabilities(x)).max() <= 1e-5
        assert np.abs(both.logits(x) - cpu.logits(x)).max() <= 1e-4
