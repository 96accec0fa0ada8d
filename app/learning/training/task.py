"""What is to be fitted, and on what; and how a run may end before its end. Knows nothing of how it is done."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from app.learning.network.architecture import Architecture, Weights
from app.learning.spec import TrainSpec
from app.learning.training.batches import Source
from app.learning.training.checkpoint import State
from app.learning.training.events import Emit

#: least time between two checkpoints
CHECKPOINT_SECONDS = 5.0


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
