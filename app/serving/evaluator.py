"""The scores of one version in memory on a stored table, which is read a few rows at a time. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.encoding.cell_warnings import CellFaults
from app.learning.encoding.read_cells import table_cells
from app.learning.evaluation.evaluate import evaluate
from app.learning.evaluation.scores import ClassifierScores
from app.learning.tables.column import match_labels
from app.learning.tables.label import Label
from app.learning.tables.table_file import TableFile
from app.serving.predictor import LoadedVersion

#: most values of a column that an evaluation is divided by
MAX_SLICES = 100
#: rows that the network computes at once
BATCH_ROWS = 8192
#: bytes of cells, or of encoded rows in float64, that are read from the table at once
READ_BYTES = 8 * 1024**2


@dataclass(frozen=True)
class Scores:
    """A version's scores on a table, and on the rows of each value of a column, None for missing."""

    overall: ClassifierScores
    slices: tuple[tuple[Label | None, ClassifierScores], ...]


def score(loaded: LoadedVersion, table: TableFile, by: str | None = None) -> Scores:
    """Score a version on the labelled rows of a table.

    Args:
        by: a column whose values divide the rows into slices that are scored on their own.

    Raises:
        Invalid: the target or a needed column is absent, holds labels that the model never saw, or values of the
            wrong type.
    """
    artifact = loaded.artifact
    if loaded.target not in table.names:
        raise Invalid.at((loaded.target,), f"Expected the target column {loaded.target!r} in the data, got none.")
    y, unknown = match_labels(table.column(loaded.target), artifact.classes)
    if unknown:
        names = ", ".join(repr(label)[:40] for label in unknown[:10])
        raise Invalid.at((loaded.target,), f"Expected labels that the model knows, got {names}.")
    is_labelled = y >= 0
    if not is_labelled.any():
        raise Invalid.at((loaded.target,), "Expected at least one labelled row, got none.")
    values, codes = _slices(table, by)
    y, codes = y[is_labelled], codes[is_labelled]
    logits = np.empty((len(y), len(artifact.classes)), np.float32)
    for start, x in zip(range(0, len(y), BATCH_ROWS), _batches(_encoded(loaded, table, is_labelled)), strict=True):
        logits[start : start + BATCH_ROWS] = loaded.runtime.logits(x)

    def evaluation(rows: slice | NDArray[np.bool_]) -> ClassifierScores:
        return evaluate(
            logits[rows],
            y[rows],
            label_smoothing=artifact.training.label_smoothing,
            penalty=artifact.architecture.penalty(artifact.weights),
        )

    is_in_slice = ((value, codes == code) for code, value in enumerate(values, -1))
    return Scores(
        evaluation(slice(None)), tuple((value, evaluation(rows)) for value, rows in is_in_slice if rows.any())
    )


def _slices(table: TableFile, by: str | None) -> tuple[list[Label | None], NDArray[np.int32]]:
    """Return the values of a column, None for missing first, and for each row the index of its value less 1."""
    if by is None:
        return [], np.zeros(table.rows, np.int32)
    if by not in table.names:
        raise Invalid.at(("by",), f"Expected a column of the data to slice by, got {by[:80]!r}.")
    values, codes = table.column(by).labels()
    if len(values) > MAX_SLICES:
        raise Invalid.at(("by",), f"Expected a column of at most {MAX_SLICES} values to slice by, got {len(values)}.")
    return [None, *values], codes


def _encoded(loaded: LoadedVersion, table: TableFile, is_labelled: NDArray[np.bool_]) -> Iterator[NDArray[np.float32]]:
    """Read a table a few rows at a time, and yield its labelled rows encoded, float32 (m, d)."""
    encoder = loaded.artifact.encoder
    present = set(table.names)
    # a table without any input still has rows: as many as its first column
    names = [column.name for column in encoder.inputs if column.name in present] or table.names[:1]
    size = max(READ_BYTES // (8 * max(len(names), encoder.width)), 1)
    for start in range(0, table.rows, size):
        faults = CellFaults(start)
        cells = table_cells(encoder, table.slice(start, start + size, names), faults)
        faults.check()
        rows = is_labelled[start : start + size]
        yield encoder.encode({name: column[rows] for name, column in cells.items()})


def _batches(blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """Yield the rows of blocks of any size in batches of `BATCH_ROWS`; the last batch may be smaller."""
    rest: list[NDArray[np.float32]] = []
    count = 0
    for block in blocks:
        rest.append(block)
        count += len(block)
        if count >= BATCH_ROWS:
            rows = np.concatenate(rest)
            whole = count - count % BATCH_ROWS
            yield from (rows[start : start + BATCH_ROWS] for start in range(0, whole, BATCH_ROWS))
            rest, count = [rows[whole:]], count - whole
    if count:
        yield np.concatenate(rest)
