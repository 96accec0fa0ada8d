"""What can be told about a training job before it runs: class counts, suspicious columns, time and memory.

Knows tables and resolved specifications; knows nothing of Keras.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
#: a column with more distinct values per class than this may tell classes apart by chance
VALUES_PER_CLASS = 10

#: seconds that a job takes beside its epochs, an epoch beside its steps, and a step beside its arithmetic; and
#: floating-point operations a second. Measured on one core of a 2-core x86-64 machine, at 150 × 4 and at 784 → 64 → 10;
#: another machine differs by a small factor
JOB_SECONDS, EPOCH_SECONDS, STEP_SECONDS = 1.0, 0.003, 2e-5
FLOPS = 8e10
#: what a training process has before it has data
PROCESS_BYTES = 700 * 1024**2
#: weights, gradients, velocities, the best weights, the copies that a checkpoint and the served network are made of
COPIES_OF_WEIGHTS = 6


@dataclass(frozen=True)
class TableFindings:
    """Findings about a table and a target.

    Args:
        classes: each class with its rows, in the order that the model will have.
        warnings: sentences for people.
    """

    classes: tuple[tuple[Label, int], ...]
    warnings: tuple[str, ...]


def examine(table: AnyTable, target: str, columns: Sequence[str]) -> TableFindings:
    """Look at the classes, and for columns that give the target away.

    Args:
        columns: the features that are used.
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
    """Tell whether each value of a column, of which there are few, comes with one class only."""
    is_present = np.isfinite(column.values) if column.is_number else column.values >= 0
    known = is_present & (y >= 0)
    if known.sum() < LEAST_ROWS:
        return False
    values, codes = np.unique(column.values[known], return_inverse=True)
    if not classes <= len(values) <= VALUES_PER_CLASS * classes:
        return False
    pairs = np.unique(codes.astype(np.int64) * classes + y[known])
    return len(pairs) == len(values)


def estimate(
    spec: TrainSpec, rows: int, features: int, parameters: int, memory_bytes: float = math.inf
) -> dict[str, Any]:
    """Estimate a job's time and memory on one CPU core, early stopping not counted.

    Args:
        memory_bytes: of encoded rows; what is beyond it stays on disk.

    Source: a step of batch b costs about 6·b·parameters operations: two for the forward pass and four for the
    backward pass (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
    """
    held_out = spec.validation.fraction if spec.validation is not None and spec.validation.fraction else 0.0
    batch, epochs = int(spec.fit.batch_size), int(spec.fit.epochs)
    training = round(rows * (1 - held_out))
    steps = math.ceil(training / batch)
    fitting = epochs * (EPOCH_SECONDS + steps * STEP_SECONDS + training * 6 * parameters / FLOPS)
    # the encoded rows and the device's copy; of a batch what each layer gives, and its gradient
    units = features + sum(layer.units for layer in spec.network.layers or [] if isinstance(layer, Layer))
    data = min(2 * 4 * rows * features, memory_bytes) + 2 * 4 * min(batch, training) * units
    return {
        "seconds": round(JOB_SECONDS + min(fitting, float(spec.fit.max_seconds or fitting)), 3),
        "memory_bytes": int(PROCESS_BYTES + data + 4 * COPIES_OF_WEIGHTS * parameters),
        "steps": epochs * steps,
    }
