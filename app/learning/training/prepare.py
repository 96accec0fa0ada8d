"""From tables to what a network is fitted on: labels, the split, the encoder, encoded rows. Knows no request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.artifact.artifact import Artifact
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.fit_encoder import fit_encoder
from app.learning.encoding.read_cells import table_cells
from app.learning.spec import TrainSpec
from app.learning.tables.column import Column, match_labels
from app.learning.tables.label import Label, label_key
from app.learning.tables.table_file import TableFile
from app.learning.training.batches import Source
from app.learning.training.encode_table import Part, encode_parts
from app.learning.training.events import Emit, TrainingWarning

GOLDEN_ROWS = 8


@dataclass(frozen=True)
class Prepared:
    """Data, ready to be fitted: class labels, how rows are encoded, and the encoded rows."""

    classes: list[Label]
    encoder: Encoder
    train: Source
    validation: Source | None
    #: some rows of the table as they were posted, and encoded: what a version is checked on when it is loaded
    golden: tuple[list[dict[str, Any]], NDArray[np.float32]]


def prepare(
    tables: tuple[Path, Path | None],
    columns: Sequence[str],
    spec: TrainSpec,
    start: Artifact | None = None,
    *,
    memory_bytes: int,
    folder: Path,
    emit: Emit,
) -> Prepared:
    """Read and encode what is to be trained and validated on.

    Args:
        tables: the files of the table to train on, and of one to validate on.
        columns: the features, where no version is started from, whose encoder would count.
        memory_bytes: of encoded rows; more of them go to a file in `folder`.
        emit: gets a `warning` event where nothing can be held out.

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
    parts = [Part(rows, y[rows], class_weights(spec, classes, y[rows])), Part(held_out, y[held_out])]
    train, validation = encode_parts(table, encoder, parts, memory_bytes=memory_bytes, folder=folder)
    golden = _golden(table, (held_out if len(held_out) else rows)[:GOLDEN_ROWS], encoder)
    other: Source | None = validation if len(held_out) else None
    if tables[1] is not None:
        strangers = folder / "validation"
        strangers.mkdir()
        other = _other(tables[1], encoder, str(spec.target), classes, memory_bytes=memory_bytes, folder=strangers)
    return Prepared(classes, encoder, train, other, golden)


def _labels(target: Column, start: Artifact | None) -> tuple[list[Label], NDArray[np.int32]]:
    """Give the classes and y; those of the version that is started from, where one is."""
    if start is None:
        return target.labels()
    y, strange = match_labels(target, start.classes)
    if strange:
        raise Invalid.at(("target",), f"Expected labels that the version to start from knows, got {strange[:5]}.")
    return list(start.classes), y


def split(y: NDArray[np.int32], spec: TrainSpec) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Divide the labelled rows into training and held-out ones, stratified and seeded.

    Args:
        y: class indices (n,), -1 where the label is missing; those rows are in neither part.

    Returns:
        Two ascending arrays of row indices; each class keeps at least one training row.
    """
    is_train, is_held = y >= 0, np.zeros(len(y), np.bool_)
    fraction = spec.validation.fraction if spec.validation is not None else None
    if fraction is not None:
        rng = np.random.default_rng(spec.fit.seed)
        for label in np.unique(y[is_train]):
            members = rng.permutation(np.flatnonzero(y == label))
            held = members[: min(round(fraction * len(members)), len(members) - 1)]
            is_train[held], is_held[held] = False, True
    return np.flatnonzero(is_train), np.flatnonzero(is_held)


def class_weights(spec: TrainSpec, classes: list[Label], y: NDArray[np.int32]) -> NDArray[np.float32] | None:
    """Give each row its class's weight, float32 (n,); "balanced" is n / (k * count), as in scikit-learn.

    Raises:
        Invalid: a weight for a label that is no class.
    """
    asked = spec.fit.class_weight
    if asked is None:
        return None
    if asked == "balanced":
        counts = np.bincount(y, minlength=len(classes))
        return (len(y) / (len(classes) * np.maximum(counts, 1))).astype(np.float32)[y]
    index = {label_key(label): i for i, label in enumerate(classes)}
    unknown = [label for label in asked if label_key(label) not in index]
    if unknown:
        raise Invalid.at(("fit", "class_weight"), f"There is no class {unknown[0][:80]!r}.")
    weights = np.ones(len(classes), np.float32)
    for label, weight in asked.items():
        weights[index[label_key(label)]] = weight
    return weights[y]


def _other(
    path: Path, encoder: Encoder, target: str, classes: list[Label], *, memory_bytes: int, folder: Path
) -> Source:
    table = TableFile(path)
    if target not in table.names:
        raise Invalid.at(("validation", "dataset"), f"The validation data set has no target column {target!r}.")
    y, strange = match_labels(table.column(target), classes)
    if strange:
        names = ", ".join(repr(label)[:40] for label in strange[:5])
        raise Invalid.at(("validation", "dataset"), f"Expected labels that the training data has, got {names}.")
    rows = np.flatnonzero(y >= 0)
    if not len(rows):
        raise Invalid.at(("validation", "dataset"), "The validation data set has no labelled row.")
    (made,) = encode_parts(table, encoder, [Part(rows, y[rows])], memory_bytes=memory_bytes, folder=folder)
    return made


def _golden(
    table: TableFile, rows: NDArray[np.intp], encoder: Encoder
) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
    few = table.take(rows, [each.name for each in encoder.inputs])
    columns = {each.name: few.column(each.name).cells(few.rows) for each in encoder.inputs}
    records = [{name: cells[row] for name, cells in columns.items()} for row in range(few.rows)]
    return records, encoder.encode(table_cells(encoder, few))
