"""What the client returns: data sets, jobs and predictions, each with the document that the service sent."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Self

#: a JSON object as the service sent it
Document = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One thing that the service described; `document` is its whole description, with values of later releases too."""

    document: Document = field(default_factory=dict, repr=False, kw_only=True)

    @classmethod
    def from_document(cls, document: Document) -> Self:
        """Return the record of a document; a value without a field in this class stays in `document` alone."""
        names = {known.name for known in fields(cls)} - {"document"}
        values = {name: value for name, value in document.items() if name in names and value is not None}
        return cls(**values, document=document)


@dataclass(frozen=True)
class Dataset(Record):
    """A data set."""

    id: str
    status: str
    name: str | None = None
    format: str = ""
    rows: int | None = None
    size_bytes: int | None = None
    columns: list[Document] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Job(Record):
    """A job, as it was when the service was asked."""

    id: str
    model: str
    status: str
    kind: str = "train"
    version: int | None = None
    progress: Document = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    error: Document | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended."""
        return self.status in ("succeeded", "failed", "cancelled")

    @property
    def ref(self) -> str:
        """The reference of the version that the job made, as in "iris@3"; before that the model's name."""
        return self.model if self.version is None else f"{self.model}@{self.version}"


@dataclass(frozen=True)
class Prediction(Record):
    """The answer to n rows: n labels, and for each row k probabilities in the order of the k `classes`.

    With `top_k`, `probabilities` is empty and `top` has n lists of {"class", "probability"}, the best first.
    """

    model: str
    version: int
    classes: list[Any]
    predictions: list[Any]
    probabilities: list[list[float]] = field(default_factory=list)
    top: list[list[Document]] = field(default_factory=list)
    warnings: list[Document] = field(default_factory=list)
