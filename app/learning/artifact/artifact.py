"""Everything that a version is, as a value. Knows no files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.learning.encoding.encoder import Encoder
from app.learning.network.architecture import Architecture
from app.learning.tables.label import Label


@dataclass(frozen=True)
class TrainingRecord:
    """How a version was trained.

    Args:
        spec: the resolved specification as JSON, with the learning rate that was used in the end. It stays JSON here:
            the release that reads a version may know another `TrainSpec` than the release that trained it.
        metrics: scores by name, of the training rows ("train") and of the rows held out ("validation"), None where
            nothing was held out.
        history: the figures of each epoch by name.
    """

    spec: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, float | None] | None]
    history: Sequence[Mapping[str, float | None]]

    @property
    def target(self) -> str:
        """The column that the version predicts."""
        return str(self.spec["target"])

    @property
    def label_smoothing(self) -> float:
        """The label smoothing of the loss, in [0, 1]."""
        return float(self.spec["fit"]["label_smoothing"])

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> TrainingRecord:
        """Rebuild a record from its JSON."""
        return cls(document["spec"], document["metrics"], document["history"])

    def document(self) -> dict[str, object]:
        """Return the record as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class GoldenRows:
    """A few rows of the data, and the probabilities that the version must answer for them wherever it runs.

    Args:
        records: the rows as they were posted, by column.
        probabilities: (n, k), float32 numbers.
    """

    records: Sequence[Mapping[str, Label | None]]
    probabilities: Sequence[Sequence[float]]

    @property
    def columns(self) -> dict[str, list[Label | None]]:
        """The cells of each column."""
        return {name: [record[name] for record in self.records] for name in self.records[0]}

    def difference(self, probabilities: NDArray[np.float32]) -> float:
        """Return the largest difference from other probabilities (n, k) of these rows; NaN where one is NaN."""
        return float(np.abs(probabilities - np.array(self.probabilities, np.float32)).max())

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> GoldenRows:
        """Rebuild golden rows from their JSON."""
        return cls(document["records"], document["probabilities"])

    def document(self) -> dict[str, object]:
        """Return the rows as plain JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Artifact:
    """Everything that a version is.

    Args:
        weights: float32 arrays by the names of `Architecture.shapes`.
    """

    architecture: Architecture
    encoder: Encoder
    classes: tuple[Label, ...]
    weights: Mapping[str, NDArray[np.float32]]
    training: TrainingRecord
    golden: GoldenRows


def weights_sha256(weights: Mapping[str, NDArray[np.float32]]) -> str:
    """Return one digest of all weights: names, shapes and little-endian bytes, in order of name."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.ascontiguousarray(weights[name], "<f4")
        digest.update(f"{name}{value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
