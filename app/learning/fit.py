"""Fitting a network as a specification says: the optimizer, early stopping, divergence, checkpoints and progress.

Knows no files and no jobs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning import metrics
from app.learning.batches import Examples, Source, sample
from app.learning.checkpoint import State
from app.learning.keras_network import (
    build,
    get_weights,
    make_deterministic,
    network_logits,
    read_random_streams,
    set_random_streams,
)
from app.learning.loop import Mode, NotCompilable, Position, prepare, run
from app.learning.network import Architecture, Weights
from app.learning.spec import EarlyStopping, TrainSpec

#: at most so many progress events a second within an epoch
PROGRESS_HZ = 4
#: from so many steps on XLA's compilation, 0.3 s longer than a graph's, is made up for by 0.14 ms a step (measured at
#: 20 → 64 → 10, batch 32)
XLA_STEPS = 2000
#: a checkpoint is written at the end of an epoch, at most so often; within a longer epoch after so long
CHECKPOINT_SECONDS = 5.0
MID_EPOCH_SECONDS = 30.0
#: an epoch's loss has exploded when it is so many times the loss of the untrained network
EXPLODED = 1000.0
Emit = Callable[[dict[str, Any]], None]


class Diverged(Exception):
    """The loss became NaN or infinite, or exploded; carries the epoch, from 1."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"The loss was not a finite number in epoch {epoch}; try a smaller learning rate.")
        self.epoch = epoch


class OutOfTime(Exception):
    """The run reached `max_seconds` in its first epoch, and so has nothing to keep."""


class Interrupted(Exception):
    """The run was asked to stop, and its last checkpoint says where it is."""


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


@dataclass(frozen=True)
class Task:
    """What is to be fitted, and on what.

    Args:
        spec: resolved, without any "auto".
        start: weights to start from, by the names of `Architecture.shapes`; None is fresh ones.
        is_rate_auto: whether the learning rate was chosen for the caller, who then gets a smaller one if it diverges.
        emit: gets `loop`, `progress`, `epoch` and `warning` events, and `settled` where a value is changed.
        keep: gets the run's state from time to time.
        is_stopping: whether to stop at the next chance.
        checkpoint_seconds: the state is kept at the end of an epoch, at most so often.
        forget_compiled: empties the cache of what was compiled before; tells whether there was anything in it.
    """

    architecture: Architecture
    spec: TrainSpec
    train: Source
    validation: Source | None
    emit: Emit
    start: Weights | None = None
    is_rate_auto: bool = False
    keep: Callable[[State], None] = field(default=lambda _state: None)
    is_stopping: Callable[[], bool] = field(default=lambda: False)
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    forget_compiled: Callable[[], bool] = field(default=lambda: False)

    @property
    def classes(self) -> int:
        """The number of classes, k."""
        return self.architecture.classes

    @property
    def steps(self) -> int:
        """The number of steps of an epoch."""
        return math.ceil(self.train.rows / int(self.spec.fit.batch_size))


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
        task.emit({"type": "loop", "loop": mode})
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
            task.emit({"type": "warning", "message": message})
            mode = slower
        except Diverged as error:
            if not task.is_rate_auto or rate < float(task.spec.optimizer.learning_rate):
                raise
            rate, saved = rate / 10, None
            message = f"the loss diverged in epoch {error.epoch}; training starts again at a tenth of the learning rate"
            task.emit({"type": "warning", "message": message})
            task.emit({"type": "settled", "learning_rate": rate})


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
        watch = _Watch(task, self.began)
        stopping = _stopping(spec, watch, task.validation)
        keeper = _Keeper(self, watch, stopping, saved)
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


