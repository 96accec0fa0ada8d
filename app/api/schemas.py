"""The bodies of the contract, for validation and for the documentation page."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.learning.tables.column import ColumnKind
from app.records.datasets import Dataset
from app.records.jobs import Job
from app.records.keys import Scope
from app.records.registry import Model, Version

Label = bool | int | float | str


#: what answers look like, for the documentation page
_DATASET: dict[str, Any] = {
    "id": "ds_0193a5c2f1b07d2c9f1e3a5b7c9d",
    "name": "penguins.csv",
    "status": "ready",
    "format": "csv",
    "rows": 344,
    "size_bytes": 13478,
    "sha256": "9f2c" * 16,
    "columns": [
        {
            "name": "island",
            "kind": "categorical",
            "missing": 0,
            "unique": 3,
            "min": None,
            "max": None,
            "mean": None,
            "std": None,
            "top": [["Biscoe", 168], ["Dream", 124], ["Torgersen", 52]],
            "warnings": [],
        }
    ],
    "warnings": [],
    "error": None,
    "created_at": "2026-11-24T09:29:58.120Z",
}
_JOB: dict[str, Any] = {
    "id": "job_0193a5c2f1b07d2c9f1e3a5b7c9d",
    "kind": "train",
    "model": "penguins",
    "status": "running",
    "terminal": False,
    "queue_position": None,
    "attempt": 1,
    "device": "cpu",
    "loop": "xla",
    "spec": {"target": "species", "fit": {"epochs": 100, "batch_size": 32}},
    "dataset": "ds_0193a5c2f1b07d2c9f1e3a5b7c9d",
    "progress": {"epoch": 20, "epochs": 100, "step": 180, "steps": 900, "fraction": 0.2, "eta_seconds": 4.1},
    "metrics": {"loss": 0.31, "accuracy": 0.94, "val_loss": 0.33, "val_accuracy": 0.93},
    "version": None,
    "error": None,
    "created_at": "2026-11-24T09:30:00.000Z",
    "started_at": "2026-11-24T09:30:01.250Z",
    "finished_at": None,
}
_MODEL: dict[str, Any] = {
    "name": "penguins",
    "default_version": 1,
    "latest_version": 1,
    "versions": [
        {
            "version": 1,
            "job": "job_0193a5c2f1b07d2c9f1e3a5b7c9d",
            "metrics": {"train": {"loss": 0.02, "accuracy": 0.99}, "validation": {"loss": 0.04, "accuracy": 0.99}},
            "parameters": 771,
            "created_at": "2026-11-24T09:30:09.002Z",
        }
    ],
    "aliases": {"default": 1, "champion": 1},
    "created_at": "2026-11-24T09:30:09.002Z",
}
_PREDICTION: dict[str, Any] = {
    "model": "penguins",
    "version": 1,
    "classes": ["Adelie", "Gentoo"],
    "predictions": ["Adelie", "Gentoo"],
    "probabilities": [[0.97, 0.03], [0.01, 0.99]],
    "warnings": [{"row": 1, "column": "weight", "code": "imputed"}],
    "warnings_total": 1,
}


def _example(document: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [document]})


class ColumnOut(BaseModel):
    """A column and its statistics."""

    name: str
    kind: ColumnKind
    missing: int
    unique: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    top: list[tuple[Label, int]] = Field(description="The most frequent values and their counts.")
    warnings: list[str]


class DatasetError(BaseModel):
    """Why a data set could not be read."""

    code: str
    message: str


class DatasetOut(BaseModel):
    """A data set."""

    model_config = _example(_DATASET)
    id: str = Field(examples=["ds_0193a5c2f1b07d2c9f1e3a5b7c9d"])
    name: str | None
    status: Literal["processing", "ready", "failed"]
    format: str
    rows: int | None = Field(description="Null until the data set is ready.")
    size_bytes: int
    sha256: str
    columns: list[ColumnOut]
    warnings: list[str]
    error: DatasetError | None = Field(description="Why a data set failed.")
    created_at: str

    @classmethod
    def of(cls, dataset: Dataset) -> dict[str, Any]:
        """Give a data set as its document."""
        shown = {name: getattr(dataset, name) for name in cls.model_fields}
        return shown if dataset.status == "ready" else {**shown, "rows": None}


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
    kind: ColumnKind


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

    model_config = _example(_JOB)
    id: str = Field(examples=["job_0193a5c2f1b07d2c9f1e3a5b7c9d"])
    kind: Literal["train", "evaluate", "predict", "export"]
    model: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    terminal: bool
    queue_position: int | None
    attempt: int
    device: str | None
    loop: Literal["graph", "xla", "keras"] | None = Field(
        description="How the steps are computed: a TensorFlow graph, the same compiled by XLA, or Keras's own fit."
    )
    spec: dict[str, Any] = Field(
        description="The specification with every `auto` resolved; `auto` in it names the values that were chosen."
    )
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
    def of(cls, version: Version, *, is_broken: bool) -> dict[str, Any]:
        """Give a version as its document; a broken one could not be loaded."""
        own = {
            "model": version.model,
            "version": version.version,
            "job": version.job_id,
            "status": "failed_load" if is_broken else "ready",
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

    model_config = _example(_MODEL)
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


class KeyIn(BaseModel):
    """A key to make."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"name": "shop front end", "scopes": ["predict"]}]}
    )
    name: Annotated[str, Field(min_length=1, max_length=200)] | None = Field(None, description="A name for people.")
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)]


