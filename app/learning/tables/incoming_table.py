"""A raw file on its way to a table: the limits that every format keeps, and the value that every format's reader returns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from app.errors import Invalid, TooLarge
from app.learning.tables.column import Column
from app.learning.tables.parse_text import clean_names


@dataclass(frozen=True)
class TableLimits:
    """The largest table that is accepted."""

    rows: int
    columns: int
    cells: int = 2_000_000_000


@dataclass(frozen=True)
class MemoryBudget:
    """How much of a raw file is in memory at once.

    Args:
        pass_bytes: bytes of cells that one pass over the file collects; at least one column is collected.
        block_bytes: bytes of the file itself that are read at once, in formats that are read in blocks.
    """

    pass_bytes: int = 1024**3
    block_bytes: int = 4 * 1024**2

    def passes(self, sizes: Sequence[int]) -> Iterator[range]:
        """Return the columns of each pass, given the bytes that the cells of each column take."""
        start = total = 0
        for i, size in enumerate(sizes):
            if i > start and total + size > self.pass_bytes:
                yield range(start, i)
                start, total = i, 0
            total += size
        yield range(start, len(sizes))


@dataclass(frozen=True)
class IncomingTable:
    """A raw file whose names and rows have been read, and whose columns are made one by one.

    Args:
        names: of d ≥ 1 columns; the last one is the target unless a job names another.
        rows: n ≥ 1.
        columns: the columns in order, an iterator. Making a column may raise what `open_raw_file` raises.
        warnings: what the parser noticed about the table as a whole, in sentences.
    """

    names: Sequence[str]
    rows: int
    columns: Iterable[Column]
    warnings: Sequence[str] = ()


def check_names(header: Sequence[str], limits: TableLimits) -> tuple[list[str], list[str]]:
    """Return the names of columns without blanks around them, and warnings about absent ones.

    Raises:
        TooLarge: there are too many columns.
        Invalid: two names are equal, or one cannot be printed.
    """
    if len(header) > limits.columns:
        raise TooLarge(f"Expected at most {limits.columns} columns, got {len(header)}.")
    return clean_names(header)


def check_rows(rows: int, limits: TableLimits, columns: int = 1) -> None:
    """Refuse a table without rows, with too many rows, or with too many cells.

    Raises:
        Invalid, TooLarge: says what was expected and what came.
    """
    if rows == 0:
        raise Invalid("Expected at least one row of data, got none.")
    if rows > limits.rows:
        raise TooLarge(f"Expected at most {limits.rows} rows, got {rows}.")
    if rows * columns > limits.cells:
        raise TooLarge(f"Expected at most {limits.cells} cells, got {rows} rows of {columns} columns.")