def _stopping(spec: TrainSpec, watch: _Watch, validation: Source | None) -> keras.callbacks.EarlyStopping | None:
    asked = spec.fit.early_stopping
    if not isinstance(asked, EarlyStopping) or validation is None:
        return None
    return keras.callbacks.EarlyStopping(
        monitor=watch.monitor,
        mode="max" if metrics.higher_is_better(watch.aim) else "min",
        patience=asked.patience,
        min_delta=asked.min_delta,
        restore_best_weights=asked.restore_best_weights,
    )


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]
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
        self._said = self._epoch_began = time.monotonic()
        self._epoch = self._step = self._first_step = 0

    def _score_to_aim_at(self) -> str:
        optimize = self._task.spec.optimize
        if self._task.validation is None or optimize in ("log_loss", "accuracy"):
            return optimize
        self._sample = sample(self._task.validation, self._task.classes)
        nothing = np.zeros((self._sample.rows, self._task.classes), np.float32)
        return "log_loss" if metrics.score(optimize, nothing, self._sample.y) is None else optimize

    @property
    def elapsed_seconds(self) -> float:
        """How long the run has taken, with what came before it was taken up again or started anew."""
        return time.monotonic() - self._began

    def go_on(self, facts: Mapping[str, Any]) -> None:
        """Take over what an earlier run had come to."""
        self.history, self.first_loss = list(facts["history"]), facts["first_loss"]
        self._first_step = facts["step"]

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch, self._step = epoch + 1, self._first_step
        self._epoch_began = time.monotonic()

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
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
        logs = {} if logs is None else logs
        if not logs["loss"] <= EXPLODED * max(self.first_loss or 0.0, math.log(self._task.classes)):
            raise Diverged(epoch + 1)
        if epoch == 0 and self._step < self._task.steps:
            seconds = float(self._task.spec.fit.max_seconds or 0)
            raise OutOfTime(f"The run reached its {seconds:g} seconds before the first epoch ended.")
        if self._sample is not None and self.monitor not in logs:
            score = metrics.score(self.aim, network_logits(self.model, self._sample.x), self._sample.y)
            # logits that are not finite give none
            logs[self.monitor] = -math.inf if score is None else score
        rate = logs.pop("learning_rate", None)
        seconds = time.monotonic() - self._epoch_began
        rows = (self._step - self._first_step) * int(self._task.spec.fit.batch_size)
        self._first_step = 0
        entry: dict[str, float | int | None] = {"epoch": epoch + 1, "epochs": self._epochs}
        entry |= {name: float(v) if math.isfinite(v) else None for name, v in logs.items()}
        entry["learning_rate"] = float(self.model.optimizer.learning_rate) if rate is None else rate
        entry["elapsed_seconds"] = round(self.elapsed_seconds, 3)
        entry["rows_per_second"] = round(min(rows, self._task.train.rows) / max(seconds, 1e-9), 1)
        self.history.append(entry)
        self._task.emit({"type": "epoch", **entry})
        self._tell_progress()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self.stopped is None and len(self.history) < self._epochs:
            self.stopped = "early_stopping"

    def _tell_progress(self) -> None:
        self._said = time.monotonic()
        fraction = (self._epoch - 1 + self._step / self._task.steps) / self._epochs
        self._task.emit(
            {
                "type": "progress",
                "epoch": self._epoch,
                "epochs": self._epochs,
                "step": self._step,
                "steps": self._task.steps,
                "fraction": round(fraction, 4),
                "eta_seconds": round(self.elapsed_seconds * (1 - fraction) / max(fraction, 1e-9), 1),
            }
        )


class _Keeper(keras.callbacks.Callback):  # type: ignore[misc]
    """Hands out the run's state, and puts an earlier one back; the last of the callbacks, so that it sees the others'."""

    def __init__(
        self, run: _Run, watch: _Watch, stopping: keras.callbacks.EarlyStopping | None, saved: State | None
    ) -> None:
        super().__init__()
        self._run, self._watch, self._stopping = run, watch, stopping
        self._saved = saved
        self._epoch = 0
        self._kept = time.monotonic()
        self.at = Position()
        if saved is not None:
            self.at = Position(saved.facts["epoch"], saved.facts["step"])
            watch.go_on(saved.facts)
            for name, variable in self._variables().items():
                variable.assign(saved.arrays[name])

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        if self._saved is None:
            return
        set_random_streams(_numbered("random", self._saved.arrays))
        # EarlyStopping has just forgotten everything
        if self._stopping is not None:
            for name, value in self._saved.facts["stopping"].items():
                setattr(self._stopping, name, value)
            self._stopping.best_weights = _numbered("best", self._saved.arrays) or None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        is_stopping = self._run.task.is_stopping()
        is_due = is_stopping or time.monotonic() - self._kept >= MID_EPOCH_SECONDS
        # Keras's own `fit` cannot begin within an epoch
        if is_due and self._run.mode != "keras" and not self.model.stop_training:
            self._keep(Position(self._epoch, batch + 1))
        if is_stopping:
            raise Interrupted

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        # what ends here is decided by this epoch, and must be decided again
        if not self.model.stop_training and time.monotonic() - self._kept >= self._run.task.checkpoint_seconds:
            self._keep(Position(epoch + 1))

    def _keep(self, at: Position) -> None:
        stopping = self._stopping
        best = [] if stopping is None or stopping.best_weights is None else stopping.best_weights
        facts = {
            "epoch": at.epoch,
            "step": at.step,
            "loop": self._run.mode,
            "learning_rate": self._run.rate,
            "history": self._watch.history,
            "first_loss": self._watch.first_loss,
            "elapsed_seconds": self._watch.elapsed_seconds,
            "stopping": {} if stopping is None else {name: _plain(getattr(stopping, name)) for name in _STOPPING},
        }
        arrays = {name: variable.numpy() for name, variable in self._variables().items()}
        others = _names("best", best) | _names("random", read_random_streams())
        self._run.task.keep(State(facts, arrays | others))
        self._kept = time.monotonic()

    def _variables(self) -> dict[str, Any]:
        model = self._run.model
        groups = {"model": model.variables, "optimizer": model.optimizer.variables, "metrics": model.metrics_variables}
        return {name: variable for group, found in groups.items() for name, variable in _names(group, found).items()}


#: what `keras.callbacks.EarlyStopping` knows between two epochs, beside its best weights
_STOPPING = ("wait", "best", "best_epoch", "stopped_epoch")


def _names(group: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"{group}/{i}": value for i, value in enumerate(values)}


def _numbered(group: str, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Give the arrays that `_names` has named."""
    return [arrays[f"{group}/{i}"] for i in range(sum(name.startswith(f"{group}/") for name in arrays))]


def _plain(value: Any) -> Any:
    return None if value is None else float(value) if isinstance(value, float | np.floating) else int(value)
