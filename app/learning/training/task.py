"""What is to be fitted, and on what rows; and the ways in which a run ends early. Knows nothing of how a network is fitted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from app.learning.network.architecture import Architecture, Weights
from app.learning.spec import TrainSpec
from app.learning.training.checkpoint import Checkpoint
from app.learning.training.events import Emit
from app.learning.training.examples import ExampleSource

#: shortest time between two checkpoints at the ends of epochs
CHECKPOINT_SECONDS = 5.0


class Diverged(Exception):
    """The loss became NaN or infinite, or exploded; carries the epoch, from 1."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"The loss was not a finite number in epoch {epoch}; try a smaller learning rate.")
        self.epoch = epoch


class OutOfTime(Exception):
    """The run reached `max_seconds` in its first epoch, so that there are no weights to keep."""


class Interrupted(Exception):
    """The run was asked to stop, and has handed out a checkpoint."""


@dataclass(frozen=True)
class Task:
    """What is to be fitted, and on what rows.

    Args:
        spec: resolved, without any "auto".
        start: weights to start from, by the names of `Architecture.shapes`; None starts from fresh ones.
        is_rate_auto: whether the service chose the learning rate, and may choose a smaller one if the run diverges.
        emit: gets the events of the run.
        keep: gets a checkpoint from time to time.
        is_stopping: returns whether to stop at the next chance.
        checkpoint_seconds: the shortest time between two checkpoints at the ends of epochs.
        forget_compiled: empties the cache of compiled functions; returns whether there was anything in it.
    """

    architecture: Architecture
    spec: TrainSpec
    train: ExampleSource
    validation: ExampleSource | None
    emit: Emit
    start: Weights | None = None
    is_rate_auto: bool = False
    keep: Callable[[Checkpoint], None] = field(default=lambda _checkpoint: None)
    is_stopping: Callable[[], bool] = field(default=lambda: False)
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    forget_compiled: Callable[[], bool] = field(default=lambda: False)

    @property
    def classes(self) -> int:
        """The number of classes, k."""
        return self.architecture.classes

    @property
    def epochs(self) -> int:
        """The most epochs that the run has."""
        return int(self.spec.fit.epochs)

    @property
    def batch(self) -> int:
        """The rows of a batch."""
        return int(self.spec.fit.batch_size)

    @property
    def steps(self) -> int:
        """The number of steps of an epoch."""
        return math.ceil(self.train.rows / self.batch)
