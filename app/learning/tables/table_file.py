"""The file that a table is stored in, which is read a column or a few rows at a time.

The file is a safetensors file: an array for the values of each column, one for its codes where it has them, and last
the schema as JSON. Knows nothing of the formats in which tables are uploaded.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from app.learning.tables.column import Column
from app.learning.tables.table import Table
from app.learning.tables.tensor_file import TensorFile, TensorWriter

_SCHEMA = "schema"
#: fields of a column that the schema has; all others are arrays
_SCHEMA_FIELDS = ("name", "kind", "categories", "posted", "spellings", "warnings")
#: bytes of the schema that are copied at once
_COPY_BYTES = 1024**2


class TableFile:
    """A stored table. Opening the file reads the columns' names and texts, and none of their n cells.

    Raises:
        OSError: there is no such file.
        ValueError: the file is no table, or is cut off; raised here or where cells are read.
    """

    def __init__(self, path: Path) -> None:
        self._tensors = TensorFile(path)
        # the schema is not in safetensors' own metadata, which holds at most 100 MB: texts of a column may be more
        schema = orjson.loads(self._tensors.read(_SCHEMA).data)
        #: by name: the column's number in the file, and the column without its cells
        self._columns: dict[str, tuple[int, Column]] = {}
        for number, fields in enumerate(schema["columns"]):
            texts = {name: tuple(fields[name]) for name in ("categories", "spellings", "warnings")}
            self._columns[fields["name"]] = (number, Column(**{**fields, **texts}, values=np.empty(0)))
        self.rows = self._tensors.length("0")
        self.default_target = str(schema["default_target"])
        self.warnings: tuple[str, ...] = tuple(schema["warnings"])

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""
        return list(self._columns)

    def column(self, name: str) -> Column:
        """Read a column by name, or raise `KeyError`."""
        return self._column(name, self._tensors.read)

    def slice(self, start: int, stop: int, names: Sequence[str]) -> Table:
        """Read the rows [start, stop) of these columns; rows beyond the end are left out."""
        return self._table(names, partial(self._tensors.read, start=start, stop=stop))

    def take(self, rows: NDArray[np.intp], names: Sequence[str]) -> Table:
        """Read a few rows of these columns, by their ascending indices (m,)."""
        return self._table(names, partial(self._tensors.take, rows=rows))

    def _table(self, names: Sequence[str], read: Callable[[str], NDArray[Any]]) -> Table:
        return Table(tuple(self._column(name, read) for name in names), self.default_target, self.warnings)

    def _column(self, name: str, read: Callable[[str], NDArray[Any]]) -> Column:
        number, column = self._columns[name]
        has_codes = f"{number}.codes" in self._tensors
        return replace(column, values=read(f"{number}"), codes=read(f"{number}.codes") if has_codes else None)


def load_table(path: Path, limit: int | None = None) -> Table:
    """Read a whole table from its file, or its first `limit` rows."""
    file = TableFile(path)
    return file.slice(0, file.rows if limit is None else limit, file.names)


def write_table(path: Path, table: Table) -> None:
    """Write a table to the file that `TableFile` reads."""
    write_columns(path, table.columns, len(table.columns), table.default_target, table.warnings)


def write_columns(
    path: Path, columns: Iterable[Column], count: int, default_target: str, warnings: Sequence[str] = ()
) -> None:
    """Write a table whose columns are made one by one; no two columns are in memory at once.

    Args:
        columns: an iterator; an error that it raises leaves a file that is of no use.
        count: the most columns there can be.
    """
    with path.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as schema:
        tensors = TensorWriter(file, 2 * count + 1)
        schema.write(b'{"columns":')
        for i, column in enumerate(columns):
            for name, array in ((f"{i}", column.values), (f"{i}.codes", column.codes)):
                if array is not None:
                    tensors.add(name, array.dtype, [np.ascontiguousarray(array).data])
            fields = {name: getattr(column, name) for name in _SCHEMA_FIELDS}
            schema.write((b"," if i else b"[") + orjson.dumps(fields))
        rest = orjson.dumps({"default_target": default_target, "warnings": warnings})
        schema.write(b"]," + rest.removeprefix(b"{"))
        schema.seek(0)
        tensors.add(_SCHEMA, np.uint8, iter(partial(schema.read, _COPY_BYTES), b""))
        tensors.finish()
