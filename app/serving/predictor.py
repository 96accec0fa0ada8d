"""Computing with one version in memory: predictions and scores. Knows nothing of where it is kept, HTTP or training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid, TooLarge
from app.learning import evaluation
from app.learning.artifact import Artifact
from app.learning.encoding.cell_warnings import MAX_WARNINGS, CellWarnings, Faults
from app.learning.encoding.read_cells import records_cells, table_cells
from app.learning.network.architecture import Runtime
from app.learning.requests.prediction_rows import Rows
from app.learning.tables.column import match_labels
from app.learning.tables.label import Label
from app.learning.tables.table import Table
from app.records.registry import Version

#: values of a column that an evaluation is divided by
MAX_SLICES = 100
#: rows that are encoded and computed at once
SLICE_ROWS = 8192


@dataclass(frozen=True, eq=False)
class LoadedVersion:
    """A version in memory, which predicts and is scored.

    Args:
        size_bytes: of its weights.
        max_cells: encoded features, or probabilities, of one prediction.
    """

    version: Version
    artifact: Artifact
    runtime: Runtime
    size_bytes: int
    max_cells: int

    @property
    def target(self) -> str:
        """The column that the model predicts."""
        return str(self.artifact.training["spec"]["target"])

    @property
    def most_rows(self) -> int:
        """How many rows one prediction may have."""
        return self.max_cells // max(self.artifact.encoder.width, len(self.artifact.classes))

    def predict(self, rows: Rows, *, skips_bad: bool = False) -> Prediction:
        """Predict posted rows; columns that the model does not know are ignored with a warning.

        Args:
            skips_bad: answer the other rows where one cannot be read.

        Raises:
            Invalid: a value of the wrong type, or a missing one that the model refuses; says row and column.
            TooLarge: so many rows of so many features or classes that they are better sent in parts.
        """
        encoder = self.artifact.encoder
        if rows.count > (most := self.most_rows):
            raise TooLarge(f"Expected at most {most} rows for this model in one request, got {rows.count}.")
        notes, faults = CellWarnings(), Faults()
        x = encoder.encode(records_cells(encoder, rows.columns, rows.count, faults), notes, faults)
        is_bad = None
        if not skips_bad:
            faults.check()
        elif faults.notes:
            is_bad = np.zeros(rows.count, np.bool_)
            faults.notes.mark(is_bad)
            notes = notes.without(is_bad)
            notes.extend(faults.notes)
        known = {each.name for each in encoder.inputs} | {self.target}
        for name in rows.columns:
            if name not in known:
                notes.add(name, "unknown_column", np.zeros(1))
        return Prediction(self, self.runtime.probabilities(x), notes, is_bad)

    def evaluate(self, table: Table, by: str | None = None) -> Scored:
        """Score a version on a labelled table; rows without a label are left out.

        Args:
            by: a column whose values divide the rows into slices that are scored on their own.

        Raises:
            Invalid: the target or a needed column is absent, or holds labels that the model never saw.
        """
        artifact = self.artifact
        if self.target not in table.names:
            raise Invalid.at((self.target,), f"Expected the target column {self.target!r} in the data, got none.")
        y, strange = match_labels(table.column(self.target), artifact.classes)
        if strange:
            names = ", ".join(repr(label)[:40] for label in strange[:10])
            raise Invalid.at((self.target,), f"Expected labels that the model knows, got {names}.")
        rows = np.flatnonzero(y >= 0)
        if not len(rows):
            raise Invalid.at((self.target,), "Expected at least one labelled row, got none.")
        values, codes = _slices(table, by)
        cells = table_cells(artifact.encoder, table)
        parts = []
        for start in range(0, len(rows), SLICE_ROWS):
            chosen = rows[start : start + SLICE_ROWS]
            x = artifact.encoder.encode({name: values[chosen] for name, values in cells.items()})
            parts.append(self.runtime.logits(x))
        logits, truth, codes = np.concatenate(parts), y[rows], codes[rows]

        def score(chosen: Any) -> evaluation.Evaluation:
            return evaluation.evaluate(
                logits[chosen],
                truth[chosen],
                label_smoothing=artifact.training["spec"]["fit"]["label_smoothing"],
                penalty=artifact.architecture.penalty(artifact.weights),
            )

        present = [(value, codes == code) for code, value in enumerate(values, -1)]
        return Scored(score(slice(None)), tuple((value, score(is_in)) for value, is_in in present if is_in.any()))


@dataclass(frozen=True)
class Prediction:
    """What a version says about n rows.

    Args:
        probabilities: float32 (n, k).
        is_bad: bool (n,), rows that could not be read, whose probabilities mean nothing; None where all could.
    """

    loaded: LoadedVersion
    probabilities: NDArray[np.float32]
    notes: CellWarnings
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
        """Give the indices of the k most probable classes of each row, (n, min(k, classes)), best first."""
        order: NDArray[np.intp] = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return order


@dataclass(frozen=True)
class Scored:
    """A version's scores on a table, and on each slice of it: a value of the column, None for missing."""

    overall: evaluation.Evaluation
    slices: tuple[tuple[Label | None, evaluation.Evaluation], ...]


def _slices(table: Table, by: str | None) -> tuple[list[Label | None], NDArray[np.int32]]:
    """Give the values of a column, None for missing first, and for each row the index of its value less 1."""
    if by is None:
        return [], np.zeros(table.rows, np.int32)
    if by not in table.names:
        raise Invalid.at(("by",), f"Expected a column of the data to slice by, got {by[:80]!r}.")
    values, codes = table.column(by).labels()
    if len(values) > MAX_SLICES:
        raise Invalid.at(("by",), f"Expected a column of at most {MAX_SLICES} values to slice by, got {len(values)}.")
    return [None, *values], codes


def shown_notes(notes: CellWarnings) -> tuple[list[dict[str, Any]], int]:
    """Give at most 100 warnings as plain JSON, in order of rows, and how many there are in all."""
    return [asdict(note) for note in islice(notes, MAX_WARNINGS)], len(notes)
