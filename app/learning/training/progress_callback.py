"""A run as it is heard of: its progress, its history, and whether it goes well. Knows no checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from app.learning.evaluation.evaluate import score
from app.learning.network.keras_network import network_logits
from app.learning.training.batches import Examples, sample
from app.learning.training.events import Epoch, Progress
from app.learning.training.task import Diverged, OutOfTime, Task

#: at most so many progress events a second within an epoch
PROGRESS_HZ = 4
#: an epoch's loss has exploded when it is so many times the loss of the untrained network
EXPLODED = 1000.0


class ProgressCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Reports, keeps the history, and stops a run that diverges or is out of time."""

    def __init__(self, task: Task, began: float) -> None:
        super().__init__()
        self._task, self._began = task, began
        self._epochs = int(task.spec.fit.epochs)
        self.history: list[dict[str, float | int | None]] = []
        self.stopped: str | None = None
        #: the loss of the first batch before the first step
        self.first_loss: float | None = None
        self._sample: Examples | None = None
        #: the score that early stopping goes by; the loss where these rows do not define the one asked for
        self.aim = self._score_to_aim_at()
        self.monitor = {"log_loss": "val_loss", "accuracy": "val_accuracy"}.get(self.aim, f"val_{self.aim}")
        self._said = self._epoch_began = self._run_began = time.monotonic()
        self._first_fraction = 0.0
        self._epoch = self._step = self._first_step = 0

    def _score_to_aim_at(self) -> str:
        optimize = self._task.spec.optimize
        if self._task.validation is None or optimize in ("log_loss", "accuracy"):
            return optimize
        self._sample = sample(self._task.validation, self._task.classes)
        nothing = np.zeros((self._sample.rows, self._task.classes), np.float32)
        return "log_loss" if score(optimize, nothing, self._sample.y) is None else optimize

    @property
    def elapsed_seconds(self) -> float:
        """How long the run has taken, with what came before it was taken up again or started anew."""
        return time.monotonic() - self._began

    def go_on(self, facts: Mapping[str, Any]) -> None:
        """Take over what an earlier run had come to."""
        self.history, self.first_loss = list(facts["history"]), facts["first_loss"]
        self._first_step = facts["step"]
        self._first_fraction = (facts["epoch"] + facts["step"] / self._task.steps) / self._epochs

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Note when this run begins."""
        self._run_began = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note where the epoch begins."""
        self._epoch, self._step = epoch + 1, self._first_step
        self._epoch_began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Stop a run whose loss is no number, or that is out of time; tell how far it is."""
        loss = (logs or {})["loss"]
        if not math.isfinite(loss):
            raise Diverged(self._epoch)
        if self.first_loss is None:
            self.first_loss = loss
        self._step = batch + 1
        if self.elapsed_seconds > float(self._task.spec.fit.max_seconds or math.inf):
            self.stopped = "max_seconds"
            self.model.stop_training = True
        if time.monotonic() - self._said >= 1 / PROGRESS_HZ:
            self._tell_progress()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Stop a run whose loss has exploded; add to the history and tell of it."""
        logs = {} if logs is None else logs
        if not logs["loss"] <= EXPLODED * max(self.first_loss or 0.0, math.log(self._task.classes)):
            raise Diverged(epoch + 1)
        if epoch == 0 and self._step < self._task.steps:
            seconds = float(self._task.spec.fit.max_seconds or 0)
            raise OutOfTime(f"The run reached its {seconds:g} seconds before the first epoch ended.")
        if self._sample is not None and self.monitor not in logs:
            value = score(self.aim, network_logits(self.model, self._sample.x), self._sample.y)
            # logits that are not finite give none
            logs[self.monitor] = -math.inf if value is None else value
        rate = logs.pop("learning_rate", None)
        seconds = time.monotonic() - self._epoch_began
        rows = (self._step - self._first_step) * int(self._task.spec.fit.batch_size)
        self._first_step = 0
        ended = Epoch(
            epoch + 1,
            self._epochs,
            {name: float(score) if math.isfinite(score) else None for name, score in logs.items()},
            learning_rate=float(self.model.optimizer.learning_rate if rate is None else rate),
            elapsed_seconds=round(self.elapsed_seconds, 3),
            rows_per_second=round(min(rows, self._task.train.rows) / max(seconds, 1e-9), 1),
        )
        self.history.append(ended.figures())
        self._task.emit(ended)
        self._tell_progress()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Note what ended the run."""
        if self.stopped is None and len(self.history) < self._epochs:
            self.stopped = "early_stopping"

    def _tell_progress(self) -> None:
        self._said = time.monotonic()
        fraction = (self._epoch - 1 + self._step / self._task.steps) / self._epochs
        done, seconds = fraction - self._first_fraction, time.monotonic() - self._run_began
        if done <= 0:
            # the pace of this run, without what came before a divergence or an interruption, is not known yet
            done, seconds = fraction, self.elapsed_seconds
        eta = seconds * (1 - fraction) / done
        self._task.emit(
            Progress(
                self._epoch,
                self._epochs,
                self._step,
                self._task.steps,
                fraction=round(fraction, 4),
                eta_seconds=round(eta, 1),
            )
        )
