"""Fitting a network as a specification says: the optimizer, early stopping, the mode, another try at a smaller rate.

Knows no files and no jobs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning.evaluation.evaluate import higher_is_better
from app.learning.network.keras_backend import make_deterministic
from app.learning.network.keras_network import build, get_weights
from app.learning.spec import EarlyStopping, TrainSpec
from app.learning.training.batches import Source
from app.learning.training.checkpoint import State
from app.learning.training.checkpoint_callback import CheckpointCallback
from app.learning.training.events import LearningRateSettled, LoopChosen, TrainingWarning
from app.learning.training.loop import Mode, NotCompilable, prepare, run
from app.learning.training.progress_callback import ProgressCallback
from app.learning.training.task import Diverged, Task

#: from so many steps on XLA's compilation, 0.3 s longer than a graph's, is made up for by 0.14 ms a step (measured at
#: 20 → 64 → 10, batch 32)
XLA_STEPS = 2000


@dataclass(frozen=True)
class Fitted:
    """The weights by the names of `Architecture.shapes`, and the history, an entry for each epoch.

    Args:
        stopped: "early_stopping", "max_seconds", or None where all epochs ran.
        loop: how the steps were computed.
        learning_rate: the one that was used in the end.
    """

    weights: dict[str, NDArray[np.float32]]
    history: list[dict[str, float | int | None]]
    stopped: str | None
    loop: Mode
    learning_rate: float


def fit(task: Task, saved: State | None = None) -> Fitted:
    """Fit a dense softmax classifier by mini-batch stochastic gradient descent.

    Args:
        saved: where an earlier run of the same task was; the outcome is the one that it would have had.

    Raises:
        Diverged: the loss became NaN or infinite, or exploded.
        OutOfTime: `max_seconds` passed before an epoch ended.
        Interrupted: `is_stopping` said so.

    Source: Goodfellow, Bengio, Courville, Deep Learning (2016), 6.2.2 (softmax), 8.3.1 (SGD).
    """
    if task.spec.fit.deterministic:
        make_deterministic()
    rate = float(task.spec.optimizer.learning_rate)
    mode = _mode(task)
    if saved is not None:
        rate, mode = float(saved.facts["learning_rate"]), saved.facts["loop"]
    # what came before counts, be it ahead of a checkpoint or of a smaller rate
    began = time.monotonic() - (0.0 if saved is None else float(saved.facts["elapsed_seconds"]))
    while True:
        task.emit(LoopChosen(mode))
        try:
            return _Run(task, rate, mode, began).go(saved)
        except NotCompilable as error:
            if mode == "xla" and task.forget_compiled():
                continue
            slower: Mode = "graph" if mode == "xla" else "keras"
            if slower == "keras" and saved is not None and saved.facts["step"]:
                # it cannot begin within an epoch
                saved = None
            message = f"the steps could not be compiled in mode {mode}, and are computed in mode {slower}: {error}"
            task.emit(TrainingWarning(message))
            mode = slower
        except Diverged as error:
            if not task.is_rate_auto or rate < float(task.spec.optimizer.learning_rate):
                raise
            rate, saved = rate / 10, None
            message = f"the loss diverged in epoch {error.epoch}; training starts again at a tenth of the learning rate"
            task.emit(TrainingWarning(message))
            task.emit(LearningRateSettled(rate))


def _mode(task: Task) -> Mode:
    if keras.backend.backend() != "tensorflow":
        return "keras"
    # TensorFlow's deterministic operations are not XLA's
    is_long = task.steps * int(task.spec.fit.epochs) >= XLA_STEPS
    return "xla" if is_long and not task.spec.fit.deterministic else "graph"


class _Run:
    """One run at one learning rate in one mode."""

    def __init__(self, task: Task, rate: float, mode: Mode, began: float) -> None:
        self.task, self.rate, self.mode, self.began = task, rate, mode, began
        self.model = build(task.architecture, seed=task.spec.fit.seed)
        if task.start is not None:
            self.model.set_weights([task.start[name] for name in task.architecture.shapes()])
        self.model.compile(
            optimizer=_optimizer(task.spec, rate, task.steps),
            loss=keras.losses.CategoricalCrossentropy(label_smoothing=task.spec.fit.label_smoothing),
            metrics=["accuracy"],
        )
        prepare(self.model, task.architecture.inputs, task.classes)

    def go(self, saved: State | None) -> Fitted:
        """Run to the end, from the saved state on where there is one; raises as `fit` does, and `NotCompilable`."""
        task, spec = self.task, self.task.spec
        watch = ProgressCallback(task, self.began)
        stopping = _stopping(spec, watch, task.validation)
        keeper = CheckpointCallback(task, self.model, watch, stopping, saved, mode=self.mode, rate=self.rate)
        run(
            self.model,
            task.train,
            task.validation,
            [each for each in (watch, stopping, keeper) if each is not None],
            mode=self.mode,
            classes=task.classes,
            batch=int(spec.fit.batch_size),
            epochs=int(spec.fit.epochs),
            seed=spec.fit.seed if spec.fit.shuffle else None,
            at=keeper.at,
        )
        weights = get_weights(self.model, task.architecture)
        if not all(np.isfinite(w).all() for w in weights.values()):
            raise Diverged(len(watch.history))
        return Fitted(weights, watch.history, watch.stopped, self.mode, self.rate)


def _optimizer(spec: TrainSpec, rate: float, steps: int) -> keras.optimizers.SGD:
    total = steps * int(spec.fit.epochs)
    asked = spec.optimizer.warmup
    # a job of an earlier release has none
    warmup = round(asked * total) if isinstance(asked, float) else 0
    schedules = keras.optimizers.schedules
    made: dict[str, Callable[[], Any]] = {
        "constant": lambda: rate,
        "cosine": lambda: (
            schedules.CosineDecay(rate, total)
            if not warmup
            else schedules.CosineDecay(0.0, total - warmup, warmup_target=rate, warmup_steps=warmup)
        ),
        # a hundredth of the rate at the end
        "exponential": lambda: schedules.ExponentialDecay(rate, total, 0.01),
        # a tenth after one half and again after three quarters: He et al. 2016, arXiv:1512.03385, section 4.2
        "step": lambda: schedules.PiecewiseConstantDecay(
            [max(total // 2, 1), max(total * 3 // 4, 2)], [rate, rate / 10, rate / 100]
        ),
    }
    return keras.optimizers.SGD(
        made[str(spec.optimizer.schedule)](),
        momentum=float(spec.optimizer.momentum or 0),
        nesterov=spec.optimizer.nesterov,
        weight_decay=spec.optimizer.weight_decay or None,
        global_clipnorm=spec.optimizer.clip_norm,
    )


def _stopping(
    spec: TrainSpec, watch: ProgressCallback, validation: Source | None
) -> keras.callbacks.EarlyStopping | None:
    asked = spec.fit.early_stopping
    if not isinstance(asked, EarlyStopping) or validation is None:
        return None
    return keras.callbacks.EarlyStopping(
        monitor=watch.monitor,
        mode="max" if higher_is_better(watch.aim) else "min",
        patience=asked.patience,
        min_delta=asked.min_delta,
        restore_best_weights=asked.restore_best_weights,
    )
