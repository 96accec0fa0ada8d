"""A run's checkpoints: handed out as it goes, and put back where it continues. Knows nothing of where they are stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from numpy.typing import NDArray

from app.learning.network.keras_backend import read_random_streams, set_random_streams
from app.learning.training.checkpoint import BEGINNING, Checkpoint, Position, StoppingState
from app.learning.training.events import LoopMode
from app.learning.training.progress_callback import ProgressCallback
from app.learning.training.task import Interrupted, Task

#: time after which a checkpoint is made within an epoch
MID_EPOCH_SECONDS = 30.0


class CheckpointCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Hands out checkpoints, and puts an earlier one back. Must be the last callback: it keeps the state of the others.

    Args:
        saved: the checkpoint from which the run continues.
        mode, rate: how the steps are computed, and the learning rate, for the checkpoints.
    """

    def __init__(
        self,
        task: Task,
        model: keras.Model,
        progress: ProgressCallback,
        stopping: keras.callbacks.EarlyStopping | None,
        saved: Checkpoint | None,
        *,
        mode: LoopMode,
        rate: float,
    ) -> None:
        super().__init__()
        self._task, self._trained, self._progress, self._stopping = task, model, progress, stopping
        self._mode, self._rate = mode, rate
        self._saved = saved
        self._epoch = 0
        self._kept = time.monotonic()
        self.start = BEGINNING
        if saved is not None:
            self.start = saved.position
            progress.resume(saved)
            for name, variable in self._variables().items():
                variable.assign(saved.arrays[name])

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Put back the state that callbacks and random streams lose when training begins."""
        if self._saved is None:
            return
        set_random_streams(_numbered("random", self._saved.arrays))
        stopping, state = self._stopping, self._saved.stopping
        if stopping is not None and state is not None:
            stopping.wait, stopping.best = state.wait, state.best
            stopping.best_epoch, stopping.stopped_epoch = state.best_epoch, state.stopped_epoch
            stopping.best_weights = _numbered("best", self._saved.arrays) or None

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Hand out a checkpoint within a long epoch, or because the run is to stop."""
        is_stopping = self._task.is_stopping()
        is_due = is_stopping or time.monotonic() - self._kept >= MID_EPOCH_SECONDS
        # Keras's own `fit` cannot begin within an epoch
        if is_due and self._mode != "keras" and not self.model.stop_training:
            self._keep(Position(self._epoch, batch + 1))
        if is_stopping:
            raise Interrupted

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Hand out a checkpoint where the last one is old enough."""
        # the epoch that ends a run has no checkpoint: a resumed run decides again, by the same numbers, that it ends
        if not self.model.stop_training and time.monotonic() - self._kept >= self._task.checkpoint_seconds:
            self._keep(Position(epoch + 1))

    def _keep(self, position: Position) -> None:
        stopping = self._stopping
        best = [] if stopping is None or stopping.best_weights is None else stopping.best_weights
        arrays = {name: variable.numpy() for name, variable in self._variables().items()}
        others = _names("best", best) | _names("random", read_random_streams())
        self._task.keep(
            Checkpoint(
                position,
                self._mode,
                self._rate,
                list(self._progress.history),
                self._progress.first_loss,
                self._progress.elapsed_seconds,
                None if stopping is None else _stopping_state(stopping),
                arrays | others,
            )
        )
        self._kept = time.monotonic()

    def _variables(self) -> dict[str, Any]:
        model = self._trained
        groups = {"model": model.variables, "optimizer": model.optimizer.variables, "metrics": model.metrics_variables}
        return {name: variable for group, values in groups.items() for name, variable in _names(group, values).items()}


def _stopping_state(stopping: keras.callbacks.EarlyStopping) -> StoppingState:
    best = None if stopping.best is None else float(stopping.best)
    return StoppingState(int(stopping.wait), best, int(stopping.best_epoch), int(stopping.stopped_epoch))


def _names(group: str, values: Sequence[Any]) -> dict[str, Any]:
    return {f"{group}/{i}": value for i, value in enumerate(values)}


def _numbered(group: str, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the arrays that `_names` has named, in order."""
    return [arrays[f"{group}/{i}"] for i in range(sum(name.startswith(f"{group}/") for name in arrays))]
