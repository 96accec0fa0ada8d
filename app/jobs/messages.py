"""What a worker and its training process say to each other. Knows neither of them.

The worker sends one `TrainRequest`. The training process sends `Ready`, then the events of the run, and at last `Done`,
`Failed` or `Interrupted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from app.learning.spec import TrainSpec
from app.learning.tables.label import Label
from app.learning.training.events import Event
from app.system.json_lines import Codec

#: by name; None where the data do not define a score
Scores = Mapping[str, float | None]


@dataclass(frozen=True)
class StartVersion:
    """The version whose weights and encoder training starts from."""

    folder: Path
    sha256: str


@dataclass(frozen=True)
class TrainRequest:
    """One job.

    Args:
        job: its id.
        spec: resolved, without any "auto".
        auto: the names of the values in `spec` that the service chose, such as "optimizer.learning_rate".
        columns: the features.
        table, validation_table: table files.
        folder: an empty one, for the version's files and for checkpoints.
        memory_bytes: what encoded rows may take in memory; more of them go to a file in `folder`.
        checkpoint_seconds: least time between two checkpoints.
        compiled: the folder of XLA's cache.
        gpu: the worker's choice for a job that leaves the choice to the service.
        checkpoint: the file that an earlier attempt at the job left.
    """

    job: str
    spec: TrainSpec
    auto: tuple[str, ...]
    columns: tuple[str, ...]
    table: Path
    validation_table: Path | None
    folder: Path
    memory_bytes: int
    checkpoint_seconds: float
    compiled: Path
    gpu: str | None = None
    checkpoint: Path | None = None
    start: StartVersion | None = None
    type: Literal["train"] = "train"


@dataclass(frozen=True)
class Ready:
    """Keras is imported; the training process can take its request."""

    type: Literal["ready"] = "ready"


@dataclass(frozen=True)
class VersionDescription:
    """What clients see of a version, as far as the training process knows it; the fields of the contract.

    Args:
        metrics: scores by name, of "train" and of "validation", which is None without validation data.
        history: the figures of each epoch.
        stopped: why the run ended before its last epoch: "early_stopping" or "max_seconds".
        features: encoded ones, d.
        rows: of "train" and of "validation".
    """

    weights_sha256: str
    inputs: Sequence[Mapping[str, object]]
    classes: Sequence[Label]
    spec: Mapping[str, object]
    metrics: Mapping[str, Scores | None]
    history: Sequence[Mapping[str, float | int | None]]
    stopped: str | None
    parameters: int
    features: int
    rows: Mapping[str, int]
    size_bytes: int
    environment: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """The version's files are written.

    Args:
        sha256: of the version.
        metrics: the scores that the job shows.
    """

    sha256: str
    version: VersionDescription
    metrics: Scores
    type: Literal["done"] = "done"


@dataclass(frozen=True)
class Failed:
    """The job cannot succeed.

    Args:
        code: a word of the contract's `error.code`.
        message: why.
        param: the part of the specification that is wrong.
    """

    code: str
    message: str
    param: str | None = None
    type: Literal["failed"] = "failed"


@dataclass(frozen=True)
class Interrupted:
    """The run has stopped because the worker asked for it; its last checkpoint says where it is."""

    type: Literal["interrupted"] = "interrupted"


Outcome = Done | Failed | Interrupted
TrainingMessage = Ready | Event | Outcome

REQUESTS: Codec[TrainRequest] = Codec(TrainRequest)
MESSAGES: Codec[TrainingMessage] = Codec(TrainingMessage)
