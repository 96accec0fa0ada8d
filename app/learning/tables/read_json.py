"""JSON bodies and lines of JSON to tables."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.errors import Invalid, TooLarge
from app.learning.tables.column import Column, ColumnKind
from app.learning.tables.incoming_table import IncomingTable, MemoryBudget, TableLimits, check_names, check_rows
from app.learning.tables.infer_columns import column_from_values, json_type
from app.learning.tables.parse_text import parse_json

#: bytes that a value takes as a Python object, beside its characters
_VALUE_BYTES = 64


def read_json(path: Path, limits: TableLimits, kinds: Mapping[str, ColumnKind], _budget: MemoryBudget) -> IncomingTable:
    """Read a JSON body as a table, in one piece: the size of such a body has a limit of its own."""
    document = parse_json(path.read_bytes(), "JSON")
    if not isinstance(document, dict):
        raise Invalid(f"Expected a JSON object with x and y, records, or columns; got {json_type(document)}.")
    members = set(document)
    if members == {"x", "y"}:
        return _from_matrix(document["x"], document["y"], limits, kinds)
    if members == {"records"}:
        return _from_records(document["records"], limits, kinds)
    if members == {"columns"}:
        return _from_columns(document["columns"], limits, kinds)
    came = ", ".join(repr(name[:40]) for name in sorted(members)[:5]) or "nothing"
    raise Invalid(f'Expected {{"x", "y"}}, {{"records"}} or {{"columns"}}; got {came}.')


def _from_matrix(x: Any, y: Any, limits: TableLimits, kinds: Mapping[str, ColumnKind]) -> IncomingTable:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, list):
            raise Invalid.at((name,), f"Expected {name} to be a list, got {json_type(value)}.")
    if len(x) != len(y):
        raise Invalid.at(("y",), f"Expected as many labels as rows, got {len(x)} rows and {len(y)} labels.")
    check_rows(len(x), limits)
    for i, row in enumerate(x):
        if not isinstance(row, list):
            raise Invalid.at(("x", i), f"Expected row {i} of x to be a list, got {json_type(row)}.")
        if len(row) != len(x[0]):
            raise Invalid.at(("x", i), f"Expected {len(x[0])} values as in row 0, got {len(row)} in row {i}.")
    if not x[0]:
        raise Invalid.at(("x", 0), "Expected at least one value in a row, got none.")
    labels = _from_one_hot(y) if isinstance(y[0], list) else y
    names = [f"x{j}" for j in range(len(x[0]))]
    cells = {name: list(column) for name, column in zip(names, zip(*x, strict=True), strict=True)}
    return _from_columns({**cells, "y": labels}, limits, kinds)


def _from_one_hot(y: list[Any]) -> list[int]:
    labels = []
    for i, row in enumerate(y):
        is_row = isinstance(row, list) and len(row) == len(y[0])
        if not is_row or any(type(v) not in (int, float) for v in row) or sorted(row) != [0] * (len(row) - 1) + [1]:
            raise Invalid.at(("y", i), f"Expected one-hot labels, one 1 and {len(y[0]) - 1} zeros, in row {i} of y.")
        labels.append(row.index(1))
    return labels


def _from_records(records: Any, limits: TableLimits, kinds: Mapping[str, ColumnKind]) -> IncomingTable:
    if not isinstance(records, list):
        raise Invalid.at(("records",), f"Expected records to be a list, got {json_type(records)}.")
    check_rows(len(records), limits)
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise Invalid.at(("records", i), f"Expected record {i} to be an object, got {json_type(record)}.")
        names.update(dict.fromkeys(record))
        if len(names) > limits.columns:
            raise TooLarge(f"Expected at most {limits.columns} columns, got more by record {i}.")
    return _from_columns({name: [record.get(name) for record in records] for name in names}, limits, kinds)


def _from_columns(columns: Any, limits: TableLimits, kinds: Mapping[str, ColumnKind]) -> IncomingTable:
    if not isinstance(columns, dict):
        raise Invalid.at(("columns",), f"Expected columns to be an object of lists, got {json_type(columns)}.")
    if not columns:
        raise Invalid.at(("columns",), "Expected at least one column, got none.")
    names, warnings = check_names(list(columns), limits)
    lengths = {}
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise Invalid.at(("columns", name), f"Expected column {name!r} to be a list, got {json_type(cells)}.")
        lengths[name] = len(cells)
    longest = max(lengths.values())
    for name, length in lengths.items():
        if length != longest:
            raise Invalid.at(
                ("columns", name), f"Expected {longest} values as in the longest column, got {length} in {name!r}."
            )
    check_rows(longest, limits)
    pairs = zip(names, columns.values(), strict=True)
    return IncomingTable(names, longest, (column_from_values(n, cells, kinds.get(n)) for n, cells in pairs), warnings)


def read_ndjson(
    path: Path, limits: TableLimits, kinds: Mapping[str, ColumnKind], budget: MemoryBudget
) -> IncomingTable:
    """Read lines of JSON objects as a table: once for the names, then once for each group of columns."""
    keys, rows = _survey(path, limits)
    names, warnings = check_names(keys, limits)
    sizes = [_VALUE_BYTES * rows + path.stat().st_size // len(keys)] * len(keys)

    def columns() -> Iterator[Column]:
        for group in budget.passes(sizes):
            cells: dict[str, list[Any]] = {keys[i]: [] for i in group}
            for record in _lines(path):
                for key, values in cells.items():
                    values.append(record.get(key))
            for i in group:
                yield column_from_values(names[i], cells.pop(keys[i]), kinds.get(names[i]))

    return IncomingTable(names, rows, columns(), warnings)


def _survey(path: Path, limits: TableLimits) -> tuple[list[str], int]:
    """Return the members of all objects, in the order of their first occurrence, and the number of objects."""
    keys: dict[str, None] = {}
    rows = 0
    for row, record in enumerate(_lines(path)):
        rows = row + 1
        if rows > limits.rows:
            raise TooLarge(f"Expected at most {limits.rows} rows, got more.")
        if not isinstance(record, dict):
            raise Invalid.at(("records", row), f"Expected record {row} to be an object, got {json_type(record)}.")
        keys.update(dict.fromkeys(record))
        if len(keys) > limits.columns:
            raise TooLarge(f"Expected at most {limits.columns} columns, got more by record {row}.")
    check_rows(rows, limits)
    if not keys:
        raise Invalid.at(("columns",), "Expected at least one column, got none.")
    return list(keys), rows


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield parse_json(text, f"a JSON object in line {number}")
