"""Posted rows as columns of values: the one value that every body of a prediction becomes, whatever its format.

The values are not checked against a model's inputs here: `encoding.read_cells` does that, the same for all formats.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.tables.parse_text import clean_names


@dataclass(frozen=True)
class Rows:
    """n ≥ 1 posted rows: for each column n values as JSON has them, or an array (n,) of numbers in which NaN is missing."""

    columns: Mapping[str, Sequence[Any] | NDArray[Any]]
    count: int


def rows_from_records(records: object, loc: str, inputs: Sequence[str]) -> Rows:
    """Read a list of objects.

    Args:
        loc: the name of the list, for messages.
        inputs: the model's columns.

    Raises:
        Invalid: the value is no list of objects, or is empty.
    """
    if not isinstance(records, list) or not records:
        raise Invalid.at((loc,), f"Expected {loc} to be a list of at least one object.")
    names: dict[str, None] = {}
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise Invalid.at((loc, i), f"Expected record {i} to be an object.")
        names.update(dict.fromkeys(record))
    # unknown columns keep their names and no cells, which could be as many as records times records
    known = set(inputs)
    columns: dict[str, Sequence[Any]] = {
        clean: [record.get(name) for record in records] if clean in known else ()
        for name, clean in zip(names, clean_names(names)[0], strict=True)
    }
    return Rows(columns, len(records))


def rows_from_columns(columns: object, loc: str) -> Rows:
    """Read an object of lists of one length; `loc` is its name in messages.

    Raises:
        Invalid: the value is no such object.
    """
    if not isinstance(columns, dict) or not columns:
        raise Invalid.at((loc,), f"Expected {loc} to be an object of lists.")
    lengths = set()
    for name, cells in columns.items():
        if not isinstance(cells, list):
            raise Invalid.at((loc, name), f"Expected column {name[:80]!r} to be a list.")
        lengths.add(len(cells))
    if len(lengths) > 1 or lengths == {0}:
        raise Invalid.at((loc,), f"Expected columns of one length of at least 1, got {sorted(lengths)[:5]}.")
    return Rows(dict(zip(clean_names(columns)[0], columns.values(), strict=True)), lengths.pop())


def rows_from_matrix(rows: object, loc: str, inputs: Sequence[str]) -> Rows:
    """Read a list of rows, each a list with a value for each of `inputs`; `loc` is its name in messages.

    Raises:
        Invalid: the value is no such list, or is empty.
    """
    if not isinstance(rows, list) or not rows:
        raise Invalid.at((loc,), f"Expected {loc} to be a list of at least one row.")
    for i, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != len(inputs):
            came = len(row) if isinstance(row, list) else "something else"
            raise Invalid.at((loc, i), f"Expected {len(inputs)} values, one for each input, got {came} in row {i}.")
    return Rows(dict(zip(inputs, zip(*rows, strict=True), strict=True)), len(rows))


def rows_from_array(x: NDArray[Any], inputs: Sequence[str]) -> Rows:
    """Take the columns of an array (n, inputs).

    Raises:
        Invalid: the array has another shape, no rows, or no numbers.
    """
    if x.ndim != 2 or x.shape[1] != len(inputs) or not len(x) or x.dtype.kind not in "fiub":
        raise Invalid.at(
            ("x",),
            f"Expected numbers of shape (rows, {len(inputs)}), a column for each input, got {x.shape} of {x.dtype}.",
        )
    return Rows({name: x[:, j] for j, name in enumerate(inputs)}, len(x))


def refuse_unknown_columns(rows: Rows, known: Collection[str]) -> None:
    """Raise `Invalid` about a column that a model does not know, for protocols whose answers have no warnings."""
    unknown = next((name for name in rows.columns if name not in known), None)
    if unknown is not None:
        names = ", ".join(name[:40] for name in list(known)[:10])
        raise Invalid.at((unknown,), f"Expected columns of the model ({names}), got {unknown[:80]!r}.")
