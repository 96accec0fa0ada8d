"""Predictions of posted rows by one version in memory. Knows nothing of storage, HTTP or training."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from app.errors import TooLarge
from app.learning.artifact.artifact import Artifact
from app.learning.encoding.cell_warnings import MAX_WARNINGS, CellFaults, CellWarning, CellWarnings
from app.learning.encoding.read_cells import records_cells
from app.learning.network.runtime import Runtime
from app.learning.requests.prediction_rows import Rows
from app.learning.tables.label import Label
from app.records.version import Version


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version in memory, ready to predict.

    Args:
        size_bytes: memory of its weights.
        max_cells: the most encoded features, and the most probabilities, of one prediction.
    """

    version: Version
    artifact: Artifact
    runtime: Runtime
    size_bytes: int
    max_cells: int

    @property
    def target(self) -> str:
        """The column that the model predicts."""
        return self.artifact.training.target

    @property
    def most_rows(self) -> int:
        """The most rows of one prediction."""
        return self.max_cells // max(self.artifact.encoder.width, len(self.artifact.classes))

    def predict(self, rows: Rows, *, skips_bad: bool = False) -> Prediction:
        """Predict posted rows; columns that the model does not know are ignored with a warning.

        Args:
            skips_bad: mark a row that cannot be read as bad, and predict all others, instead of raising `Invalid`.

        Raises:
            Invalid: a value of the wrong type, or a missing one that the model refuses; names row and column.
            TooLarge: there are more than `most_rows` rows.
        """
        encoder = self.artifact.encoder
        if rows.count > (most := self.most_rows):
            raise TooLarge(f"Expected at most {most} rows for this model in one request, got {rows.count}.")
        warnings, faults = CellWarnings(), CellFaults()
        x = encoder.encode(records_cells(encoder, rows.columns, rows.count, faults), warnings, faults)
        is_bad = None
        if not skips_bad:
            faults.check()
        elif faults.warnings:
            is_bad = np.zeros(rows.count, np.bool_)
            faults.warnings.mark(is_bad)
            warnings = warnings.without(is_bad)
            warnings.extend(faults.warnings)
        known = {column.name for column in encoder.inputs} | {self.target}
        for name in rows.columns:
            if name not in known:
                warnings.add(name, "unknown_column", np.zeros(1))
        return Prediction(self, self.runtime.probabilities(x), warnings, is_bad)


@dataclass(frozen=True)
class Prediction:
    """The prediction of n rows by a version of k classes.

    Args:
        probabilities: float32 (n, k).
        is_bad: bool (n,), rows that could not be read, whose probabilities mean nothing; None if there are none.
    """

    loaded: LoadedVersion
    probabilities: NDArray[np.float32]
    warnings: CellWarnings
    is_bad: NDArray[np.bool_] | None = None

    @property
    def classes(self) -> tuple[Label, ...]:
        """The classes, in the order of the probabilities."""
        return self.loaded.artifact.classes

    @property
    def labels(self) -> list[Label | None]:
        """The most probable class of each row; None where the row is bad."""
        best = self.probabilities.argmax(axis=1).tolist()
        if self.is_bad is None:
            return [self.classes[i] for i in best]
        return [None if bad else self.classes[i] for i, bad in zip(best, self.is_bad.tolist(), strict=True)]

    def best(self, k: int) -> NDArray[np.intp]:
        """Return the indices of the k most probable classes of each row, (n, min(k, classes)), best first."""
        order: NDArray[np.intp] = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return order


def first_warnings(warnings: CellWarnings) -> tuple[list[CellWarning], int]:
    """Return the first `MAX_WARNINGS` warnings, in order of rows, and the number of all warnings."""
    return list(islice(warnings, MAX_WARNINGS)), len(warnings)
