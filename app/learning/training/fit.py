"""Fitting a network as a specification says: the mode of the steps, early stopping, another try at a smaller learning rate.

Knows no files and no jobs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning.evaluation.evaluate import higher_is_better
from app.learning.network.keras_backend import make_deterministic
from app.learning.network.keras_network import build, get_weights, set_weights
from app.learning.spec import EarlyStopping
from app.learning.training.checkpoint import Checkpoint
from app.learning.training.checkpoint_callback import CheckpointCallback
from app.learning.training.compiled_steps import NotCompilable
from app.learning.training.events import LearningRateSettled, LoopChosen, LoopMode, TrainingWarning
from app.learning.training.loop import build_variables, run_epochs
from app.learning.training.optimizer import make_optimizer
from app.learning.training.progress_callback import ProgressCallback
from app.learning.training.task import Diverged, Task

#: steps of a run from which XLA is used: its compilation takes 0.3 s longer than a graph's, and saves 0.14 ms a step
#: (measured at 20 → 64 → 10, batch 32)
XLA_STEPS = 2000


@dataclass(frozen=True)
class Fitted:
    """The outcome of a run.

    Args:
        weights: by the names of `Architecture.shapes`.
        history: the figures of each epoch by name.
        stopped: "early_stopping", "max_seconds", or None where all epochs ran.
        loop: how the steps were computed.
        learning_rate: the one that was used in the end.
    """

    weights: dict[str, NDArray[np.float32]]
    history: list[dict[str, float | int | None]]
    stopped: str | None
    loop: LoopMode
    learning_rate: float


def fit(task: Task, saved: Checkpoint | None = None) -> Fitted:
    """Fit a dense softmax classifier by mini-batch stochastic gradient descent.

    Args:
        saved: the checkpoint of an earlier run of the same task, from which this run continues; the outcome is that of
            a run without interruption.

    Raises:
        Diverged: the loss became NaN or infinite, or exploded.
        OutOfTime: `max_seconds` passed before an epoch ended.
        Interrupted: `is_stopping` returned True.

    Source: Goodfellow, Bengio, Courville, Deep Learning (2016), 6.2.2 (softmax), 8.3.1 (SGD).
    """
    if task.spec.fit.deterministic:
        make_deterministic()
    settled_rate = float(task.spec.optimizer.learning_rate)
    rate, mode = settled_rate, _fastest_mode(task)
    # the time before a checkpoint counts, and so does the time before a smaller learning rate
    began = time.monotonic()
    if saved is not None:
        rate, mode = saved.learning_rate, saved.loop
        began -= saved.elapsed_seconds
    while True:
        task.emit(LoopChosen(mode))
        try:
            return _fit_once(task, rate, mode, began, saved)
        except NotCompilable as error:
            if mode == "xla" and task.forget_compiled():
                continue
            slower: LoopMode = "graph" if mode == "xla" else "keras"
            if slower == "keras" and saved is not None and saved.position.step:
                # Keras's own `fit` cannot begin within an epoch
                saved = None
            message = f"the steps could not be compiled in mode {mode}, and are computed in mode {slower}: {error}"
            task.emit(TrainingWarning(message))
            mode = slower
        except Diverged as error:
            if not task.is_rate_auto or rate < settled_rate:
                raise
            rate, saved = rate / 10, None
            message = f"the loss diverged in epoch {error.epoch}; training starts again at a tenth of the learning rate"
            task.emit(TrainingWarning(message))
            task.emit(LearningRateSettled(rate))


def _fastest_mode(task: Task) -> LoopMode:
    if keras.backend.backend() != "tensorflow":
        return "keras"
    # XLA has none of TensorFlow's deterministic operations
    is_long = task.steps * task.epochs >= XLA_STEPS
    return "xla" if is_long and not task.spec.fit.deterministic else "graph"


def _fit_once(task: Task, rate: float, mode: LoopMode, began: float, saved: Checkpoint | None) -> Fitted:
    """Run to the end at one learning rate in one mode.

    Args:
        began: when the run began, by `time.monotonic`.

    Raises:
        NotCompilable: the steps cannot be computed in this mode.
        Diverged, OutOfTime, Interrupted: as `fit`.
    """
    model = _compiled_model(task, rate)
    progress = ProgressCallback(task, began)
    stopping = _early_stopping(task, progress)
    checkpoints = CheckpointCallback(task, model, progress, stopping, saved, mode=mode, rate=rate)
    run_epochs(
        model,
        task.train,
        task.validation,
        # the checkpoints come last: they keep the state of the others
        [callback for callback in (progress, stopping, checkpoints) if callback is not None],
        mode=mode,
        classes=task.classes,
        batch=task.batch,
        epochs=task.epochs,
        seed=task.spec.fit.seed if task.spec.fit.shuffle else None,
        start=checkpoints.start,
    )
    weights = get_weights(model, task.architecture)
    if not all(np.isfinite(w).all() for w in weights.values()):
        raise Diverged(len(progress.history))
    return Fitted(weights, progress.history, progress.stopped, mode, rate)


def _compiled_model(task: Task, rate: float) -> keras.Sequential:
    model = build(task.architecture, seed=task.spec.fit.seed)
    if task.start is not None:
        set_weights(model, task.architecture, task.start)
    model.compile(
        optimizer=make_optimizer(task.spec, rate, task.steps),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=task.spec.fit.label_smoothing),
        metrics=["accuracy"],
    )
    build_variables(model, task.architecture.inputs, task.classes)
    return model


def _early_stopping(task: Task, progress: ProgressCallback) -> keras.callbacks.EarlyStopping | None:
    """Return the callback that stops the run, and that puts the weights of the best epoch back at its end."""
    settings = task.spec.fit.early_stopping
    if not isinstance(settings, EarlyStopping) or task.validation is None:
        return None
    return keras.callbacks.EarlyStopping(
        monitor=progress.monitor,
        mode="max" if higher_is_better(progress.score_name) else "min",
        patience=settings.patience,
        min_delta=settings.min_delta,
        restore_best_weights=settings.restore_best_weights,
    )
