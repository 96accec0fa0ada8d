"""Cells to typed columns: kinds are inferred, or given; the types that labels come back with are kept.

Takes texts, Python values and arrays; knows no file format. polars lives here, in `formats` and in `frames`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from app.errors import Invalid, TooLarge
from app.learning.tables.table import MISSING, Column, Kind, Posted, clean_names

#: a text column with more distinct values than this, or with mostly distinct ones, is text and not categories
MAX_CATEGORIES = 1000
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$"
_PLAIN_INTEGER = r"^-?(0|[1-9]\d{0,19})$"
#: what JSON gives back as an integer
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
#: what a float64 does not spell back: leading zeros, and the longest integers
_ODD_NUMBER = r"^[+-]?(0\d|\d{16,}$)"
#: from here on float64 does not hold every integer
_INEXACT = 2**53
_TRUTH = {"true": 1.0, "false": 0.0}


@dataclass(frozen=True)
class TableLimits:
    """What a table may be at most."""

    rows: int
    columns: int
    cells: int = 2_000_000_000


@dataclass(frozen=True)
class MemoryBudget:
    """How much of a file is in memory at once.

    Args:
        pass_bytes: cells, as they are collected in one pass over the file; but one column at least.
        block_bytes: of the file itself, in those forms that are read by parts.
    """

    pass_bytes: int = 1024**3
    block_bytes: int = 4 * 1024**2

    def groups(self, sizes: Sequence[int]) -> Iterator[range]:
        """Give the columns of each pass, by the bytes that the cells of each column take."""
        start = held = 0
        for i, size in enumerate(sizes):
            if i > start and held + size > self.pass_bytes:
                yield range(start, i)
                start, held = i, 0
            held += size
        yield range(start, len(sizes))


@dataclass(frozen=True)
class Source:
    """A table on its way in: what is known before its columns are made.

    Args:
        names: of d ≥ 1 columns; the last one is the target unless a job says otherwise.
        rows: n ≥ 1.
        columns: the columns in order, to be taken once; each is made when it is asked for, which may raise what
            `formats.open_source` does.
        warnings: what the parser noticed.
    """

    names: Sequence[str]
    rows: int
    columns: Iterable[Column]
    warnings: Sequence[str] = ()


def named(header: Sequence[str], bounds: TableLimits) -> tuple[list[str], list[str]]:
    """Give the names of columns, and warnings about absent ones.

    Raises:
        TooLarge, Invalid: too many columns, equal names, or one that cannot be printed.
    """
    if len(header) > bounds.columns:
        raise TooLarge(f"Expected at most {bounds.columns} columns, got {len(header)}.")
    return clean_names(header)


def check_rows(rows: int, bounds: TableLimits, columns: int = 1) -> None:
    """Refuse a table of no rows, of too many, or of too many cells."""
    if rows == 0:
        raise Invalid("Expected at least one row of data, got none.")
    if rows > bounds.rows:
        raise TooLarge(f"Expected at most {bounds.rows} rows, got {rows}.")
    if rows * columns > bounds.cells:
        raise TooLarge(f"Expected at most {bounds.cells} cells, got {rows} rows of {columns} columns.")


def column_of_texts(name: str, cells: pl.Series, kind: Kind | None, *, is_csv: bool = True) -> Column:
    """Make a column of texts (nulls allowed); `is_csv` gives integers their type back as labels."""
    cells = cells.fill_null("").str.strip_chars()
    cells = cells.set(cells.is_in(list(MISSING)), None)
    present = cells.drop_nulls()
    # "NAN" and the like, which are no spelling of a missing cell here, are no numbers either
    numbers = cells.cast(pl.Float64, strict=False).fill_nan(None)
    is_numeric = numbers.null_count() == cells.null_count()
    is_integer = is_csv and len(present) > 0 and _are_integers(present)
    kind = kind or _infer(present, is_numeric=is_numeric)
    if kind == "numeric":
        values = _numbers(name, numbers, cells, "a number")
        check_finite(name, values)
        is_odd = (np.abs(values) >= _INEXACT).any() if is_integer else present.str.contains(_ODD_NUMBER).any()
        if not is_csv or is_odd:
            return Column(name, kind, values, posted="int" if is_integer else "str", **_spelled(cells))
        return Column(name, kind, values, posted="int" if is_integer else "float")
    if kind == "boolean":
        truth = _truth(cells)
        values = _numbers(name, truth.fill_null(numbers.set(~numbers.is_in([0.0, 1.0]), None)), cells, "true or false")
        if is_integer:
            return Column(name, kind, values, posted="int")
        # "True" and "true" are one label
        lower = cells.str.to_lowercase()
        return Column(
            name, kind, values, posted="str", **_spelled(cells if cells.n_unique() <= lower.n_unique() else lower)
        )
    codes, texts = _coded(cells)
    return Column(name, kind, codes, texts, posted="int" if is_integer else "str")


def _are_integers(present: pl.Series) -> bool:
    if not present.str.contains(_PLAIN_INTEGER).all():
        return False
    return bool(present.cast(pl.Int128).is_between(_SMALLEST, _LARGEST).all())


def _truth(cells: pl.Series) -> pl.Series:
    return cells.str.to_lowercase().replace_strict(_TRUTH, default=None, return_dtype=pl.Float64)


def _numbers(name: str, numbers: pl.Series, cells: pl.Series, expected: str) -> NDArray[np.float64]:
    """Give the numbers, NaN where missing; refuses a cell that is there and gave no number."""
    strange = (numbers.is_null() & cells.is_not_null()).arg_true()
    if len(strange):
        row = int(strange[0])
        raise Invalid.at(("rows", row, name), f"Expected {expected} in column {name!r}, got another text in row {row}.")
    return numbers.fill_null(float("nan")).to_numpy().astype(np.float64)


def _infer(present: pl.Series, *, is_numeric: bool) -> Kind:
    if is_numeric:
        return "numeric"
    if _truth(present).null_count() == 0:
        return "boolean"
    if present.str.contains(_ISO_DATE).all():
        return "datetime"
    unique = present.n_unique()
    return "text" if unique > MAX_CATEGORIES or (unique > 20 and unique > 0.5 * len(present)) else "categorical"


def _coded(cells: pl.Series) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    texts = cells.drop_nulls().unique().sort()
    codes = (
        cells.replace_strict(texts, pl.int_range(len(texts), eager=True, dtype=pl.Int32), default=None)
        if len(texts)
        else pl.Series([None] * len(cells), dtype=pl.Int32)
    )
    return codes.cast(pl.Int32).fill_null(-1).to_numpy().astype(np.int32), tuple(texts.to_list())


def _spelled(cells: pl.Series) -> dict[str, Any]:
    codes, spellings = _coded(cells)
    # a target and a category need their spellings, and have few
    return {"codes": codes, "spellings": spellings} if len(spellings) <= 10 * MAX_CATEGORIES else {}


def check_finite(name: str, values: NDArray[Any]) -> None:
    """Refuse an infinite number, where it stands."""
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        row = int(infinite[0])
        raise Invalid.at(
            ("rows", row, name), f"Expected finite numbers in column {name!r}, got an infinite one in row {row}."
        )


def column_of_values(name: str, cells: list[Any], kind: Kind | None) -> Column:
    """Make a column of Python values: numbers, texts, booleans and None."""
    types = {type(cell) for cell in cells} - {type(None)}
    if types <= {int, float} and kind in (None, "numeric"):
        values = np.array([np.nan if cell is None else cell for cell in cells], np.float64)
        check_finite(name, values)
        if types != {int}:
            return Column(name, "numeric", values, posted="float")
        is_exact = np.nanmax(np.abs(values)) < _INEXACT
        return Column(name, "numeric", values, posted="int", **({} if is_exact else _spelled(_texts(cells))))
    if types == {bool} and kind in (None, "boolean"):
        return Column(name, "boolean", np.array([np.nan if c is None else float(c) for c in cells]), posted="bool")
    for row, cell in enumerate(cells):
        if cell is not None and type(cell) not in (int, float, str, bool):
            raise Invalid.at(
                (name, row),
                f"Expected a number, text, boolean or null in column {name!r}, got {type_of(cell)} in row {row}.",
            )
    if bool in types and len(types) > 1:
        raise Invalid.at((name,), f"Expected one type in column {name!r}, got booleans among other values.")
    if types == {int, float}:
        cells = [None if cell is None else float(cell) for cell in cells]
    column = column_of_texts(name, _texts(cells), kind, is_csv=False)
    posted: Posted = "str" if str in types else "float" if float in types else "int" if int in types else "bool"
    if not column.is_number or posted == "str":
        return replace(column, posted=posted)
    return replace(column, posted=posted, codes=None, spellings=())


def _texts(cells: Sequence[Any]) -> pl.Series:
    """Spell values as JSON does."""
    return pl.Series(
        [None if c is None else str(c).lower() if isinstance(c, bool) else str(c) for c in cells], dtype=pl.String
    )


def column_of_array(name: str, values: NDArray[Any], kind: Kind | None) -> Column:
    """Make a column of numbers or booleans (n,); NaN is missing."""
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32 if values.dtype in (np.float32, np.float16) else np.float64)
    check_finite(name, numbers)
    if values.dtype.kind == "f" and kind in (None, "numeric"):
        return Column(name, "numeric", numbers, posted="float")
    if values.dtype.kind == "b" and kind in (None, "boolean"):
        return Column(name, "boolean", numbers, posted="bool")
    items = numbers.tolist() if values.dtype.kind == "f" else values.tolist()
    return column_of_values(name, [None if item != item else item for item in items], kind)


def type_of(value: Any) -> str:
    """Name the type of a JSON value for people."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
