"""Files and JSON bodies to tables, by groups of columns, so that a table may be larger than memory.

polars lives here, in `columns` and in `frames`; only the ingest child imports this module.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import polars as pl

from app.errors import Fault, Invalid, Malformed
from app.learning.tables import read_arrow, read_json, read_npz
from app.learning.tables.infer_columns import MemoryBudget, Source, TableLimits, check_rows, column_of_texts, named
from app.learning.tables.parse_text import sniff
from app.learning.tables.table import Column, Kind, Table

#: what a row of CSV may take; a quote that is never closed makes one of the rest of the file
MAX_RECORD_BYTES = 64 * 1024**2
#: what polars keeps of each text beside its longer ones' characters
_VIEW_BYTES = 16
_UNBALANCED = "Expected CSV whose quotes are balanced and enclose whole cells."


def open_source(
    path: Path, form: str, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget | None = None
) -> Source:
    """Read an uploaded file as far as it takes to know its names and rows; its columns are made one by one.

    Args:
        form: "csv", "tsv", "json", "ndjson", "npz", "parquet", "arrow_stream" or "arrow_file".
        kinds: kinds that somebody corrected, by column name; the others are inferred.

    Raises:
        Malformed: the bytes are not of this form.
        Invalid: they are, but not a table that can be used; says the row and column.
        TooLarge: over the bounds.
    """
    source = _PARSERS[form](path, bounds, kinds, portions or MemoryBudget())
    unknown = sorted(set(kinds) - set(source.names))
    if unknown:
        raise Invalid.at(("columns", unknown[0]), f"There is no column {unknown[0]!r}.")
    return source


def parse(
    path: Path, form: str, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget | None = None
) -> Table:
    """Read an uploaded file whole; as `open_source`."""
    source = open_source(path, form, bounds, kinds, portions)
    return Table(tuple(source.columns), source.names[-1], tuple(source.warnings))


@dataclass(frozen=True)
class _Block:
    """A part of a CSV file, from a byte on, which ends where a record does."""

    at: int
    size: int
    has_blank: bool


@dataclass(frozen=True)
class _Survey:
    """What one pass over a CSV file tells.

    Args:
        sizes: the bytes that the texts of each column take.
        frames: the texts themselves, unless they are too many.
    """

    rows: int
    sizes: Sequence[int]
    blocks: Sequence[_Block]
    frames: list[pl.DataFrame] | None


@dataclass(frozen=True)
class _Delimited:
    """A CSV file of so many columns; `header` is its first record, without a byte order mark."""

    path: Path
    delimiter: str
    width: int
    header: bytes
    start: int

    def survey(self, portions: MemoryBudget) -> _Survey:
        """Read the file once; finds what is wrong with it as a whole."""
        if self.read(b"").width != self.width:
            raise Malformed(f"Expected {self.width} columns as in the header, got {self.read(b'').width}.")
        rows, line, sizes = 0, _line_count(self.header), [0] * self.width
        blocks: list[_Block] = []
        frames: list[pl.DataFrame] | None = []
        with self.path.open("rb") as file:
            file.seek(self.start)
            for at, body in _blocks(file, portions.block_bytes):
                frame, has_blank = self.checked(body, rows, line)
                blocks.append(_Block(at, len(body), has_blank))
                rows, line = rows + frame.height, line + _line_count(body)
                sizes = [n + _VIEW_BYTES * len(s) + int(s.estimated_size()) for n, s in zip(sizes, frame, strict=True)]
                frames = None if frames is None or sum(sizes) > portions.pass_bytes else [*frames, frame]
        return _Survey(rows, sizes, blocks, frames)

    def read(self, body: bytes, columns: Sequence[int] | None = None) -> pl.DataFrame:
        """Read records, some or all of their columns, blank lines as rows of empty texts."""
        return pl.read_csv(
            self.header + body,
            separator=self.delimiter,
            infer_schema=False,
            empty_string_is_null=False,
            columns=None if columns is None else list(columns),
        )

    def checked(self, body: bytes, row: int, line: int) -> tuple[pl.DataFrame, bool]:
        """Read all columns of records that begin after so many rows and lines; tells whether there were blank lines."""
        try:
            frame = self.read(body)
        except pl.exceptions.PolarsError as error:
            self.blank(body, row, line)
            raise Malformed(_UNBALANCED) from error
        # a row that is short, and a blank line, read as empty cells at its end; a last row may hide an empty one too many
        if (frame.to_series(-1).fill_null("") == "").any() or body.endswith(self.delimiter.encode()):
            blank = self.blank(body, row, line)
            return _without(frame, blank), bool(blank)
        return frame, False

    def blank(self, body: bytes, row: int = 0, line: int = 0) -> list[int]:
        """Give the indices of blank lines among records; raises about the first record of another width."""
        blank = []
        csv.field_size_limit(2**31 - 1)
        reader = csv.reader(io.StringIO(body.decode(), newline=""), delimiter=self.delimiter, strict=False)
        for i, cells in enumerate(reader):
            if not cells:
                blank.append(i)
            elif len(cells) != self.width:
                at = row + i - len(blank)
                message = f"Expected {self.width} cells as in the header, got {len(cells)} in row {at} (line {line + reader.line_num})."
                raise Invalid(message, [Fault(("rows", at), message, "ragged_row")])
        return blank

    def collect(self, blocks: Sequence[_Block], group: range) -> list[pl.DataFrame]:
        """Read some columns of the file again."""
        found = []
        with self.path.open("rb") as file:
            for block in blocks:
                file.seek(block.at)
                body = file.read(block.size)
                frame = self.read(body, group)
                found.append(_without(frame, self.blank(body)) if block.has_blank else frame)
        return found


def _delimited(
    path: Path, bounds: TableLimits, kinds: Mapping[str, Kind], portions: MemoryBudget, prefer: str | None = None
) -> Source:
    _check_utf8(path)
    header, delimiter = _header(path, prefer)
    names, warnings = named(header, bounds)
    text = _Delimited(path, delimiter, len(names), *_first_record(path))
    survey = text.survey(portions)
    check_rows(survey.rows, bounds)

    def columns() -> Iterator[Column]:
        whole = survey.frames
        for group in [range(len(names))] if whole else portions.groups(survey.sizes):
            frames = whole or text.collect(survey.blocks, group)
            series = pl.concat(frames, rechunk=False).get_columns()[::-1]
            frames.clear()
            for i in group:
                yield column_of_texts(names[i], series.pop(), kinds.get(names[i]))

    return Source(names, survey.rows, columns(), warnings)


def _blocks(file: BinaryIO, block_bytes: int) -> Iterator[tuple[int, bytes]]:
    """Read the rest of a file in parts that end where a record does, each with where it begins."""
    at, body = file.tell(), b""
    while chunk := file.read(block_bytes):
        body += chunk
        end = _last_end(body)
        if end:
            yield at, body[:end]
            at, body = at + end, body[end:]
        elif len(body) > MAX_RECORD_BYTES:
            raise Malformed(f"Expected rows of at most {MAX_RECORD_BYTES} bytes whose quotes are balanced.")
    if body:
        yield at, body


def _last_end(body: bytes) -> int:
    """Give the index after the last newline that is in no quotes, 0 where there is none."""
    quotes, end = body.count(b'"'), len(body)
    while (at := body.rfind(b"\n", 0, end)) >= 0:
        quotes -= body.count(b'"', at, end)
        if quotes % 2 == 0:
            return at + 1
        end = at
    return 0


def _first_record(path: Path) -> tuple[bytes, int]:
    """Give the header's bytes without a byte order mark, and where those of the rows begin."""
    lines: list[bytes] = []
    quotes = 0
    with path.open("rb") as file:
        for line in file:
            lines.append(line)
            quotes += line.count(b'"')
            if quotes % 2 == 0:
                break
        return b"".join(lines).removeprefix(codecs.BOM_UTF8), file.tell()


