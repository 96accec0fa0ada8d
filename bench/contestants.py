"""`python -m bench.contestants NAME`: one way to train the same network on the same rows, in a process of its own.

It imports what it needs, says `ready`, and then answers each workload on a line of JSON with the seconds that it took.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench import sgd

FITSERVE, KERAS, SKLEARN, C = "fitserve", "keras fit", "scikit-learn", "C, one core"
RATE = 0.01


@dataclass(frozen=True)
class Workload:
    """Training Dense(64, relu) → Dense(classes, softmax) by SGD with the rate 0.01 on random rows.

    Args:
        epochs: where `is_whole` is False at least 2.
        is_whole: whether the run is timed as a whole, compilation included, or an epoch after the first.
    """

    rows: int
    columns: int
    classes: int
    batch: int
    epochs: int
    is_whole: bool = False

    def data(self) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Give the rows, the same ones in each process: x float32 (n, d) in [0, 1), y int32 (n,)."""
        return _draw(self.rows, self.columns, self.classes)


@lru_cache(maxsize=1)
def _draw(rows: int, columns: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    rng = np.random.default_rng(0)
    return rng.random((rows, columns), np.float32), rng.integers(0, classes, rows).astype(np.int32)


#: gives the seconds of a workload
Run = Callable[[Workload], float]


def absent() -> dict[str, str]:
    """Say which contestants cannot take part on this machine, and what they miss."""
    missing = {}
    if find_spec("sklearn") is None:
        missing[SKLEARN] = "scikit-learn is not installed"
    if sgd.compiler() is None:
        missing[C] = "there is no C compiler"
    return missing


def fitserve() -> Run:
    """The service's own training, with the threads that its training process has."""
    from app.jobs.worker_settings import WorkerSettings

    # what its worker gives a training process: a cache that is empty at first, and is found full from the second round on
    means = WorkerSettings(1, 0, 0, Path(tempfile.mkdtemp(prefix="fitserve-bench-")))
    atexit.register(shutil.rmtree, means.cache, ignore_errors=True)
    os.environ.update(means.environment())
    importlib.import_module("app.jobs.training_child")
    from app.learning.network import keras_backend
    from app.learning.network.architecture import Architecture
    from app.learning.spec import TrainSpec
    from app.learning.training import fit
    from app.learning.training.events import Epoch, Event
    from app.learning.training.examples import Examples, empty_rows
    from app.learning.training.task import Task

    def run(workload: Workload) -> float:
        spec = TrainSpec.model_validate(
            {
                "validation": None,
                "network": {"layers": [{"units": sgd.UNITS, "activation": "relu"}]},
                "optimizer": {"learning_rate": RATE, "momentum": 0.0, "schedule": "constant", "warmup": 0.0},
                "fit": {"epochs": workload.epochs, "batch_size": workload.batch, "early_stopping": None},
            }
        )
        architecture = Architecture.from_spec(spec, workload.columns, workload.classes)
        x, y = workload.data()
        # where the encoder puts them
        examples = Examples(empty_rows(*x.shape), y)
        examples.x[:] = x
        ends: list[float] = []

        def emit(event: Event) -> None:
            # the event's own time is in whole milliseconds
            if isinstance(event, Epoch):
                ends.append(time.perf_counter())

        began = time.perf_counter()
        with keras_backend.on("cpu"):
            fit.fit(Task(architecture, spec, examples, None, emit))
        return time.perf_counter() - began if workload.is_whole else _steady(ends)

    return run


def keras_fit() -> Run:
    """The two lines of the tutorial, `compile` and `fit`, with the threads that TensorFlow chooses."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    def run(workload: Workload) -> float:
        x, y = workload.data()
        one_hot = keras.utils.to_categorical(y, workload.classes)
        ends: list[float] = []
        clock = keras.callbacks.LambdaCallback(on_epoch_end=lambda _epoch, _logs: ends.append(time.perf_counter()))
        hidden, shape = keras.layers.Dense(sgd.UNITS, activation="relu"), keras.Input((workload.columns,))
        began = time.perf_counter()
        model = keras.Sequential([shape, hidden, keras.layers.Dense(workload.classes, activation="softmax")])
        model.compile(keras.optimizers.SGD(RATE), "categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, one_hot, workload.batch, workload.epochs, verbose=0, callbacks=[clock])
        return time.perf_counter() - began if workload.is_whole else _steady(ends)

    return run


def scikit_learn() -> Run:
    """`MLPClassifier`, an epoch at a time; it computes the loss of an epoch, and no accuracy."""
    from sklearn.neural_network import MLPClassifier

    def run(workload: Workload) -> float:
        x, y = workload.data()
        model = MLPClassifier(
            (sgd.UNITS,),
            solver="sgd",
            alpha=0.0,
            batch_size=min(workload.batch, workload.rows),
            learning_rate_init=RATE,
            momentum=0.0,
            nesterovs_momentum=False,
            random_state=0,
        )
        return _timed(workload, lambda: model.partial_fit(x, y, classes=range(workload.classes)))

    return run


def plain_c() -> Run:
    """`sgd.c`; it computes the loss of an epoch, and no accuracy."""
    folder = tempfile.TemporaryDirectory(prefix="fitserve-bench-")

    def run(workload: Workload) -> float:
        x, y = workload.data()
        rng = np.random.default_rng(0)
        shapes = ((workload.columns, sgd.UNITS), (sgd.UNITS,), (sgd.UNITS, workload.classes), (workload.classes,))
        network = sgd.Network([rng.normal(0, 0.05, shape).astype(np.float32) for shape in shapes], Path(folder.name))

        def epoch() -> float:
            return network.epoch(x, y, rng.permutation(len(y)).astype(np.int32), workload.batch, RATE)

        return _timed(workload, epoch)

    return run


CONTESTANTS = {FITSERVE: fitserve, KERAS: keras_fit, SKLEARN: scikit_learn, C: plain_c}


def _timed(workload: Workload, epoch: Callable[[], object]) -> float:
    began = time.perf_counter()
    ends = []
    for _ in range(workload.epochs):
        epoch()
        ends.append(time.perf_counter())
    return ends[-1] - began if workload.is_whole else _steady(ends)


def _steady(ends: list[float]) -> float:
    """Give the mean seconds of an epoch but for the first one, from when each ended."""
    return (ends[-1] - ends[0]) / (len(ends) - 1)


def request(workload: Workload) -> str:
    """Give a workload as the line that a contestant reads."""
    return json.dumps(asdict(workload)) + "\n"


def main() -> None:
    """Answer until the input ends."""
    # whatever a library prints must not end up among the answers
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)
    run = CONTESTANTS[sys.argv[1]]()
    answers.write("ready\n")
    for line in sys.stdin:
        answers.write(f"{run(Workload(**json.loads(line)))}\n")


if __name__ == "__main__":
    main()
