"""A run's progress as events: how far it is and its ETA, each epoch's figures, and whether it has to stop. Knows no checkpoints."""

from __future__ import annotations

import math
import time

import keras
import numpy as np

from app.learning.evaluation.evaluate import score
from app.learning.network.keras_network import network_logits
from app.learning.training.checkpoint import Checkpoint
from app.learning.training.events import Epoch, Progress
from app.learning.training.examples import Examples, sample
from app.learning.training.task import Diverged, OutOfTime, Task

#: the most progress events a second within an epoch
PROGRESS_HZ = 4
#: an epoch's loss has exploded when it is this many times the loss of the untrained network
EXPLODED = 1000.0


class ProgressCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Emits progress, keeps the history, and stops a run that diverges or is out of time.

    Args:
        began: when the run began, by `time.monotonic`.
    """

    def __init__(self, task: Task, began: float) -> None:
        super().__init__()
        self._task, self._began = task, began
        self.history: list[dict[str, float | int | None]] = []
        self.stopped: str | None = None
        #: the loss of the first batch before the first step
        self.first_loss: float | None = None
        #: rows to compute a score on that Keras does not compute; None where Keras computes it
        self._sample: Examples | None = None
        #: the score that early stopping goes by
        self.score_name = self._choose_score()
        #: the name of that score in Keras's logs
        self.monitor = {"log_loss": "val_loss", "accuracy": "val_accuracy"}.get(
            self.score_name, f"val_{self.score_name}"
        )
        self._emitted = self._epoch_began = self._run_began = time.monotonic()
        self._first_fraction = 0.0
        self._epoch = self._step = self._first_step = 0

    def _choose_score(self) -> str:
        """Return the score to optimise: the loss where the validation rows do not define the one in the specification."""
        optimize = self._task.spec.optimize
        if self._task.validation is None or optimize in ("log_loss", "accuracy"):
            return optimize
        self._sample = sample(self._task.validation, self._task.classes)
        zeros = np.zeros((self._sample.rows, self._task.classes), np.float32)
        return "log_loss" if score(optimize, zeros, self._sample.y) is None else optimize

    @property
    def elapsed_seconds(self) -> float:
        """The time of the run, with the time before it was interrupted or started again."""
        return time.monotonic() - self._began

    def resume(self, saved: Checkpoint) -> None:
        """Take over the history and the position of an earlier run."""
        self.history, self.first_loss = [dict(entry) for entry in saved.history], saved.first_loss
        self._first_step = saved.position.step
        self._first_fraction = self._fraction(saved.position.epoch, saved.position.step)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Note when this run begins."""
        self._run_began = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note where the epoch begins."""
        self._epoch, self._step = epoch + 1, self._first_step
        self._epoch_began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stop a run whose loss is not finite, or that is out of time; emit progress."""
        loss = (logs or {})["loss"]
        if not math.isfinite(loss):
            raise Diverged(self._epoch)
        if self.first_loss is None:
            self.first_loss = loss
        self._step = batch + 1
        if self.elapsed_seconds > float(self._task.spec.fit.max_seconds or math.inf):
            self.stopped = "max_seconds"
            self.model.stop_training = True
        if time.monotonic() - self._emitted >= 1 / PROGRESS_HZ:
            self._emit_progress()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Stop a run whose loss has exploded; add the epoch's figures to the history and emit them."""
        logs = {} if logs is None else logs
        if not logs["loss"] <= EXPLODED * max(self.first_loss or 0.0, math.log(self._task.classes)):
            raise Diverged(epoch + 1)
        if epoch == 0 and self._step < self._task.steps:
            seconds = float(self._task.spec.fit.max_seconds or 0)
            raise OutOfTime(f"The run reached its {seconds:g} seconds before the first epoch ended.")
        if self._sample is not None and self.monitor not in logs:
            value = score(self.score_name, network_logits(self.model, self._sample.x), self._sample.y)
            # logits that are not finite have no score
            logs[self.monitor] = -math.inf if value is None else value
        rate = logs.pop("learning_rate", None)
        seconds = time.monotonic() - self._epoch_began
        rows = (self._step - self._first_step) * self._task.batch
        self._first_step = 0
        ended = Epoch(
            epoch + 1,
            self._task.epochs,
            {name: float(value) if math.isfinite(value) else None for name, value in logs.items()},
            learning_rate=float(self.model.optimizer.learning_rate if rate is None else rate),
            elapsed_seconds=round(self.elapsed_seconds, 3),
            rows_per_second=round(min(rows, self._task.train.rows) / max(seconds, 1e-9), 1),
        )
        self.history.append(ended.figures())
        self._task.emit(ended)
        self._emit_progress()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Note what ended the run."""
        if self.stopped is None and len(self.history) < self._task.epochs:
            self.stopped = "early_stopping"

    def _fraction(self, epochs: int, steps: int) -> float:
        """Return the share of all steps that is done, after some epochs and some steps of the next one."""
        return (epochs + steps / self._task.steps) / self._task.epochs

    def _eta_seconds(self, fraction: float) -> float:
        """Return the time until all steps are done, at the pace of this run."""
        done, seconds = fraction - self._first_fraction, time.monotonic() - self._run_began
        if done <= 0:
            # this run has no pace of its own yet: the pace of the runs before it stands in
            done, seconds = fraction, self.elapsed_seconds
        return seconds * (1 - fraction) / done

    def _emit_progress(self) -> None:
        self._emitted = time.monotonic()
        fraction = self._fraction(self._epoch - 1, self._step)
        self._task.emit(
            Progress(
                self._epoch,
                self._task.epochs,
                self._step,
                self._task.steps,
                fraction=round(fraction, 4),
                eta_seconds=round(self._eta_seconds(fraction), 1),
            )
        )
