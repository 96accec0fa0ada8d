"""Raw files, in whatever format they were uploaded, to tables: by groups of columns, so that a table may be larger than memory.

Only the parser process imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from app.errors import Invalid
from app.learning.tables.column import ColumnKind
from app.learning.tables.incoming_table import IncomingTable, MemoryBudget, TableLimits
from app.learning.tables.read_arrow import read_arrow_file, read_arrow_stream, read_parquet
from app.learning.tables.read_csv import read_csv
from app.learning.tables.read_json import read_json, read_ndjson
from app.learning.tables.read_npz import read_npz
from app.learning.tables.table import Table

_Reader = Callable[[Path, TableLimits, Mapping[str, ColumnKind], MemoryBudget], IncomingTable]
_READERS: dict[str, _Reader] = {
    "csv": read_csv,
    "tsv": partial(read_csv, prefer="\t"),
    "json": read_json,
    "ndjson": read_ndjson,
    "npz": read_npz,
    "parquet": read_parquet,
    "arrow_stream": read_arrow_stream,
    "arrow_file": read_arrow_file,
}


def open_raw_file(
    path: Path, form: str, limits: TableLimits, kinds: Mapping[str, ColumnKind], budget: MemoryBudget | None = None
) -> IncomingTable:
    """Read a raw file as far as its names and rows; its columns are then made one by one.

    Args:
        form: "csv", "tsv", "json", "ndjson", "npz", "parquet", "arrow_stream" or "arrow_file".
        kinds: kinds that somebody corrected, by column name; the others are inferred.

    Raises:
        Malformed: the bytes are not of this form.
        Invalid: the bytes are of this form, but no table that can be used; says the row and column.
        TooLarge: the table is over the limits.
    """
    incoming = _READERS[form](path, limits, kinds, budget or MemoryBudget())
    unknown = sorted(set(kinds) - set(incoming.names))
    if unknown:
        raise Invalid.at(("columns", unknown[0]), f"There is no column {unknown[0]!r}.")
    return incoming


def read_raw_file(
    path: Path, form: str, limits: TableLimits, kinds: Mapping[str, ColumnKind], budget: MemoryBudget | None = None
) -> Table:
    """Read a raw file whole; arguments and errors as in `open_raw_file`."""
    incoming = open_raw_file(path, form, limits, kinds, budget)
    return Table(tuple(incoming.columns), incoming.names[-1], tuple(incoming.warnings))
