"""Bodies of the routes of training and of jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.api.examples.jobs import JOB
from app.api.schemas.datasets import ColumnOut
from app.learning.tables.label import Label
from app.records.job import Job
from app.records.job_status import JobStatus

if TYPE_CHECKING:
    Status = JobStatus
else:
    # an enumeration would be a schema of its own in the OpenAPI document; a literal is spelled out where it stands
    Status = Literal[tuple(JobStatus)]


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobOut(BaseModel):
    """A job."""

    model_config = ConfigDict(json_schema_extra={"examples": [JOB]})
    id: str = Field(examples=["job_0193a5c2f1b07d2c9f1e3a5b7c9d"])
    kind: Literal["train"]
    model: str
    status: Status
    terminal: bool
    queue_position: int | None
    attempt: int
    device: str | None
    loop: Literal["graph", "xla", "keras"] | None = Field(
        description="How the steps are computed: a TensorFlow graph, the same compiled by XLA, or Keras's own fit."
    )
    spec: dict[str, object] = Field(
        description="The specification with every `auto` resolved; `auto` in it names the values that were chosen."
    )
    dataset: str
    progress: dict[str, object] = Field(description="epoch, epochs, step, steps, fraction, eta_seconds")
    metrics: dict[str, float | None]
    version: int | None
    error: JobError | None
    created_at: str
    started_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the body for a job."""
        progress = dict.fromkeys(("epoch", "epochs", "step", "steps", "fraction", "eta_seconds")) | job.progress
        metrics = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy")) | job.metrics
        own = {"terminal": job.is_terminal, "dataset": job.dataset_id, "progress": progress, "metrics": metrics}
        return cls.model_validate({name: own[name] if name in own else getattr(job, name) for name in cls.model_fields})


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    items: list[JobOut]
    next: str | None


class EventOut(BaseModel):
    """Something that happened to a job; an `epoch` event has the figures of that epoch."""

    model_config = ConfigDict(extra="allow")
    id: int
    at: str
    type: Literal["status", "epoch", "warning", "log"]


class EventPage(BaseModel):
    """A page of events, oldest first."""

    items: list[EventOut]
    next: str | None


class ClassCount(BaseModel):
    """A class of the target, and its rows."""

    model_config = ConfigDict(populate_by_name=True)
    label: Label = Field(alias="class")
    rows: int


class Estimate(BaseModel):
    """A rough estimate of what a job needs on one CPU core, if early stopping does not end it sooner."""

    seconds: float
    memory_bytes: int
    steps: int


class DryRun(BaseModel):
    """The description of a training job that was not submitted; nothing is stored."""

    spec: dict[str, object] = Field(description="The specification with every `auto` resolved.")
    rows: int
    columns: list[ColumnOut]
    target: str
    features: list[str]
    classes: list[ClassCount]
    warnings: list[str]
    encoded_features: int
    parameters: int
    estimate: Estimate
