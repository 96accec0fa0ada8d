"""JSON bodies and lines of JSON to tables."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from app.errors import Invalid, TooLarge
from app.learning.tables.infer_columns import (
    MemoryBudget,
    Source,
    TableLimits,
    check_rows,
    column_of_values,
    named,
    type_of,
)
from app.learning.tables.parse_text import load_json
from app.learning.tables.table import Column, Kind

#: what a value takes as Python has it, beside its characters
_VALUE_BYTES = 64


def json(path: Path, bounds: TableLimits, kinds: Mapping[str, Kind], _portions: MemoryBudget) -> Source:
    """Read a JSON body as a table; its size has a limit of its own, so that it is read in one piece."""
    document = load_json(path.read_bytes(), "JSON")
    if not isinstance(document, dict):
        raise Invalid(f"Expected a JSON object with x and y, records, or columns; got {type_of(document)}.")
    given = set(document)
    if given == {"x", "y"}:
        return _matrix(document["x"], document["y"], bounds, kinds)
    if given == {"records"}:
        return _records(document["records"], bounds, kinds)
    if given == {"columns"}:
        return _columns(document["columns"], bounds, kinds)
    came = ", ".join(repr(name[:40]) for name in sorted(given)[:5]) or "nothing"
    raise Invalid(f'Expected {{"x", "y"}}, {{"records"}} or {{"columns"}}; got {came}.')


def _matrix(x: Any, y: Any, bounds: TableLimits, kinds: Mapping[str, Kind]) -> Source:
    for name, value in (("x", x), ("y", y)):
        if not isinstance(value, list):
            raise Invalid.at((name,), f"Expected {name} to be a list, got {type_of(value)}.")
    if len(x) != len(y):
        raise Invalid.at(("y",), f"Expected as many labels as rows, got {len(x)} rows and {len(y)} labels.")
    check_rows(len(x), bounds)
    for i, row in enumerate(x):
        if not isinstance(row, list):
            raise Invalid.at(("x", i), f"Expected row {i} of x to be a list, got {type_of(row)}.")
        if len(row) != len(x[0]):
            raise Invalid.at(("x", i), f"Expected {len(x[0])} values as in row 0, got {len(row)} in row {i}.")
    if not x[0]:
        raise Invalid.at(("x", 0), "Expected at least one value in a row, got none.")
    if isinstance(y[0], list):
        y = _from_one_hot(y)
    names = [f"x{j}" for j in range(len(x[0]))]
    cells = {name: list(column) for name, column in zip(names, zip(*x, strict=True), strict=True)}
    return _columns({**cells, "y": y}, bounds, kinds)


def _from_one_hot(y: list[Any]) -> list[int]:
    labels = []
    for i, row in enumerate(y):
        is_row = isinstance(row, list) and len(row) == len(y[0])
        if not is_row or any(type(v) not in (int, float) for v in row) or sorted(row) != [0] * (len(row) - 1) + [1]:
            raise Invalid.at(("y", i), f"Expected one-hot labels, one 1 and {len(y[0]) - 1} zeros, in row {i} of y.")
        labels.append(row.index(1))
    return labels


def _records(records: Any, bounds: TableLimits, kinds: Mapping[str, Kind]) -> Source:
    if not isinstance(records, list):
        raise Invalid.at(("records",), f"Expected records to be a list, got {type_of(records)}.")
    check_rows(len(records), bounds)
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise Invalid.at(("records", i), f"Expected record {i} to be an object, got {type_of(record)}.")
        names.update(dict.fromkeys(record))
        if len(names) > bounds.columns:
            raise TooLarge(f"Expected at most {bounds.columns} columns, got more by record {i}.")
    return _columns({name: [record.get(name) for record in records] for name in names}, bounds, kinds)


def _columns(columns: Any, bounds: TableLimits, kinds: Mapping[str, Kind]) -> Source:
    if not isinstance(columns, dict):
        raise Invalid.at(("columns",), f"Expected columns to be an object of lists, got {type_of(columns)}.")
    if not columns:
        raise Invalid.at(("columns",), "Expected at least one column, got none.")
    names, warnings = named(list(columns), bounds)
    lengths = {}
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise Invalid.at(("columns", name), f"Expected column {name!r} to be a list, got {type_of(cells)}.")
        lengths[name] = len(cells)
    longest = max(lengths.values())
    for name, length in lengths.items():
        if length != longest:
            raise Invalid.at(
                ("columns", name), f"Expected {longest} values as in the longest column, got {length} in {name!r}."
            )
    check_rows(longest, bounds)
    made = (column_of_values(n, cells, kinds.get(n)) for n, cells in zip(names, columns.values(), strict=True))
    return Source(names, longest, made, warnings)


def ndjson(path: Path, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget) -> Source:
    """Read lines of JSON objects as a table: once for the names, then once for each group of columns."""
    keys, rows = _survey(path, bounds)
    names, warnings = named(keys, bounds)
    sizes = [_VALUE_BYTES * rows + path.stat().st_size // len(keys)] * len(keys)

    def columns() -> Iterator[Column]:
        for group in portions.groups(sizes):
            cells: dict[str, list[Any]] = {keys[i]: [] for i in group}
            for record in _lines(path):
                for key, values in cells.items():
                    values.append(record.get(key))
            for i in group:
                yield column_of_values(names[i], cells.pop(keys[i]), kinds.get(names[i]))

    return Source(names, rows, columns(), warnings)


def _survey(path: Path, bounds: TableLimits) -> tuple[list[str], int]:
    """Give the members that the objects have, in the order in which they come up, and the number of objects."""
    keys: dict[str, None] = {}
    rows = 0
    for row, record in enumerate(_lines(path)):
        rows = row + 1
        if rows > bounds.rows:
            raise TooLarge(f"Expected at most {bounds.rows} rows, got more.")
        if not isinstance(record, dict):
            raise Invalid.at(("records", row), f"Expected record {row} to be an object, got {type_of(record)}.")
        keys.update(dict.fromkeys(record))
        if len(keys) > bounds.columns:
            raise TooLarge(f"Expected at most {bounds.columns} columns, got more by record {row}.")
    check_rows(rows, bounds)
    if not keys:
        raise Invalid.at(("columns",), "Expected at least one column, got none.")
    return list(keys), rows


def _lines(path: Path) -> Iterator[Any]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield load_json(text, f"a JSON object in line {number}")
