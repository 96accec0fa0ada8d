"""Columns of a table, or of posted rows, read in the terms of an encoder's inputs: numbers, or codes of categories.

Knows no features: the encoder turns these cells into features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.encoding.cell_warnings import CellFaults
from app.learning.encoding.encoder import Encoder
from app.learning.encoding.inputs import MISSING_CODE, Input
from app.learning.encoding.read_value import value_reader
from app.learning.tables.table import AnyTable

_EXPECTED = {"numeric": "a finite number", "boolean": "true or false", "categorical": "a text or a number"}


def table_cells(encoder: Encoder, table: AnyTable, faults: CellFaults | None = None) -> dict[str, NDArray[Any]]:
    """Read a table's columns for an encoder.

    Args:
        faults: as in `read_cells`.

    Returns:
        For each input its cells, as `Encoder.encode` takes them.

    Raises:
        Invalid: a column is absent that the encoder does not impute; or as `read_cells`.
    """
    names = set(table.names)
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
            cells[each.name] = np.array([*(each.code(text) for text in texts), MISSING_CODE], np.int32)[codes]
        else:
            cells[each.name] = read_cells(each, column.cells(table.rows), faults)
    return cells


def records_cells(
    encoder: Encoder,
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    rows: int,
    faults: CellFaults | None = None,
) -> dict[str, NDArray[Any]]:
    """Read posted columns of n values each for an encoder; a column that is absent is missing in every row.

    Args:
        rows: n.
        faults: as in `read_cells`.

    Returns:
        For each input its cells, as `Encoder.encode` takes them.

    Raises:
        Invalid: a column is absent that the encoder does not impute; or as `read_cells`.
    """
    return {
        each.name: read_cells(each, columns[each.name], faults) if each.name in columns else _absent(each, rows)
        for each in encoder.inputs
    }


def read_cells(each: Input, values: Sequence[Any] | NDArray[Any], faults: CellFaults | None = None) -> NDArray[Any]:
    """Read the posted values of one column.

    Args:
        values: numbers, texts, booleans or None; or an array of numbers in which NaN is missing.
        faults: where given, gets each value of the wrong type, which then reads as 0; where not given, such a value
            raises.

    Returns:
        float64 (n,) with NaN for missing, or codes int32 (n,) for a categorical input.

    Raises:
        Invalid: a value of the wrong type; says row and column, for at most 20 rows.
    """
    refused = CellFaults() if faults is None else faults
    if not isinstance(values, np.ndarray):
        cells = _read_values(each, values, refused)
    elif each.kind == "numeric" and values.dtype.kind != "b":
        cells = _read_array(each, values, refused)
    else:
        cells = _read_values(each, [None if value != value else value for value in values.tolist()], refused)
    if faults is None:
        refused.check()
    return cells


def _read_values(each: Input, values: Sequence[Any], faults: CellFaults) -> NDArray[Any]:
    read = value_reader(each)
    cells: list[Any] = []
    wrong: list[int] = []
    for row, value in enumerate(values):
        cell = read(value)
        if cell is None:
            wrong.append(row)
            cell = 0
        cells.append(cell)
    _refuse(faults, each, np.array(wrong, np.intp), values)
    return np.array(cells, np.float64 if each.is_number else np.int32)


def _read_array(each: Input, values: NDArray[Any], faults: CellFaults) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float64)
    infinite = np.flatnonzero(np.isinf(numbers))
    _refuse(faults, each, infinite, numbers)
    numbers[infinite] = 0.0
    return numbers


def _refuse(faults: CellFaults, each: Input, rows: NDArray[np.intp], values: Sequence[Any] | NDArray[Any]) -> None:
    def message(row: int, number: int) -> str:
        return f"Expected {_EXPECTED[each.kind]} in column {each.name!r}, got {_type_of(values[row])} in row {number}."

    faults.add(each.name, rows, message, "wrong_type")


def _type_of(value: Any) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "an infinite one"
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", float: "a number", int: "a number"}
    return names.get(type(value), "another value")


def _absent(each: Input, rows: int) -> NDArray[Any]:
    if each.missing == "error":
        raise Invalid.at((each.name,), f"Expected a column {each.name!r}, got none; the model does not impute it.")
    return np.full(rows, np.nan) if each.is_number else np.full(rows, MISSING_CODE, np.int32)
