"""How an encoder is learned: from the training rows of a table, and from no others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import Input, OnMissing, meaning
from app.learning.tables.column import Column
from app.learning.tables.table import AnyTable


def fit_encoder(
    table: AnyTable, names: Sequence[str], rows: NDArray[np.intp], *, scaling: str, encoding: str
) -> Encoder:
    """Learn an encoder from the training rows alone.

    Args:
        names: the feature columns.
        rows: indices of the training rows.
        scaling: "standard" (zero mean, unit variance) or "none".
        encoding: "auto" marks missing values and imputes always; "plain" marks none, and refuses a missing value in a
            column of which no row of the table lacks one.
    """
    return Encoder(tuple(_fit_input(table.column(name), rows, scaling, encoding) for name in names))


def _fit_input(column: Column, rows: NDArray[np.intp], scaling: str, encoding: str) -> Input:
    # all rows decide about refusal: a job must not fail by which rows the split holds out
    is_missing = column.is_missing
    missing: OnMissing = "impute" if encoding == "auto" or is_missing.any() else "error"
    is_missing = is_missing[rows]
    marks_missing = encoding == "auto" and bool(is_missing.any())
    # a copy, which is then worked on in place: the only one there is in memory
    values = column.values[rows][~is_missing]
    if not column.is_number:
        used = [column.categories[i] for i in np.unique(values).tolist()]
        first_spellings = {meaning(text): text for text in reversed(used)}
        categories = tuple(sorted(first_spellings.values()))
        return Input(column.name, "categorical", missing, marks_missing, categories=categories)
    values = values.astype(np.float64, copy=False)
    if not len(values):
        values = np.zeros(1)
    if column.kind == "boolean":
        most_frequent = float(values.mean() >= 0.5)
        return Input(column.name, "boolean", missing, marks_missing, impute=most_frequent, low=0.0, high=1.0)
    low, high = float(values.min()), float(values.max())
    impute, mean, scale = _statistics(values, low, high, scaling)
    return Input(column.name, "numeric", missing, marks_missing, impute, mean, scale, low, high)


def _statistics(values: NDArray[np.float64], low: float, high: float, scaling: str) -> tuple[float, float, float]:
    """Return the median, and the mean and the scale that a number is scaled by; `values` (n,) is overwritten."""
    # division by a power of two is exact, and to at most 1/4 it keeps sums and squares from overflow and underflow
    exponent = int(np.frexp(max(abs(low), abs(high)))[1]) + 2
    unit = np.ldexp(values, -exponent, out=values)
    mean, scale = 0.0, 1.0
    if scaling == "standard" and low == high:
        mean = low
    elif scaling == "standard":
        mean = math.ldexp(unit.mean(), exponent)
        scale = math.ldexp(unit.std(), exponent) or 1.0
    return math.ldexp(np.median(unit, overwrite_input=True), exponent), mean, scale
