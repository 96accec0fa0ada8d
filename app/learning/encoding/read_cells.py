"""Cells as they are posted or stored, read in an encoder's terms: numbers, or codes of its categories.

Knows no features: what becomes of a cell is the encoder's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.encoding.cell_warnings import Faults
from app.learning.encoding.encoder import NUMBER, Encoder, Input
from app.learning.tables.column import BLANKS, MISSING
from app.learning.tables.table import AnyTable

_FLOAT64_MAX = float(np.finfo(np.float64).max)


def table_cells(encoder: Encoder, table: AnyTable, faults: Faults | None = None) -> dict[str, NDArray[Any]]:
    """Read a table's columns in an encoder's terms.

    Args:
        faults: as in `read_cells`.

    Raises:
        Invalid: a column is absent that the encoder does not impute, or is of another kind.
    """
    cells: dict[str, NDArray[Any]] = {}
    names = set(table.names)
    for each in encoder.inputs:
        if each.name not in names:
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
            if NUMBER.match(text) and abs(number := float(text)) != np.inf:
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
            if not NUMBER.match(text):
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
