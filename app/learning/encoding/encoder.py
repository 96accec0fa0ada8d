"""The encoder: columns of a table to the rows a network reads, the same for training and prediction.

Imputes and scales in float64 and gives float32. Its state is plain JSON. Knows nothing of networks or files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from app.learning.encoding.cell_warnings import CellWarnings, Faults
from app.learning.tables.column import MISSING, Column
from app.learning.tables.table import AnyTable

UNSEEN = -2
#: how a number is spelled
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)
#: digits that are no number's usual spelling, but an identifier's
_ODD_NUMBER = re.compile(r"[+-]?(0\d|\d{16,}\Z)", re.ASCII)
_FLOAT32_MAX = float(np.finfo(np.float32).max)

Kind = Literal["numeric", "boolean", "categorical"]


@dataclass(frozen=True)
class Input:
    """How one column is encoded.

    Args:
        impute: what stands in for a missing number (before scaling), or None where missing is refused.
        marks_missing: whether a last feature says that the value was missing.
        mean, scale: the value becomes `(value - mean) / scale`, in float64.
        low, high: the range seen in training.
        categories: one feature each, in this order; unseen ones become zeros. Texts of one meaning, such as "1" and
            "1.0" or "true" and "True", are one category, by its first spelling.
    """

    name: str
    kind: Kind
    missing: Literal["impute", "error"]
    marks_missing: bool
    impute: float = 0.0
    mean: float = 0.0
    scale: float = 1.0
    low: float = 0.0
    high: float = 0.0
    categories: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return (len(self.categories) or (self.kind != "categorical")) + self.marks_missing

    def code(self, text: str) -> int:
        """Give a text's index among the categories, -1 for missing, or `UNSEEN`."""
        if text in MISSING:
            return -1
        code = self._index.get(text)
        return self._meanings.get(_meaning(text), UNSEEN) if code is None else code

    @cached_property
    def _index(self) -> dict[str, int]:
        return {text: i for i, text in enumerate(self.categories)}

    @cached_property
    def _meanings(self) -> dict[str | float, int]:
        return {_meaning(text): i for i, text in enumerate(self.categories)}


@dataclass(frozen=True)
class Encoder:
    """The inputs, in order; d is the sum of their widths."""

    inputs: tuple[Input, ...]

    @property
    def width(self) -> int:
        """The number of features, d."""
        return sum(each.width for each in self.inputs)

    def document(self) -> list[dict[str, Any]]:
        """Give the state as plain JSON."""
        return [asdict(each) for each in self.inputs]

    @classmethod
    def from_document(cls, document: Sequence[Mapping[str, Any]]) -> Encoder:
        """Rebuild an encoder from its state; another kind of input is a `KeyError`."""
        for each in document:
            if each["kind"] not in get_args(Kind):
                raise KeyError(each["kind"])
        return cls(tuple(Input(**{**each, "categories": tuple(each["categories"])}) for each in document))

    def encode(
        self,
        cells: Mapping[str, NDArray[Any]],
        notes: CellWarnings | None = None,
        faults: Faults | None = None,
    ) -> NDArray[np.float32]:
        """Encode n rows.

        Args:
            cells: for each input its n cells: float (n,) with NaN for missing; for a categorical one codes
                int (n,) into its `categories`, -1 missing, -2 unseen.
            notes: where given, gets a warning for each odd cell.
            faults: where given, gets what is wrong with each row, which is then encoded as zeros; else that raises.

        Returns:
            float32 (n, d).

        Raises:
            Invalid: a missing value in an input that refuses it, or a number beyond float32; says where.
        """
        found = faults or Faults()
        n = len(next(iter(cells.values())))
        x = np.zeros((n, self.width), np.float32)
        at = 0
        for each in self.inputs:
            values = cells[each.name]
            is_missing = values == -1 if each.kind == "categorical" else np.isnan(values)
            if each.missing == "error":
                found.add(each.name, np.flatnonzero(is_missing), partial(_no_value, each), "missing")
            if each.kind == "categorical":
                rows = np.flatnonzero(values >= 0)
                x[rows, at + values[rows]] = 1.0
            else:
                x[:, at] = _scaled(each, values, is_missing, found)
            if each.marks_missing:
                x[:, at + each.width - 1] = is_missing
            if notes is not None:
                _note(notes, each, values, is_missing)
            at += each.width
        if faults is None:
            found.check()
        return x


