"""Warnings about single cells, and cells that are refused. Knows no encoder."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import FAULT_LIMIT, Fault, Invalid

#: warnings that an answer lists
MAX_WARNINGS = 100
WarningCode = Literal["unseen_category", "imputed", "out_of_range", "unknown_column", "invalid"]


@dataclass(frozen=True)
class CellWarning:
    """A warning about one cell."""

    row: int
    column: str
    code: WarningCode


class CellWarnings:
    """Warnings in order of rows.

    Kept as indices of rows by column and code, because a few MB of rows can have millions of warnings.
    """

    def __init__(self) -> None:
        self._groups: list[tuple[str, WarningCode, NDArray[np.int32]]] = []

    def add(self, column: str, code: WarningCode, rows: NDArray[Any]) -> None:
        """Add a warning about a column in each of these rows, which ascend."""
        if len(rows):
            self._groups.append((column, code, rows.astype(np.int32)))

    def extend(self, other: CellWarnings) -> None:
        """Add the warnings of another collection."""
        self._groups += other._groups

    def without(self, is_bad: NDArray[np.bool_]) -> CellWarnings:
        """Return the warnings about all rows but the bad ones; `is_bad` is bool (n,)."""
        kept = CellWarnings()
        for column, code, rows in self._groups:
            kept.add(column, code, rows[~is_bad[rows]])
        return kept

    def mark(self, has_warning: NDArray[np.bool_]) -> None:
        """Set the elements of `has_warning`, bool (n,), whose rows have a warning."""
        for _, _, rows in self._groups:
            has_warning[rows] = True

    def __len__(self) -> int:
        return sum(len(rows) for _, _, rows in self._groups)

    def __iter__(self) -> Iterator[CellWarning]:
        groups = (self._of_group(*group) for group in self._groups)
        return heapq.merge(*groups, key=lambda warning: warning.row)

    @staticmethod
    def _of_group(column: str, code: WarningCode, rows: NDArray[np.int32]) -> Iterator[CellWarning]:
        return (CellWarning(int(row), column, code) for row in rows)


class CellFaults:
    """Cells that are refused: the first ones of each column in words, and all of them as warnings.

    Args:
        first_row: the number, in messages, of the first of the rows.
    """

    def __init__(self, first_row: int = 0) -> None:
        self.warnings = CellWarnings()
        self._first_row = first_row
        self._faults: list[Fault] = []

    def add(self, column: str, rows: NDArray[Any], message: Callable[[int, int], str], code: str) -> None:
        """Add a fault in each of these rows, which ascend.

        Args:
            message: returns the words about a row, from its index and its number in messages.
        """
        self.warnings.add(column, "invalid", rows)
        for row in rows[:FAULT_LIMIT].tolist():
            number = row + self._first_row
            self._faults.append(Fault((number, column), message(row, number), code))

    def check(self) -> None:
        """Raise `Invalid` where there is a fault, the first rows first."""
        if self._faults:
            faults = sorted(self._faults, key=lambda fault: int(fault.loc[0]))
            raise Invalid(faults[0].message, faults)
