"""From tables to the data that a network is fitted on: labels, the split, the encoder, encoded rows. Knows no request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.artifact.artifact import Artifact
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.fit_encoder import fit_encoder
from app.learning.encoding.read_cells import table_cells
from app.learning.spec import TrainSpec
from app.learning.tables.column import Column, match_labels
from app.learning.tables.label import Label
from app.learning.tables.table_file import TableFile
from app.learning.training.encode_table import LabelledRows, encode_table
from app.learning.training.events import Emit, TrainingWarning
from app.learning.training.examples import ExampleSource
from app.learning.training.split_rows import class_weights, split

#: the most golden rows of a version
GOLDEN_ROWS = 8


@dataclass(frozen=True)
class TrainingData:
    """Data that is ready to be fitted.

    Args:
        golden_records: a few rows as they were posted, by column: a version is checked on them when it is loaded.
        golden_x: those rows encoded, float32 (m, d).
    """

    classes: list[Label]
    encoder: Encoder
    train: ExampleSource
    validation: ExampleSource | None
    golden_records: Sequence[Mapping[str, Label | None]]
    golden_x: NDArray[np.float32]


def prepare_data(
    tables: tuple[Path, Path | None],
    columns: Sequence[str],
    spec: TrainSpec,
    start: Artifact | None = None,
    *,
    memory_bytes: int,
    folder: Path,
    emit: Emit,
) -> TrainingData:
    """Read and encode the rows that are trained on, and those that are validated on.

    Args:
        tables: the files of the table to train on, and of one to validate on.
        columns: the feature columns, which do not count where `start` is given.
        start: the version that the run starts from, whose encoder and classes are used.
        memory_bytes: encoded rows go to files in `folder` where they take more.
        emit: gets a warning where no row can be held out.

    Raises:
        Invalid: the data cannot train.
    """
    table = TableFile(tables[0])
    classes, y = _labels(table.column(str(spec.target)), start)
    rows, held_out = split(y, spec)
    if spec.validation is not None and spec.validation.fraction is not None and not len(held_out):
        emit(TrainingWarning("no class has enough rows to hold one out; nothing is validated"))
    if start is None:
        scaling, encoding = str(spec.features.scaling), str(spec.features.encoding)
        encoder = fit_encoder(table, columns, rows, scaling=scaling, encoding=encoding)
    else:
        encoder = start.encoder
    if not encoder.width:
        raise Invalid.at(("features",), "Expected a value in at least one feature of the training rows, got none.")
    parts = [
        LabelledRows(rows, y[rows], class_weights(spec, classes, y[rows])),
        LabelledRows(held_out, y[held_out]),
    ]
    train, held_out_rows = encode_table(table, encoder, parts, memory_bytes=memory_bytes, folder=folder)
    records, x = _golden_rows(table, (held_out if len(held_out) else rows)[:GOLDEN_ROWS], encoder)
    validation: ExampleSource | None = held_out_rows if len(held_out) else None
    if tables[1] is not None:
        subfolder = folder / "validation"
        subfolder.mkdir()
        validation = _validation_table(
            tables[1], encoder, str(spec.target), classes, memory_bytes=memory_bytes, folder=subfolder
        )
    return TrainingData(classes, encoder, train, validation, records, x)


def _labels(target: Column, start: Artifact | None) -> tuple[list[Label], NDArray[np.int32]]:
    """Return the classes, those of the version to start from where there is one, and y int32 (n,), -1 where missing."""
    if start is None:
        return target.labels()
    y, unknown = match_labels(target, start.classes)
    if unknown:
        raise Invalid.at(("target",), f"Expected labels that the version to start from knows, got {unknown[:5]}.")
    return list(start.classes), y


def _validation_table(
    path: Path, encoder: Encoder, target: str, classes: list[Label], *, memory_bytes: int, folder: Path
) -> ExampleSource:
    """Encode all labelled rows of another table."""
    table = TableFile(path)
    if target not in table.names:
        raise Invalid.at(("validation", "dataset"), f"The validation data set has no target column {target!r}.")
    y, unknown = match_labels(table.column(target), classes)
    if unknown:
        names = ", ".join(repr(label)[:40] for label in unknown[:5])
        raise Invalid.at(("validation", "dataset"), f"Expected labels that the training data has, got {names}.")
    rows = np.flatnonzero(y >= 0)
    if not len(rows):
        raise Invalid.at(("validation", "dataset"), "The validation data set has no labelled row.")
    parts = [LabelledRows(rows, y[rows])]
    (source,) = encode_table(table, encoder, parts, memory_bytes=memory_bytes, folder=folder)
    return source


def _golden_rows(
    table: TableFile, rows: NDArray[np.intp], encoder: Encoder
) -> tuple[list[dict[str, Label | None]], NDArray[np.float32]]:
    """Return a few rows as they were posted, and encoded."""
    few = table.take(rows, [each.name for each in encoder.inputs])
    columns = {each.name: few.column(each.name).cells(few.rows) for each in encoder.inputs}
    records = [{name: cells[row] for name, cells in columns.items()} for row in range(few.rows)]
    return records, encoder.encode(table_cells(encoder, few))
