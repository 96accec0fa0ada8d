"""The bodies of the contract, for validation and for the documentation page."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.datasets import Dataset
from app.jobs import Job
from app.learning.table import Kind
from app.registry import Model, Version

Label = bool | int | float | str


class ColumnOut(BaseModel):
    """A column and its statistics."""

    name: str
    kind: Kind
    missing: int
    unique: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    top: list[tuple[Label, int]] = Field(description="The most frequent values and their counts.")
    warnings: list[str]


class DatasetOut(BaseModel):
    """A data set."""

    id: str = Field(examples=["ds_0193a5c2f1b07d2c9f1e3a5b7c9d"])
    name: str | None
    status: Literal["processing", "ready", "failed"]
    format: str
    rows: int
    size_bytes: int
    sha256: str
    columns: list[ColumnOut]
    warnings: list[str]
    created_at: str

    @classmethod
    def of(cls, dataset: Dataset) -> dict[str, Any]:
        """Give a data set as its document."""
        return {name: getattr(dataset, name) for name in cls.model_fields}


class DatasetPage(BaseModel):
    """A page of data sets, newest first."""

    items: list[DatasetOut]
    next: str | None


class RowsOut(BaseModel):
    """The first rows of a data set."""

    columns: list[str]
    rows: list[list[Label | None]]


class KindIn(BaseModel):
    """A column's corrected kind."""

    model_config = ConfigDict(extra="forbid")
    kind: Kind


class DatasetPatch(BaseModel):
    """Corrections to a data set."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"columns": {"weight": {"kind": "categorical"}}}]}
    )
    columns: dict[str, KindIn] = Field(min_length=1)


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class JobOut(BaseModel):
    """A job."""

    id: str = Field(examples=["job_0193a5c2f1b07d2c9f1e3a5b7c9d"])
    kind: Literal["train", "evaluate", "predict", "export"]
    model: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    terminal: bool
    queue_position: int | None
    attempt: int
    device: str | None
    spec: dict[str, Any] = Field(description="The specification with every `auto` resolved.")
    dataset: str
    progress: dict[str, Any] = Field(description="epoch, epochs, step, steps, fraction, eta_seconds")
    metrics: dict[str, float | None]
    version: int | None
    error: JobError | None
    created_at: str
    started_at: str | None
    finished_at: str | None

    @classmethod
    def of(cls, job: Job) -> dict[str, Any]:
        """Give a job as its document."""
        progress = dict.fromkeys(("epoch", "epochs", "step", "steps", "fraction", "eta_seconds")) | job.progress
        metrics = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy")) | job.metrics
        own = {"terminal": job.is_terminal, "dataset": job.dataset_id, "progress": progress, "metrics": metrics}
        return {name: own[name] if name in own else getattr(job, name) for name in cls.model_fields}


class JobPage(BaseModel):
    """A page of jobs, newest first."""

    items: list[JobOut]
    next: str | None


class EventOut(BaseModel):
    """Something that happened to a job; an `epoch` event carries the figures of that epoch."""

    model_config = ConfigDict(extra="allow")
    id: int
    at: str
    type: Literal["status", "epoch", "warning", "log"]


class EventPage(BaseModel):
    """A page of events, oldest first."""

    items: list[EventOut]
    next: str | None


class VersionSource(BaseModel):
    """The data that a version learned from."""

    id: str
    sha256: str
    rows: int


class VersionOut(BaseModel):
    """An immutable version."""

    model: str
    version: int
    job: str
    dataset: VersionSource
    status: Literal["ready", "failed_load"]
    weights_sha256: str
    inputs: list[dict[str, Any]]
    classes: list[Label]
    spec: dict[str, Any]
    metrics: dict[str, dict[str, float | None] | None]
    history: list[dict[str, float | None]]
    parameters: int
    size_bytes: int
    sha256: str
    environment: dict[str, str]
    tags: dict[str, str]
    created_at: str

    @classmethod
    def of(cls, version: Version) -> dict[str, Any]:
        """Give a version as its document."""
        own = {
            "model": version.model,
            "version": version.version,
            "job": version.job_id,
            "status": "ready",
            "sha256": version.sha256,
            "created_at": version.created_at,
        }
        return {name: own[name] if name in own else version.document[name] for name in cls.model_fields}


class VersionBrief(BaseModel):
    """A version in a model's list."""

    version: int
    job: str
    metrics: dict[str, dict[str, float | None] | None]
    parameters: int
    created_at: str


class ModelOut(BaseModel):
    """A model: its versions, newest first, and its aliases."""

    name: str
    default_version: int | None
    latest_version: int
    versions: list[VersionBrief]
    aliases: dict[str, int]
    created_at: str

    @classmethod
    def of(cls, model: Model) -> dict[str, Any]:
        """Give a model as its document."""
        briefs = [
            {
                "version": v.version,
                "job": v.job_id,
                "metrics": v.document["metrics"],
                "parameters": v.document["parameters"],
                "created_at": v.created_at,
            }
            for v in model.versions
        ]
        own = {"versions": briefs}
        return {name: own[name] if name in own else getattr(model, name) for name in cls.model_fields}


class ModelPage(BaseModel):
    """A page of models."""

    items: list[ModelOut]
    next: str | None


class AliasIn(BaseModel):
    """Where an alias points."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"version": 1}]})
    version: int = Field(ge=1, le=2**31 - 1)


class ClassFigures(BaseModel):
    """The figures of one class."""

    model_config = ConfigDict(populate_by_name=True)
    label: Label = Field(alias="class")
    precision: float
    recall: float
    f1: float
    support: int


class ConfusionMatrix(BaseModel):
    """Counts: a row for each true class, a column for each predicted one."""

    classes: list[Label]
    counts: list[list[int]]


class Evaluation(BaseModel):
    """How well a version does on labelled rows; `loss` and `accuracy` are what Keras's `evaluate` gives."""

    model: str
    version: int
    rows: int
    loss: float | None
    accuracy: float | None
    top_k_accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    log_loss: float | None
    brier: float | None
    roc_auc_ovr: float | None
    ece: float | None
    per_class: list[ClassFigures]
    confusion_matrix: ConfusionMatrix
    calibration: dict[str, Any]


class PredictionOut(BaseModel):
    """Predictions, one for each row; with `top_k`, `top` comes in place of `probabilities`."""

    model: str
    version: int
    classes: list[Label]
    predictions: list[Label]
    probabilities: list[list[float]] | None = None
    top: list[list[dict[str, Any]]] | None = None
    warnings: list[dict[str, Any]]
    warnings_total: int
