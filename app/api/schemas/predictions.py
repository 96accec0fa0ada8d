"""Bodies of the routes that predict and evaluate."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from app.api.examples.predictions import PREDICTION
from app.learning.evaluation.scores import ClassifierScores
from app.learning.tables.label import Label
from app.serving.evaluator import Scores
from app.serving.predictor import LoadedVersion


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
    """The figures of the rows that have the same value in a column; null stands for a missing value."""

    value: Label | None
    rows: int
    loss: float | None
    accuracy: float | None
    balanced_accuracy: float | None
    macro_f1: float | None
    log_loss: float | None

    @classmethod
    def of(cls, value: Label | None, scores: ClassifierScores) -> Self:
        """Return the figures of the rows that have this value."""
        figures = {name: getattr(scores, name) for name in cls.model_fields if name != "value"}
        return cls.model_validate({"value": value, **figures})


class Evaluation(BaseModel):
    """The scores of a version on labelled rows; `loss` and `accuracy` are those of Keras's `evaluate`."""

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
    calibration: dict[str, object]
    slices: list[SliceFigures] | None = Field(None, description="With `by`: the figures of each value of that column.")

    @classmethod
    def of(cls, loaded: LoadedVersion, scores: Scores, by: str | None) -> Self:
        """Return the body for the scores of a version; `by` is the column that the rows were sliced by."""
        fields: dict[str, object] = {"model": loaded.version.model, "version": loaded.version.version}
        fields |= scores.overall.document(loaded.artifact.classes)
        if by is not None:
            fields["slices"] = [SliceFigures.of(value, of_slice) for value, of_slice in scores.slices]
        return cls.model_validate(fields)


class PredictionOut(BaseModel):
    """Predictions, one for each row, null for a bad row; with `top_k`, `top` replaces `probabilities`."""

    model_config = ConfigDict(json_schema_extra={"examples": [PREDICTION]})
    model: str
    version: int
    classes: list[Label]
    predictions: list[Label | None]
    probabilities: list[list[float | None] | None] | None = None
    top: list[list[dict[str, object]] | None] | None = None
    warnings: list[dict[str, object]]
    warnings_total: int
