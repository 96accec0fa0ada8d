"""One posted value, read in the terms of an input: a number, or the code of a category."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from app.learning.encoding.inputs import MISSING_CODE, NUMBER, Input, InputKind
from app.learning.tables.column import BLANKS, MISSING

_FLOAT64_MAX = float(np.finfo(np.float64).max)

Reader = Callable[[Any], Any]


def value_reader(each: Input) -> Reader:
    """Return a function that reads one posted value of an input.

    The function returns a float, NaN for missing; or the code of a category; or None for a value of the wrong type.
    """
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
            return MISSING_CODE
        if type(value) is bool:
            return each.code("true" if value else "false")
        # an infinite number is refused in every column, as it is in a table
        return each.code(str(value)) if type(value) is int or (type(value) is float and math.isfinite(value)) else None

    return read


_READERS: dict[InputKind, Callable[[Input], Reader]] = {
    "numeric": _numeric_reader,
    "boolean": _boolean_reader,
    "categorical": _categorical_reader,
}
