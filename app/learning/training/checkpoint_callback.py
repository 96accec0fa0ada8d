"""A run's state, handed out as it goes and put back when it goes on. Knows nothing of where it is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from app.learning.network.keras_backend import read_random_streams, set_random_streams
from app.learning.training.checkpoint import State
from app.learning.training.loop import Mode, Position
from app.learning.training.progress_callback import ProgressCallback
from app.learning.training.task import Interrupted, Task

#: within an epoch a checkpoint is made after so long
MID_EPOCH_SECONDS = 30.0


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Hands out the run's state, and puts an earlier one back; the last of the callbacks, so that it sees the others'."""

    def __init__(
        self,
        task: Task,
        model: keras.Model,
        watch: ProgressCallback,
        stopping: keras.callbacks.EarlyStopping | None,
        saved: State | None,
        *,
        mode: Mode,
        rate: float,
    ) -> None:
        super().__init__()
        self._task, self._trained, self._watch, self._stopping = task, model, watch, stopping
        self._mode, self._rate = mode, rate
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
        """Put back what callbacks and random streams forget when training begins."""
        if self._saved is None:
            return
        set_random_streams(_numbered("random", self._saved.arrays))
        # EarlyStopping has just forgotten everything
        if self._stopping is not None:
            for name, value in self._saved.facts["stopping"].items():
                setattr(self._stopping, name, value)
            self._stopping.best_weights = _numbered("best", self._saved.arrays) or None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Keep a state within a long epoch, or because the run is to stop."""
        is_stopping = self._task.is_stopping()
        is_due = is_stopping or time.monotonic() - self._kept >= MID_EPOCH_SECONDS
        # Keras's own `fit` cannot begin within an epoch
        if is_due and self._mode != "keras" and not self.model.stop_training:
            self._keep(Position(self._epoch, batch + 1))
        if is_stopping:
            raise Interrupted

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keep a state where the last one is old enough."""
        # what ends here is decided by this epoch, and must be decided again
        if not self.model.stop_training and time.monotonic() - self._kept >= self._task.checkpoint_seconds:
            self._keep(Position(epoch + 1))

    def _keep(self, at: Position) -> None:
        stopping = self._stopping
        best = [] if stopping is None or stopping.best_weights is None else stopping.best_weights
        facts = {
            "epoch": at.epoch,
            "step": at.step,
            "loop": self._mode,
            "learning_rate": self._rate,
            "history": self._watch.history,
            "first_loss": self._watch.first_loss,
            "elapsed_seconds": self._watch.elapsed_seconds,
            "stopping": {} if stopping is None else {name: _plain(getattr(stopping, name)) for name in _STOPPING},
        }
        arrays = {name: variable.numpy() for name, variable in self._variables().items()}
        others = _names("best", best) | _names("random", read_random_streams())
        self._task.keep(State(facts, arrays | others))
        self._kept = time.monotonic()

    def _variables(self) -> dict[str, Any]:
        model = self._trained
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
