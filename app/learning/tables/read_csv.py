"""CSV files to tables: the header, the records split into columns by polars, and what is wrong with a record."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from app.errors import Fault, Invalid, Malformed
from app.learning.tables.column import Column, ColumnKind
from app.learning.tables.csv_blocks import check_utf8, first_record, line_count, read_blocks
from app.learning.tables.incoming_table import IncomingTable, MemoryBudget, TableLimits, check_names, check_rows
from app.learning.tables.infer_columns import column_from_texts
from app.learning.tables.parse_text import csv_delimiter

#: bytes that polars keeps of each text, beside the characters of longer texts
_VIEW_BYTES = 16


def read_csv(
    path: Path,
    limits: TableLimits,
    kinds: Mapping[str, ColumnKind],
    budget: MemoryBudget,
    prefer: str | None = None,
) -> IncomingTable:
    """Read a CSV file as a table: all of it at once where the budget allows, else once for each group of columns.

    Args:
        prefer: the delimiter if it occurs in the header.
    """
    check_utf8(path)
    header, delimiter = _read_header(path, prefer)
    names, warnings = check_names(header, limits)
    file = _CsvFile(path, delimiter, len(names), *first_record(path))
    survey = file.survey(budget)
    check_rows(survey.rows, limits)

    def columns() -> Iterator[Column]:
        whole = survey.frames
        for group in [range(len(names))] if whole else budget.passes(survey.sizes):
            frames = whole or file.collect(survey.blocks, group)
            series = pl.concat(frames, rechunk=False).get_columns()[::-1]
            frames.clear()
            for i in group:
                yield column_from_texts(names[i], series.pop(), kinds.get(names[i]))

    return IncomingTable(names, survey.rows, columns(), warnings)


def _read_header(path: Path, prefer: str | None) -> tuple[list[str], str]:
    """Read the header row: its names, and the delimiter."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        line = file.readline(1_000_000)
        if not line.strip():
            raise Invalid(
                "Expected a header row and data rows, got an empty file."
                if not line
                else "Expected a header row, got a blank line."
            )
        delimiter = csv_delimiter(line, prefer)
        file.seek(0)
        try:
            return next(csv.reader(file, delimiter=delimiter)), delimiter
        except csv.Error as error:
            raise Malformed(f"Expected a CSV header row: {error}.") from error


@dataclass(frozen=True)
class _Block:
    """A part of a CSV file, which begins at a byte offset and ends where a record ends."""

    offset: int
    size: int
    has_blank_lines: bool


@dataclass(frozen=True)
class _Survey:
    """What one pass over a CSV file finds.

    Args:
        sizes: the bytes that the texts of each column take.
        frames: the texts themselves, None where they are more than the budget.
    """

    rows: int
    sizes: Sequence[int]
    blocks: Sequence[_Block]
    frames: list[pl.DataFrame] | None


@dataclass(frozen=True)
class _CsvFile:
    """A CSV file of `width` columns.

    Args:
        header: the first record, without a byte order mark.
        start: the offset of the first row.
    """

    path: Path
    delimiter: str
    width: int
    header: bytes
    start: int

    def survey(self, budget: MemoryBudget) -> _Survey:
        """Read the file once, and refuse it where something is wrong with it as a whole."""
        if self._split(b"").width != self.width:
            raise Malformed(f"Expected {self.width} columns as in the header, got {self._split(b'').width}.")
        rows, line, sizes = 0, line_count(self.header), [0] * self.width
        blocks: list[_Block] = []
        frames: list[pl.DataFrame] | None = []
        with self.path.open("rb") as file:
            file.seek(self.start)
            for offset, body in read_blocks(file, budget.block_bytes):
                frame, has_blank_lines = self._checked(body, rows, line)
                blocks.append(_Block(offset, len(body), has_blank_lines))
                rows, line = rows + frame.height, line + line_count(body)
                sizes = [n + _VIEW_BYTES * len(s) + int(s.estimated_size()) for n, s in zip(sizes, frame, strict=True)]
                frames = None if frames is None or sum(sizes) > budget.pass_bytes else [*frames, frame]
        return _Survey(rows, sizes, blocks, frames)

    def collect(self, blocks: Sequence[_Block], group: range) -> list[pl.DataFrame]:
        """Read some columns of the file again."""
        frames = []
        with self.path.open("rb") as file:
            for block in blocks:
                file.seek(block.offset)
                body = file.read(block.size)
                frame = self._split(body, group)
                frames.append(_without(frame, self._blank_lines(body)) if block.has_blank_lines else frame)
        return frames

    def _split(self, body: bytes, columns: Sequence[int] | None = None) -> pl.DataFrame:
        """Split records into their columns, all or some of them; a blank line becomes a row of empty texts."""
        return pl.read_csv(
            self.header + body,
            separator=self.delimiter,
            infer_schema=False,
            empty_string_is_null=False,
            columns=None if columns is None else list(columns),
        )

    def _checked(self, body: bytes, row: int, line: int) -> tuple[pl.DataFrame, bool]:
        """Split records that begin after `row` rows and `line` lines; returns also whether there were blank lines."""
        try:
            frame = self._split(body)
        except pl.exceptions.PolarsError as error:
            self._blank_lines(body, row, line)
            raise Malformed("Expected CSV whose quotes are balanced and enclose whole cells.") from error
        # polars reads a short row, and a blank line, as empty cells at the end; a last row may hide an empty cell too many
        if (frame.to_series(-1).fill_null("") == "").any() or body.endswith(self.delimiter.encode()):
            blank = self._blank_lines(body, row, line)
            return _without(frame, blank), bool(blank)
        return frame, False

    def _blank_lines(self, body: bytes, row: int = 0, line: int = 0) -> list[int]:
        """Return the indices of blank lines among records; raises about the first record of another width."""
        blank = []
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(io.StringIO(body.decode(), newline=""), delimiter=self.delimiter, strict=False)
        for i, cells in enumerate(reader):
            if not cells:
                blank.append(i)
            elif len(cells) != self.width:
                index = row + i - len(blank)
                message = f"Expected {self.width} cells as in the header, got {len(cells)} in row {index} (line {line + reader.line_num})."
                raise Invalid(message, [Fault(("rows", index), message, "ragged_row")])
        return blank


def _without(frame: pl.DataFrame, rows: Sequence[int]) -> pl.DataFrame:
    return frame.filter(~pl.int_range(pl.len()).is_in(rows)) if rows else frame
