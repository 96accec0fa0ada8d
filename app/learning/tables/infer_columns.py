"""Cells to typed columns: the kind of a column is inferred from its cells, or is the one that somebody corrected.

Takes texts, Python values and arrays, and keeps the type in which labels are returned. Knows no file format. Only this
room, `tables`, imports polars.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.tables.column import MISSING, Column, ColumnKind
from app.learning.tables.label import LabelType

#: a text column with more distinct values than this, or with mostly distinct ones, is text and not categories
MAX_CATEGORIES = 1000
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
_PLAIN_INTEGER = r"^-?(0|[1-9]\d{0,19})$"
#: the integers that the JSON of an answer can hold
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
#: texts of numbers that float64 does not spell back: leading zeros, and the longest integers
_ODD_NUMBER = r"^[+-]?(0\d|\d{16,}$)"
#: from this integer on float64 does not hold every integer
_INEXACT = 2**53
_TRUTH = {"true": 1.0, "false": 0.0}


def column_from_texts(name: str, cells: pl.Series, kind: ColumnKind | None, *, is_csv: bool = True) -> Column:
    """Make a column of texts.

    Args:
        cells: texts (n,), null where missing.
        kind: the corrected kind, or None to infer one.
        is_csv: whether integers are labels of type int, because CSV has no other way to write them.

    Raises:
        Invalid: a cell is not of the corrected kind, or is an infinite number; says row and column.
    """
    cells = cells.fill_null("").str.strip_chars()
    cells = cells.set(cells.is_in(list(MISSING)), None)
    present = cells.drop_nulls()
    # "NAN" and the like are no numbers: a missing cell is spelled otherwise here
    numbers = cells.cast(pl.Float64, strict=False).fill_nan(None)
    is_numeric = numbers.null_count() == cells.null_count()
    is_integer = is_csv and len(present) > 0 and _are_integers(present)
    kind = kind or _infer_kind(present, is_numeric=is_numeric)
    if kind == "numeric":
        values = _numbers(name, numbers, cells, "a number")
        check_finite(name, values)
        is_odd = (np.abs(values) >= _INEXACT).any() if is_integer else present.str.contains(_ODD_NUMBER).any()
        if not is_csv or is_odd:
            return _with_spellings(Column(name, kind, values, posted="int" if is_integer else "str"), cells)
        return Column(name, kind, values, posted="int" if is_integer else "float")
    if kind == "boolean":
        truth = _truth(cells)
        values = _numbers(name, truth.fill_null(numbers.set(~numbers.is_in([0.0, 1.0]), None)), cells, "true or false")
        if is_integer:
            return Column(name, kind, values, posted="int")
        # "True" and "true" are one label
        lower = cells.str.to_lowercase()
        spellings = cells if cells.n_unique() <= lower.n_unique() else lower
        return _with_spellings(Column(name, kind, values, posted="str"), spellings)
    codes, texts = _coded(cells)
    return Column(name, kind, codes, texts, posted="int" if is_integer else "str")


def _infer_kind(present: pl.Series, *, is_numeric: bool) -> ColumnKind:
    """Return the kind of a column by the texts that are present in it."""
    if is_numeric:
        return "numeric"
    if _truth(present).null_count() == 0:
        return "boolean"
    if present.str.contains(_ISO_DATE).all():
        return "datetime"
    unique = present.n_unique()
    return "text" if unique > MAX_CATEGORIES or (unique > 20 and unique > 0.5 * len(present)) else "categorical"


def _are_integers(present: pl.Series) -> bool:
    if not present.str.contains(_PLAIN_INTEGER).all():
        return False
    return bool(present.cast(pl.Int128).is_between(_SMALLEST, _LARGEST).all())


def _truth(cells: pl.Series) -> pl.Series:
    return cells.str.to_lowercase().replace_strict(_TRUTH, default=None, return_dtype=pl.Float64)


def _numbers(name: str, numbers: pl.Series, cells: pl.Series, expected: str) -> NDArray[np.float64]:
    """Return the numbers, NaN where missing; refuse a cell that is present and has no number."""
    unreadable = (numbers.is_null() & cells.is_not_null()).arg_true()
    if len(unreadable):
        row = int(unreadable[0])
        raise Invalid.at(("rows", row, name), f"Expected {expected} in column {name!r}, got another text in row {row}.")
    return numbers.fill_null(float("nan")).to_numpy().astype(np.float64)


def _coded(cells: pl.Series) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Return codes int32 (n,), -1 where missing, and the distinct texts, sorted."""
    texts = cells.drop_nulls().unique().sort()
    codes = (
        cells.replace_strict(texts, pl.int_range(len(texts), eager=True, dtype=pl.Int32), default=None)
        if len(texts)
        else pl.Series([None] * len(cells), dtype=pl.Int32)
    )
    return codes.cast(pl.Int32).fill_null(-1).to_numpy().astype(np.int32), tuple(texts.to_list())


