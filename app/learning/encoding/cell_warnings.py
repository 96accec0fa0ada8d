"""What there is to say about single cells: warnings, and what is wrong. Knows no encoder."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.errors import FAULT_LIMIT, Fault, Invalid

MAX_WARNINGS = 100
WarningCode = Literal["unseen_category", "imputed", "out_of_range", "unknown_column", "invalid"]


@dataclass(frozen=True)
class Note:
    """A warning about one cell."""

    row: int
    column: str
    code: WarningCode


class CellWarnings:
    """Warnings in order of rows; kept by column as indices of rows, for a few MB of rows can give millions."""

    def __init__(self) -> None:
        self._groups: list[tuple[str, WarningCode, NDArray[np.int32]]] = []

    def add(self, column: str, code: WarningCode, rows: NDArray[Any]) -> None:
        """Add a warning about a column in each of these rows, which ascend."""
        if len(rows):
            self._groups.append((column, code, rows.astype(np.int32)))

    def extend(self, other: CellWarnings) -> None:
        """Add another's warnings."""
        self._groups += other._groups

    def without(self, is_bad: NDArray[np.bool_]) -> CellWarnings:
        """Give those of the other rows."""
        kept = CellWarnings()
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
    def _each(column: str, code: WarningCode, rows: NDArray[np.int32]) -> Iterator[Note]:
        return (Note(int(row), column, code) for row in rows)


class Faults:
    """What is wrong with rows: the first of each column in words, and all of them as warnings.

    Args:
        first_row: what the first of these rows is called in words.
    """

    def __init__(self, first_row: int = 0) -> None:
        self.notes = CellWarnings()
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
