"""Bodies of the routes of data sets."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from app.api.examples.datasets import DATASET
from app.learning.tables.column import ColumnKind
from app.learning.tables.label import Label
from app.records.dataset import Dataset


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

    model_config = ConfigDict(json_schema_extra={"examples": [DATASET]})
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
    def of(cls, dataset: Dataset) -> Self:
        """Return the body for a data set."""
        fields = {name: getattr(dataset, name) for name in cls.model_fields}
        return cls.model_validate(fields if dataset.status == "ready" else {**fields, "rows": None})


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