def _line_count(body: bytes) -> int:
    return body.count(b"\n") + body.count(b"\r") - body.count(b"\r\n")


def _without(frame: pl.DataFrame, rows: Sequence[int]) -> pl.DataFrame:
    return frame.filter(~pl.int_range(pl.len()).is_in(rows)) if rows else frame


def _check_utf8(path: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    with path.open("rb") as file:
        while chunk := file.read(1024**2):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line += chunk[: max(error.start, 0)].count(b"\n")
                raise Malformed(
                    f"Expected UTF-8 text, got byte 0x{error.object[error.start]:02x} in line {line}."
                ) from error
            line += chunk.count(b"\n")
        try:
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise Malformed(f"Expected UTF-8 text, but the file ends inside a character in line {line}.") from error


def _header(path: Path, prefer: str | None) -> tuple[list[str], str]:
    """Read the header row; gives the names and the delimiter: the preferred one if it occurs, else the most frequent."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline(1_000_000)
        if not first.strip():
            raise Invalid(
                "Expected a header row and data rows, got an empty file."
                if not first
                else "Expected a header row, got a blank line."
            )
        delimiter = sniff(first, prefer)
        file.seek(0)
        try:
            return next(csv.reader(file, delimiter=delimiter)), delimiter
        except csv.Error as error:
            raise Malformed(f"Expected a CSV header row: {error}.") from error


_PARSERS: dict[str, Callable[[Path, TableLimits, Mapping[str, Kind], MemoryBudget], Source]] = {
    "csv": _delimited,
    "tsv": partial(_delimited, prefer="\t"),
    "json": read_json.json,
    "ndjson": read_json.ndjson,
    "npz": read_npz.npz,
    "parquet": read_arrow.parquet,
    "arrow_stream": read_arrow.arrow_stream,
    "arrow_file": read_arrow.arrow_file,
}