class KeyOut(BaseModel):
    """A stored key, without the key itself."""

    model_config = ConfigDict(from_attributes=True)
    id: str
    name: str | None
    scopes: list[Scope]
    created_at: str


class KeyMade(KeyOut):
    """A new key; it is shown this once."""

    key: str


class KeyPage(BaseModel):
    """A page of the stored keys, newest first."""

    items: list[KeyOut]
    next: str | None


class AliasIn(BaseModel):
    """Where an alias points."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"version": 1}]})
    version: int = Field(ge=1, le=2**31 - 1)


class AliasMove(BaseModel):
    """One move of an alias; the version is null where the alias was removed."""

    version: int | None
    reason: Literal["set", "promoted", "rollback", "deleted"]
    at: str


class AliasHistory(BaseModel):
    """A page of an alias's moves, newest first."""

    items: list[AliasMove]
    next: str | None


class ClassCount(BaseModel):
    """A class of the target, and its rows."""

    model_config = ConfigDict(populate_by_name=True)
    label: Label = Field(alias="class")
    rows: int


class Estimate(BaseModel):
    """What a job will take on one CPU core, roughly, and where early stopping does not end it before."""

    seconds: float
    memory_bytes: int
    steps: int


class DryRun(BaseModel):
    """What a training job would be; nothing of it is stored."""

    spec: dict[str, Any] = Field(description="The specification with every `auto` resolved.")
    rows: int
    columns: list[ColumnOut]
    target: str
    features: list[str]
    classes: list[ClassCount]
    warnings: list[str]
    encoded_features: int
    parameters: int
    estimate: Estimate


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


class SliceFigures(BaseModel):
    """The figures of the rows that have one value in a column; null for those that have none."""

    value: Label | None
    rows: int
    loss: float | None
    accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    log_loss: float | None


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
    slices: list[SliceFigures] | None = Field(None, description="With `by`: the figures of each value of that column.")


class PredictionOut(BaseModel):
    """Predictions, one for each row, null for a bad one; with `top_k`, `top` comes in place of `probabilities`."""

    model_config = _example(_PREDICTION)
    model: str
    version: int
    classes: list[Label]
    predictions: list[Label | None]
    probabilities: list[list[float | None] | None] | None = None
    top: list[list[dict[str, Any]] | None] | None = None
    warnings: list[dict[str, Any]]
    warnings_total: int
