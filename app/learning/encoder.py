"""The encoder: columns of a table to the rows a network reads, the same for training and prediction.

Imputes and scales in float64 and gives float32. Its state is plain JSON. Knows nothing of networks or files.
"""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import FAULT_LIMIT, Fault, Invalid
from app.learning.table import BLANKS, MISSING, Column, Columns

MAX_WARNINGS = 100
UNSEEN = -2
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)
#: digits that are no number's usual spelling, but an identifier's
_ODD_NUMBER = re.compile(r"[+-]?(0\d|\d{16,}\Z)", re.ASCII)
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT64_MAX = float(np.finfo(np.float64).max)


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
    kind: Literal["numeric", "boolean", "categorical"]
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


NoteCode = Literal["unseen_category", "imputed", "out_of_range", "unknown_column", "invalid"]


@dataclass(frozen=True)
class Note:
    """A warning about one cell."""

    row: int
    column: str
    code: NoteCode


class Notes:
    """Warnings in order of rows; kept by column as indices of rows, for a few MB of rows can give millions."""

    def __init__(self) -> None:
        self._groups: list[tuple[str, NoteCode, NDArray[np.int32]]] = []

    def add(self, column: str, code: NoteCode, rows: NDArray[Any]) -> None:
        """Add a warning about a column in each of these rows, which ascend."""
        if len(rows):
            self._groups.append((column, code, rows.astype(np.int32)))

    def extend(self, other: Notes) -> None:
        """Add another's warnings."""
        self._groups += other._groups

    def without(self, is_bad: NDArray[np.bool_]) -> Notes:
        """Give those of the other rows."""
        kept = Notes()
        for column, code, rows in self._groups:
            kept.add(column, code, rows[~is_bad[rows]])
        return kept

    def mark(self, is_noted: NDArray[np.bool_]) -> None:
        """Set the rows that have a warning."""
        for _, _, rows in self._groups:
            is_noted[rows] = True

    def __len__(self) -> int:
        return sum(len(rows) for _, _, rows in self._groups)

    def __iter__(self) -> Iterator[Note]:
        groups = (self._each(*group) for group in self._groups)
        return heapq.merge(*groups, key=lambda note: note.row)

    @staticmethod
    def _each(column: str, code: NoteCode, rows: NDArray[np.int32]) -> Iterator[Note]:
        return (Note(int(row), column, code) for row in rows)


class Faults:
    """What is wrong with rows: the first of each column in words, and all of them as warnings.

    Args:
        first_row: what the first of these rows is called in words.
    """

    def __init__(self, first_row: int = 0) -> None:
        self.notes = Notes()
        self._first_row = first_row
        self._first: list[Fault] = []

    def add(self, column: str, rows: NDArray[Any], message: Callable[[int, int], str], code: str) -> None:
        """Add a fault in each of these rows, which ascend; `message` gives its words for a row and what it is called."""
        self.notes.add(column, "invalid", rows)
        for row in rows[:FAULT_LIMIT].tolist():
            name = row + self._first_row
            self._first.append(Fault((name, column), message(row, name), code))

    def check(self) -> None:
        """Raise `Invalid` where there is one, the first rows first."""
        if self._first:
            faults = sorted(self._first, key=lambda fault: int(fault.loc[0]))
            raise Invalid(faults[0].message, faults)


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
            _READERS[each["kind"]]
        return cls(tuple(Input(**{**each, "categories": tuple(each["categories"])}) for each in document))

    def encode(
        self,
        cells: Mapping[str, NDArray[Any]],
        notes: Notes | None = None,
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
    table: Columns, names: Sequence[str], rows: NDArray[np.intp], *, scaling: str, encoding: str
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
    present = values[~is_missing].astype(np.float64)
    if not len(present):
        present = np.zeros(1)
    if column.kind == "boolean":
        most = float(present.mean() >= 0.5)
        return Input(column.name, "boolean", missing, marks, impute=most, low=0.0, high=1.0)
    low, high = float(present.min()), float(present.max())
    # by a power of two, which is exact, to at most 1/4: no sum or square overflows or vanishes
    exponent = int(np.frexp(max(abs(low), abs(high)))[1]) + 2
    unit = np.ldexp(present, -exponent)
    mean, scale = 0.0, 1.0
    if scaling == "standard" and low == high:
        mean = low
    elif scaling == "standard":
        mean = math.ldexp(unit.mean(), exponent)
        scale = math.ldexp(unit.std(), exponent) or 1.0
    impute = math.ldexp(np.median(unit), exponent)
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


def _note(notes: Notes, each: Input, values: NDArray[Any], is_missing: NDArray[np.bool_]) -> None:
    notes.add(each.name, "imputed", np.flatnonzero(is_missing))
    if each.kind == "categorical":
        notes.add(each.name, "unseen_category", np.flatnonzero(values == UNSEEN))
    elif each.kind == "numeric":
        notes.add(each.name, "out_of_range", np.flatnonzero((values < each.low) | (values > each.high)))


def table_cells(encoder: Encoder, table: Columns, faults: Faults | None = None) -> dict[str, NDArray[Any]]:
    """Read a table's columns in an encoder's terms.

    Args:
        faults: as in `read_cells`.

    Raises:
        Invalid: a column is absent that the encoder does not impute, or is of another kind.
    """
    cells: dict[str, NDArray[Any]] = {}
    for each in encoder.inputs:
        if each.name not in table.names:
            cells[each.name] = _absent(each, table.rows)
            continue
        column = table.column(each.name)
        if each.kind == column.kind and column.is_number:
            cells[each.name] = column.values
        elif each.kind == "categorical" and (not column.is_number or column.codes is not None):
            codes, texts = column.coded()
            cells[each.name] = np.array([*(each.code(text) for text in texts), -1], np.int32)[codes]
        else:
            cells[each.name] = read_cells(each, column.cells(table.rows), faults)
    return cells


def read_cells(each: Input, values: Sequence[Any] | NDArray[Any], faults: Faults | None = None) -> NDArray[Any]:
    """Read the posted values of one column: numbers, texts, booleans or None; or an array of numbers, NaN missing.

    Args:
        faults: where given, gets each value of the wrong type, which then reads as 0; else that raises.

    Returns:
        float64 (n,) with NaN for missing, or codes int32 (n,) for a categorical input.

    Raises:
        Invalid: a value of the wrong type; says row and column, for at most 20 rows.
    """
    found = faults or Faults()
    if not isinstance(values, np.ndarray):
        cells = _read_values(each, values, found)
    elif each.kind == "numeric" and values.dtype.kind != "b":
        cells = _read_array(each, values, found)
    else:
        cells = _read_values(each, [None if value != value else value for value in values.tolist()], found)
    if faults is None:
        found.check()
    return cells


def _read_values(each: Input, values: Sequence[Any], faults: Faults) -> NDArray[Any]:
    read = reader(each)
    cells: list[Any] = []
    bad: list[int] = []
    for row, value in enumerate(values):
        cell = read(value)
        if cell is None:
            bad.append(row)
            cell = 0
        cells.append(cell)
    _refuse(faults, each, np.array(bad, np.intp), values)
    return np.array(cells, np.int32 if each.kind == "categorical" else np.float64)


def _read_array(each: Input, values: NDArray[Any], faults: Faults) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float64)
    infinite = np.flatnonzero(np.isinf(numbers))
    _refuse(faults, each, infinite, numbers)
    numbers[infinite] = 0.0
    return numbers