def _with_spellings(column: Column, cells: pl.Series) -> Column:
    """Return a column of numbers with the texts of its cells, unless there are too many to be classes or categories."""
    codes, spellings = _coded(cells)
    return replace(column, codes=codes, spellings=spellings) if len(spellings) <= 10 * MAX_CATEGORIES else column


def column_from_values(name: str, cells: list[Any], kind: ColumnKind | None) -> Column:
    """Make a column of Python values: numbers, texts, booleans and None for missing.

    Raises:
        Invalid: a cell of another type or kind, or an infinite number; says row and column.
    """
    types = {type(cell) for cell in cells} - {type(None)}
    if types <= {int, float} and kind in (None, "numeric"):
        values = np.array([np.nan if cell is None else cell for cell in cells], np.float64)
        check_finite(name, values)
        if types != {int}:
            return Column(name, "numeric", values, posted="float")
        column = Column(name, "numeric", values, posted="int")
        return column if np.nanmax(np.abs(values)) < _INEXACT else _with_spellings(column, _texts(cells))
    if types == {bool} and kind in (None, "boolean"):
        return Column(name, "boolean", np.array([np.nan if c is None else float(c) for c in cells]), posted="bool")
    for row, cell in enumerate(cells):
        if cell is not None and type(cell) not in (int, float, str, bool):
            raise Invalid.at(
                (name, row),
                f"Expected a number, text, boolean or null in column {name!r}, got {json_type(cell)} in row {row}.",
            )
    if bool in types and len(types) > 1:
        raise Invalid.at((name,), f"Expected one type in column {name!r}, got booleans among other values.")
    if types == {int, float}:
        cells = [None if cell is None else float(cell) for cell in cells]
    column = column_from_texts(name, _texts(cells), kind, is_csv=False)
    posted: LabelType = "str" if str in types else "float" if float in types else "int" if int in types else "bool"
    if not column.is_number or posted == "str":
        return replace(column, posted=posted)
    return replace(column, posted=posted, codes=None, spellings=())


def _texts(cells: Sequence[Any]) -> pl.Series:
    """Spell values as JSON does."""
    return pl.Series(
        [None if c is None else str(c).lower() if isinstance(c, bool) else str(c) for c in cells], dtype=pl.String
    )


def column_from_array(name: str, values: NDArray[Any], kind: ColumnKind | None) -> Column:
    """Make a column of an array of numbers or booleans (n,), NaN where missing.

    Raises:
        Invalid: as `column_from_values`.
    """
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32 if values.dtype in (np.float32, np.float16) else np.float64)
    check_finite(name, numbers)
    if values.dtype.kind == "f" and kind in (None, "numeric"):
        return Column(name, "numeric", numbers, posted="float")
    if values.dtype.kind == "b" and kind in (None, "boolean"):
        return Column(name, "boolean", numbers, posted="bool")
    cells = numbers.tolist() if values.dtype.kind == "f" else values.tolist()
    return column_from_values(name, [None if cell != cell else cell for cell in cells], kind)


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Refuse an infinite number in a column; the error says in which row."""
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        row = int(infinite[0])
        raise Invalid.at(
            ("rows", row, name), f"Expected finite numbers in column {name!r}, got an infinite one in row {row}."
        )


def json_type(value: object) -> str:
    """Return the type of a JSON value in words, such as "a list"."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
