"""Jobs as values: a job as it was read, what a new one is made of, and an event. Knows no SQL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NotRequired, TypedDict

from app.records.job_status import ACTIVE, JobStatus


class FitLimits(TypedDict):
    """The part `fit` of a specification, as far as the service itself reads it."""

    max_seconds: float


class TrainingEstimate(TypedDict):
    """What a job was estimated to need."""

    seconds: float
    memory_bytes: int
    steps: int


class JobSpec(TypedDict):
    """A training specification without any "auto", and beside it what the service chose, as plain JSON.

    Clients read all of it; `app.learning.spec.TrainSpec` has its fields. Those that the service itself reads back have
    their types here.

    Args:
        dataset: the id of the data set that was trained on.
        columns: the features.
        auto: the names of the values that the service chose, such as "optimizer.learning_rate". A job of an earlier
            release has neither `auto` nor `estimate`.
    """

    target: str
    features: Mapping[str, object]
    validation: Mapping[str, object] | None
    network: Mapping[str, object]
    optimizer: Mapping[str, object]
    fit: FitLimits
    start_from: str | None
    optimize: str
    promote: str
    device: str
    tags: Mapping[str, str]
    dataset: str
    columns: list[str]
    auto: NotRequired[list[str]]
    estimate: NotRequired[TrainingEstimate]


class StoredProgress(TypedDict, total=False):
    """How far a job is; empty before the first report of a worker."""

    epoch: int
    epochs: int
    step: int
    steps: int
    fraction: float
    eta_seconds: float | None


class StoredScores(TypedDict, total=False):
    """The scores of a job's last epoch, None where one is not finite; empty before the first epoch has ended."""

    loss: float | None
    accuracy: float | None
    val_loss: float | None
    val_accuracy: float | None


class JobError(TypedDict):
    """Why a job failed.

    Args:
        code: a word of the contract's `error.code`.
        param: the part of the specification that is wrong.
    """

    code: str
    message: str
    param: str | None


def workflow_id_of(job_id: str, number: int) -> str:
    """Return the id of a job's work in the queue: `job_….1` at first, and the next number after each resume."""
    return f"{job_id}.{number}"


def job_id_of(workflow_id: str) -> str:
    """Return the id of the job that work in the queue belongs to."""
    return workflow_id.rpartition(".")[0]


@dataclass(frozen=True)
class NewJob:
    """What a job is made of.

    Args:
        table_key: the table that the data set has at the submission; a later correction of the data set leaves it.
        warnings: become the job's first events.
    """

    model: str
    dataset_id: str
    table_key: str
    validation_table_key: str | None
    spec: JobSpec
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read.

    Args:
        workflow_id: its present work in the queue. A resumed job is new work.
        queue_position: from 1; None where the job does not wait.
        attempt: how often a worker has claimed the job.
        last_event: the id of its newest event.
    """

    id: str
    kind: str
    model: str
    status: JobStatus
    workflow_id: str
    queue_position: int | None
    attempt: int
    device: str | None
    loop: str | None
    dataset_id: str
    table_key: str
    validation_table_key: str | None
    spec: JobSpec
    progress: StoredProgress
    metrics: StoredScores
    version: int | None
    error: JobError | None
    last_event: int
    created_at: str
    started_at: str | None
    finished_at: str | None

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended. Only a resume changes it then."""
        return self.status not in ACTIVE

    @property
    def workflow_ids(self) -> list[str]:
        """The ids of all its work in the queue, oldest first: of the first run, and of one more for each resume."""
        _, _, last = self.workflow_id.rpartition(".")
        return [workflow_id_of(self.id, number) for number in range(1, int(last) + 1)]


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job.

    Args:
        id: from 1, by job.
        body: what is particular to the type.
    """

    id: int
    at: str
    type: str
    body: Mapping[str, object]

    def document(self) -> Mapping[str, object]:
        """Return the event as clients read it."""
        return {"id": self.id, "at": self.at, "type": self.type, **self.body}