def _refuse(faults: Faults, each: Input, rows: NDArray[np.intp], values: Sequence[Any] | NDArray[Any]) -> None:
    def message(row: int, name: int) -> str:
        return f"Expected {_EXPECTED[each.kind]} in column {each.name!r}, got {_came(values[row])} in row {name}."

    faults.add(each.name, rows, message, "wrong_type")


def _absent(each: Input, rows: int) -> NDArray[Any]:
    if each.missing == "error":
        raise Invalid.at((each.name,), f"Expected a column {each.name!r}, got none; the model does not impute it.")
    return np.full(rows, -1, np.int32) if each.kind == "categorical" else np.full(rows, np.nan)


def records_cells(
    encoder: Encoder,
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    rows: int,
    faults: Faults | None = None,
) -> dict[str, NDArray[Any]]:
    """Read posted columns of n values each in an encoder's terms; absent ones are missing throughout.

    Args:
        faults: as in `read_cells`.

    Raises:
        Invalid: a column is absent that the encoder does not impute; or as `read_cells`.
    """
    return {
        each.name: read_cells(each, columns[each.name], faults) if each.name in columns else _absent(each, rows)
        for each in encoder.inputs
    }


def reader(each: Input) -> Callable[[Any], Any]:
    """Give what reads one posted value of an input: a float, NaN for missing; or a code; None for the wrong type."""
    return _READERS[each.kind](each)


def _numeric_reader(_each: Input) -> Callable[[Any], float | None]:
    def read(value: Any) -> float | None:
        if type(value) is float or type(value) is int:
            return float(value) if abs(value) <= _FLOAT64_MAX else None
        if value is None:
            return np.nan
        if type(value) is str:
            text = value.strip(BLANKS)
            if text in MISSING:
                return np.nan
            if _NUMBER.match(text) and abs(number := float(text)) != np.inf:
                return number
        return None

    return read


def _boolean_reader(_each: Input) -> Callable[[Any], float | None]:
    def read(value: Any) -> float | None:
        if type(value) is bool:
            return float(value)
        if value is None:
            return np.nan
        if type(value) is str:
            text = value.strip(BLANKS)
            if not _NUMBER.match(text):
                return np.nan if text in MISSING else {"true": 1.0, "false": 0.0}.get(text.lower())
            value = float(text)
        return float(value) if value in (0, 1) and type(value) in (int, float) else None

    return read


def _categorical_reader(each: Input) -> Callable[[Any], int | None]:
    def read(value: Any) -> int | None:
        if type(value) is str:
            return each.code(value.strip(BLANKS))
        if value is None:
            return -1
        if type(value) is bool:
            return each.code("true" if value else "false")
        # an infinite number is refused in every column, as it is in a table
        return each.code(str(value)) if type(value) is int or (type(value) is float and math.isfinite(value)) else None

    return read


def _meaning(text: str) -> str | float:
    """Give the number that a text spells, or the text: where zeros lead, or float64 does not hold the integer."""
    if _NUMBER.match(text) and not _ODD_NUMBER.match(text):
        return float(text)
    return text.lower() if text.lower() in ("true", "false") else text


_READERS: dict[str, Callable[[Input], Callable[[Any], Any]]] = {
    "numeric": _numeric_reader,
    "boolean": _boolean_reader,
    "categorical": _categorical_reader,
}
_EXPECTED = {"numeric": "a finite number", "boolean": "true or false", "categorical": "a text or a number"}


def _came(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "an infinite one"
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", float: "a number", int: "a number"}
    return names.get(type(value), "another value")
