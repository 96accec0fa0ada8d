"""The statistics of a column, as clients read them and as a training specification is settled by them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

# pydantic, which checks the messages of a parser process, needs this one before Python 3.12
from typing_extensions import TypedDict

from app.learning.tables.column import Column, ColumnKind
from app.learning.tables.label import Label, typed_label

#: values that a description lists, the most frequent ones
TOP = 10
#: characters of a long text that a description shows
TOP_CHARACTERS = 80


class ColumnDescription(TypedDict):
    """A column's statistics as plain JSON: the entries of `columns` in the HTTP contract.

    `missing` and `unique` count cells and distinct values. `min` to `std` are null where the column has no numbers,
    or where float64 does not hold the result. `top` has pairs of a value and its count.
    """

    name: str
    kind: ColumnKind
    missing: int
    unique: int
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    top: list[list[Label]]
    warnings: list[str]


def describe(column: Column) -> ColumnDescription:
    """Compute the statistics of a column."""
    numbers = column.values[~np.isnan(column.values)].astype(np.float64) if column.is_number else None
    if numbers is not None and column.codes is None:
        distinct, counts = np.unique(numbers, return_counts=True)
        labels = [typed_label(value, column.posted) for value in _most_frequent(distinct, counts).tolist()]
    else:
        codes, texts = column.coded()
        counts = np.bincount(codes[codes >= 0], minlength=len(texts))
        frequent = _most_frequent(np.arange(len(counts)), counts).tolist()
        labels = [_shortened(typed_label(texts[code], column.posted)) for code in frequent]
    unique, missing = int((counts > 0).sum()), len(column.values) - int(counts.sum())
    least, most, mean, std = _figures(numbers)
    return {
        "name": column.name,
        "kind": column.kind,
        "missing": missing,
        "unique": unique,
        "min": least,
        "max": most,
        "mean": mean,
        "std": std,
        "top": [[label, int(n)] for label, n in zip(labels, _most_frequent(counts, counts).tolist(), strict=True)],
        "warnings": [*column.warnings, *_warnings(column, unique, len(column.values) - missing)],
    }


def _figures(numbers: NDArray[np.float64] | None) -> list[float | None]:
    """Return minimum, maximum, mean and standard deviation, None where there is no finite one."""
    if numbers is None or not len(numbers):
        return [None] * 4
    with np.errstate(over="ignore", invalid="ignore"):
        figures = (numbers.min(), numbers.max(), numbers.mean(), numbers.std())
    return [float(figure) if np.isfinite(figure) else None for figure in figures]


def _most_frequent(values: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    return values[np.argsort(-counts, kind="stable")[:TOP]][: int((counts > 0).sum())]


def _shortened(label: Label) -> Label:
    return f"{label[:TOP_CHARACTERS]}…" if isinstance(label, str) and len(label) > TOP_CHARACTERS else label


def _warnings(column: Column, unique: int, present: int) -> Iterator[str]:
    if present == 0:
        yield "every value is missing"
    elif unique == 1:
        yield "constant: it can teach nothing"
    elif unique == present >= 20 and (column.kind in ("text", "categorical") or column.posted == "int"):
        yield "every value is different: it looks like an identifier"
    if column.kind in ("text", "datetime"):
        yield f"{column.kind} columns are left out of the features; PATCH the kind to use this one"
