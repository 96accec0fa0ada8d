"""Tables: named columns of equal length, in memory here, in a file in `table_file`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from app.learning.tables.column import Column


@dataclass(frozen=True)
class Table:
    """Columns of equal length n ≥ 1.

    Args:
        default_target: the column that a training job predicts unless the job names another.
        warnings: what the parser noticed about the table as a whole, in sentences.
    """

    columns: tuple[Column, ...]
    default_target: str
    warnings: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.columns[0].values)

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""
        return list(self._by_name)

    def column(self, name: str) -> Column:
        """Return a column by name, or raise `KeyError`."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Column]:
        return {column.name: column for column in self.columns}


class AnyTable(Protocol):
    """A table that is read a column at a time: a `Table`, or a `TableFile`."""

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""

    @property
    def rows(self) -> int:
        """The number of rows."""

    def column(self, name: str) -> Column:
        """Return a column by name, or raise `KeyError`."""
