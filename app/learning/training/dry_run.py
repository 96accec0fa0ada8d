"""What can be said about a training job before it runs: class counts, suspicious columns, time and memory.

Knows tables and resolved specifications; knows nothing of Keras.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from app.learning.spec import Layer, TrainSpec
from app.learning.tables.column import Column
from app.learning.tables.label import Label
from app.learning.tables.table import AnyTable

#: a class with fewer rows than this can hardly be learned or measured
RARE_ROWS = 10
#: fewer rows prove nothing about a column that seems to give the target away
LEAST_ROWS = 30
#: a column with more distinct values per class than this may separate classes by chance
VALUES_PER_CLASS = 10

#: seconds that a job takes beside its epochs, an epoch beside its steps, and a step beside its arithmetic; and
#: floating-point operations a second. Measured on one core of a 2-core x86-64 machine, at 150 × 4 and at 784 → 64 → 10;
#: another machine differs by a small factor
JOB_SECONDS, EPOCH_SECONDS, STEP_SECONDS = 1.0, 0.003, 2e-5
FLOPS = 8e10
#: memory of a training process before it has data
PROCESS_BYTES = 700 * 1024**2
#: weights, gradients, velocities, the best weights, the copies that a checkpoint and the served network are made of
COPIES_OF_WEIGHTS = 6


@dataclass(frozen=True)
class TableFindings:
    """Findings about a table and a target.

    Args:
        classes: each class with the number of its rows, in the order that the model will have.
        warnings: what looks suspicious, in sentences.
    """

    classes: tuple[tuple[Label, int], ...]
    warnings: tuple[str, ...]


class Estimate(TypedDict):
    """The estimated cost of a job, as JSON."""

    seconds: float
    memory_bytes: int
    steps: int


def examine(table: AnyTable, target: str, columns: Sequence[str]) -> TableFindings:
    """Count the rows of each class, and look for columns that give the target away.

    Args:
        columns: the feature columns.
    """
    labels, y = table.column(target).labels()
    counts = np.bincount(y[y >= 0], minlength=len(labels)).tolist()
    warnings = [
        f"class {str(label)[:80]!r} has {count} rows; it will hardly be learned"
        for label, count in zip(labels, counts, strict=True)
        if count < RARE_ROWS
    ]
    warnings += [
        f"column {name!r} alone tells the target {target!r}: is it known before the target is?"
        for name in columns
        if _gives_away(table.column(name), y, len(labels))
    ]
    return TableFindings(tuple(zip(labels, counts, strict=True)), tuple(warnings))


def _gives_away(column: Column, y: NDArray[np.int32], classes: int) -> bool:
    """Return whether the column has few distinct values, and each of them comes with one class only."""
    is_known = ~column.is_missing & (y >= 0)
    if is_known.sum() < LEAST_ROWS:
        return False
    values, codes = np.unique(column.values[is_known], return_inverse=True)
    if not classes <= len(values) <= VALUES_PER_CLASS * classes:
        return False
    pairs = np.unique(codes.astype(np.int64) * classes + y[is_known])
    return len(pairs) == len(values)


def estimate(spec: TrainSpec, rows: int, features: int, parameters: int, encoded_bytes: float = math.inf) -> Estimate:
    """Estimate a job's time and memory on one CPU core, as if early stopping did not end it.

    Args:
        features: encoded features, d.
        encoded_bytes: of encoded rows in memory; more of them stay on disk.

    Source: a step of batch b costs about 6·b·parameters operations: two for the forward pass and four for the
    backward pass (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
    """
    held_out = spec.validation.fraction if spec.validation is not None and spec.validation.fraction else 0.0
    batch, epochs = int(spec.fit.batch_size), int(spec.fit.epochs)
    training = round(rows * (1 - held_out))
    steps = math.ceil(training / batch)
    fitting = epochs * (EPOCH_SECONDS + steps * STEP_SECONDS + training * 6 * parameters / FLOPS)
    # the encoded rows and the device's copy; and for the rows of a batch each layer's output and its gradient
    units = features + sum(layer.units for layer in spec.network.layers or [] if isinstance(layer, Layer))
    data = min(2 * 4 * rows * features, encoded_bytes) + 2 * 4 * min(batch, training) * units
    return {
        "seconds": round(JOB_SECONDS + min(fitting, float(spec.fit.max_seconds or fitting)), 3),
        "memory_bytes": int(PROCESS_BYTES + data + 4 * COPIES_OF_WEIGHTS * parameters),
        "steps": epochs * steps,
    }