def fit_encoder(
    table: AnyTable, names: Sequence[str], rows: NDArray[np.intp], *, scaling: str, encoding: str
) -> Encoder:
    """Learn an encoder from the training rows alone.

    Args:
        names: the feature columns.
        rows: indices of the training rows.
        scaling: "standard" or "none".
        encoding: "auto" marks missing values and imputes always; "plain" refuses what training never lacked.
    """
    return Encoder(tuple(_fit_input(table.column(n), rows, scaling, encoding) for n in names))


def _fit_input(column: Column, rows: NDArray[np.intp], scaling: str, encoding: str) -> Input:
    values = column.values[rows]
    is_missing = np.isnan(values) if column.is_number else values < 0
    lacks = bool(is_missing.any())
    # judged by all rows: which of them the split holds out must not decide whether a job fails
    lacks_somewhere = bool((np.isnan(column.values) if column.is_number else column.values < 0).any())
    missing: Literal["impute", "error"] = "impute" if encoding == "auto" or lacks_somewhere else "error"
    marks = encoding == "auto" and lacks
    if not column.is_number:
        used = [column.categories[i] for i in np.unique(values[~is_missing]).tolist()]
        first = {_meaning(text): text for text in reversed(used)}
        return Input(column.name, "categorical", missing, marks, categories=tuple(sorted(first.values())))
    # a copy, and the one there is: what is done to it is done in place
    values = values[~is_missing].astype(np.float64, copy=False)
    if not len(values):
        values = np.zeros(1)
    if column.kind == "boolean":
        most = float(values.mean() >= 0.5)
        return Input(column.name, "boolean", missing, marks, impute=most, low=0.0, high=1.0)
    low, high = float(values.min()), float(values.max())
    # by a power of two, which is exact, to at most 1/4: no sum or square overflows or vanishes
    exponent = int(np.frexp(max(abs(low), abs(high)))[1]) + 2
    unit = np.ldexp(values, -exponent, out=values)
    mean, scale = 0.0, 1.0
    if scaling == "standard" and low == high:
        mean = low
    elif scaling == "standard":
        mean = math.ldexp(unit.mean(), exponent)
        scale = math.ldexp(unit.std(), exponent) or 1.0
    impute = math.ldexp(np.median(unit, overwrite_input=True), exponent)
    return Input(column.name, "numeric", missing, marks, impute, mean, scale, low, high)


def _no_value(each: Input, _row: int, row: int) -> str:
    return f"Expected a value in column {each.name!r}, got none in row {row}."


def _too_large(each: Input, _row: int, row: int) -> str:
    return f"Expected numbers within float32 in column {each.name!r} after scaling, got a larger one in row {row}."


def _scaled(each: Input, values: NDArray[Any], is_missing: NDArray[np.bool_], faults: Faults) -> NDArray[np.float64]:
    numbers = np.where(is_missing, each.impute, values.astype(np.float64))
    with np.errstate(over="ignore"):
        numbers = (numbers - each.mean) / each.scale
    beyond = ~(np.abs(numbers) <= _FLOAT32_MAX)
    faults.add(each.name, np.flatnonzero(beyond), partial(_too_large, each), "out_of_range")
    numbers[beyond] = 0.0
    return numbers


def _note(notes: CellWarnings, each: Input, values: NDArray[Any], is_missing: NDArray[np.bool_]) -> None:
    notes.add(each.name, "imputed", np.flatnonzero(is_missing))
    if each.kind == "categorical":
        notes.add(each.name, "unseen_category", np.flatnonzero(values == UNSEEN))
    elif each.kind == "numeric":
        notes.add(each.name, "out_of_range", np.flatnonzero((values < each.low) | (values > each.high)))


def _meaning(text: str) -> str | float:
    """Give the number that a text spells, or the text: where zeros lead, or float64 does not hold the integer."""
    if NUMBER.match(text) and not _ODD_NUMBER.match(text):
        return float(text)
    return text.lower() if text.lower() in ("true", "false") else text
