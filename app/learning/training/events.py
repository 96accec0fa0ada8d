"""What a training run reports while it goes. Knows neither who reads it nor how it travels.

Each event has a `type`, by which a reader of its JSON tells it from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

#: how the steps are computed: a TensorFlow graph, the same compiled by XLA, or Keras's own `fit`
LoopMode = Literal["graph", "xla", "keras"]


@dataclass(frozen=True)
class DeviceChosen:
    """The device that computes: "cpu", or a GPU such as "gpu:0"."""

    device: str
    type: Literal["device"] = "device"


@dataclass(frozen=True)
class LoopChosen:
    """How the steps are computed."""

    loop: LoopMode
    type: Literal["loop"] = "loop"


@dataclass(frozen=True)
class Progress:
    """How far the run is.

    Args:
        epoch, step: the present ones, from 1; of `epochs` and `steps` in all.
        fraction: of all steps of all epochs, in [0, 1].
        eta_seconds: the time until the last epoch ends, at the pace of this run.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    fraction: float
    eta_seconds: float
    type: Literal["progress"] = "progress"


@dataclass(frozen=True)
class Epoch:
    """An epoch has ended.

    Args:
        epoch: from 1, of `epochs` in all.
        scores: by name: `loss` and `accuracy`, and with validation data `val_loss`, `val_accuracy` and the score that
            the run optimises; None where a score is not finite.
        learning_rate: at the end of the epoch.
        elapsed_seconds: since the run began.
        rows_per_second: of this epoch.
    """

    epoch: int
    epochs: int
    scores: Mapping[str, float | None]
    learning_rate: float
    elapsed_seconds: float
    rows_per_second: float
    type: Literal["epoch"] = "epoch"

    def figures(self) -> dict[str, float | int | None]:
        """Return all figures by name: the epoch's entry in a version's history."""
        return {
            "epoch": self.epoch,
            "epochs": self.epochs,
            **self.scores,
            "learning_rate": self.learning_rate,
            "elapsed_seconds": self.elapsed_seconds,
            "rows_per_second": self.rows_per_second,
        }


@dataclass(frozen=True)
class LearningRateSettled:
    """The run uses another learning rate than its specification says."""

    learning_rate: float
    type: Literal["settled"] = "settled"


@dataclass(frozen=True)
class TrainingWarning:
    """Something that the caller should know, in a sentence."""

    message: str
    type: Literal["warning"] = "warning"


@dataclass(frozen=True)
class LogLine:
    """Something that happened, in a sentence."""

    message: str
    type: Literal["log"] = "log"


@dataclass(frozen=True)
class CheckpointWritten:
    """The run's state is in a file, which the reader of this event may take away.

    Args:
        epoch: how many epochs had ended.
    """

    file: Path
    epoch: int
    type: Literal["checkpoint"] = "checkpoint"


Event = (
    DeviceChosen | LoopChosen | Progress | Epoch | LearningRateSettled | TrainingWarning | LogLine | CheckpointWritten
)
Emit = Callable[[Event], None]
