"""One column of a table: typed cells as an array, read as cells or as the labels of a target. Knows no tables and no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from app.learning.tables.label import Label, LabelType, label_key, typed_label

ColumnKind = Literal["numeric", "categorical", "boolean", "datetime", "text"]
COLUMN_KINDS: tuple[ColumnKind, ...] = get_args(ColumnKind)
#: spellings of a missing cell, after stripping blanks
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"})
#: characters stripped from a cell: White_Space of the Unicode standard, which polars strips too; Python strips more
BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
#: cells whose class indices are looked up at once: an index takes as much memory as the number itself
_LOOKUP_CELLS = 2**20


@dataclass(frozen=True)
class Column:
    """One named column of n cells.

    Args:
        values: numeric and boolean: float (n,), NaN where missing, booleans 0.0 and 1.0;
            else codes int32 (n,) into `categories`, -1 where missing.
        categories: the distinct texts, sorted; empty for numeric and boolean.
        posted: the type in which labels from this column are returned.
        codes: for numeric and boolean columns whose cells a float64 does not spell back, such as "01", "true" and
            integers beyond 2**53: int32 (n,) into `spellings`, -1 where missing; else None.
        warnings: what the parser noticed about the column, in sentences.
    """

    name: str
    kind: ColumnKind
    values: NDArray[Any]
    categories: tuple[str, ...] = ()
    posted: LabelType = "float"
    codes: NDArray[np.int32] | None = None
    spellings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether `values` are numbers rather than codes."""
        return self.kind in ("numeric", "boolean")

    @property
    def is_missing(self) -> NDArray[np.bool_]:
        """Which cells are missing, bool (n,)."""
        return np.isnan(self.values) if self.is_number else self.values < 0

    def labels(self) -> tuple[list[Label], NDArray[np.int32]]:
        """Read the column as a target.

        Returns:
            The classes present, sorted, in the type they were posted with; and y int32 (n,), -1 where missing.
        """
        if self.codes is not None:
            return _labels_of_codes(self.spellings, self.codes, self.posted)
        if not self.is_number:
            return _labels_of_codes(self.categories, self.values, self.posted)
        distinct = np.unique(self.values)
        distinct = distinct[~np.isnan(distinct)]
        y = np.empty(len(self.values), np.int32)
        for start in range(0, len(y), _LOOKUP_CELLS):
            values = self.values[start : start + _LOOKUP_CELLS]
            y[start : start + _LOOKUP_CELLS] = np.where(np.isnan(values), -1, np.searchsorted(distinct, values))
        return [typed_label(value, self.posted) for value in distinct.tolist()], y

    def cells(self, limit: int) -> list[Label | None]:
        """Return the first `limit` cells as they were posted, None where missing."""
        if self.is_number and self.codes is None:
            values = self.values[:limit].tolist()
            return [None if math.isnan(value) else typed_label(value, self.posted) for value in values]
        codes, texts = self.coded()
        return [typed_label(texts[code], self.posted) if code >= 0 else None for code in codes[:limit].tolist()]

    def coded(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """Return the cells of a column that has texts: codes int32 (n,), -1 where missing, and the texts."""
        return (self.values, self.categories) if self.codes is None else (self.codes, self.spellings)


def match_labels(column: Column, classes: Sequence[Label]) -> tuple[NDArray[np.int32], list[Label]]:
    """Read a target column in the classes of a model.

    Returns:
        y int32 (n,), indices into `classes`, -1 where missing; and the labels that are none of the classes.
    """
    by_key = {label_key(label): i for i, label in enumerate(classes)}
    # "True" and "true" may be two classes
    by_text: dict[Label, int] = {label: i for i, label in enumerate(classes) if isinstance(label, str)}
    labels, codes = column.labels()
    indices = [by_text.get(label, by_key.get(label_key(label), -1)) for label in labels]
    unknown = [label for label, index in zip(labels, indices, strict=True) if index < 0]
    return np.array([*indices, -1], np.int32)[codes], unknown


def _labels_of_codes(
    texts: Sequence[str], codes: NDArray[np.int32], posted: LabelType
) -> tuple[list[Label], NDArray[np.int32]]:
    """Return the labels that occur, sorted, and for each cell the index of its label, -1 where missing."""
    present = np.unique(codes[codes >= 0]).tolist()
    labels = sorted(((typed_label(texts[code], posted), code) for code in present), key=lambda pair: pair[0])
    index_of_code = np.full(len(texts) + 1, -1, np.int32)
    for index, (_, code) in enumerate(labels):
        index_of_code[code] = index
    return [label for label, _ in labels], index_of_code[codes]
