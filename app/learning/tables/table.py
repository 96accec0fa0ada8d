"""Tables: typed columns as arrays, their statistics, and the file they are kept in, which is read as lazily as asked.

Knows nothing of the formats tables arrive in (`formats`), nor of storage, nor of networks, nor of polars.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import orjson
from numpy.typing import NDArray

from app.errors import Invalid
from app.learning.tables.tensor_file import Tensors, TensorWriter

Kind = Literal["numeric", "categorical", "boolean", "datetime", "text"]
Posted = Literal["bool", "int", "float", "str"]
Label = bool | int | float | str
KINDS: tuple[Kind, ...] = get_args(Kind)
#: spellings of a missing cell, after stripping blanks
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "null", "NULL", "?"})
#: what is stripped from a cell: White_Space of the Unicode standard, which is what polars strips; Python strips more
BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
TOP = 10
SCHEMA = "schema"
#: what the schema says of a column
_DESCRIBED = ("name", "kind", "categories", "posted", "spellings", "warnings")
_COPY_BYTES = 1024**2
_SOME_CELLS = 2**20
#: how much of a long text a description shows
TOP_CHARACTERS = 80


@dataclass(frozen=True)
class Column:
    """One named column of n cells.

    Args:
        values: numeric and boolean: float (n,), NaN where missing, booleans 0.0 and 1.0;
            else codes int32 (n,) into `categories`, -1 where missing.
        categories: the distinct texts, sorted; empty for numeric and boolean.
        posted: the type that labels from this column come back with.
        codes: for numeric and boolean columns whose cells a float64 does not spell back, such as "01", "true" and
            integers beyond 2**53: int32 (n,) into `spellings`, -1 where missing; else None.
    """

    name: str
    kind: Kind
    values: NDArray[Any]
    categories: tuple[str, ...] = ()
    posted: Posted = "float"
    codes: NDArray[np.int32] | None = None
    spellings: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether `values` are numbers rather than codes."""
        return self.kind in ("numeric", "boolean")

    def labels(self) -> tuple[list[Label], NDArray[np.int32]]:
        """Read the column as a target.

        Returns:
            The classes present, sorted, in the type they were posted with; and y int32 (n,), -1 where missing.
        """
        if self.codes is not None:
            return _used(self.spellings, self.codes, self.posted)
        if not self.is_number:
            return _used(self.categories, self.values, self.posted)
        found = np.unique(self.values)
        found = found[~np.isnan(found)]
        y = np.empty(len(self.values), np.int32)
        # some at a time, for an index is as long as a number
        for at in range(0, len(y), _SOME_CELLS):
            some = self.values[at : at + _SOME_CELLS]
            y[at : at + _SOME_CELLS] = np.where(np.isnan(some), -1, np.searchsorted(found, some))
        return [_typed(value, self.posted) for value in found.tolist()], y

    def cells(self, limit: int) -> list[Label | None]:
        """Give the first cells as they were posted, None where missing."""
        if self.is_number and self.codes is None:
            return [None if math.isnan(v) else _typed(v, self.posted) for v in self.values[:limit].tolist()]
        codes, texts = self.coded()
        return [_typed(texts[code], self.posted) if code >= 0 else None for code in codes[:limit].tolist()]

    def coded(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """Give the cells of a column that has texts: codes int32 (n,), -1 where missing, and the texts."""
        return (self.values, self.categories) if self.codes is None else (self.codes, self.spellings)

    def describe(self) -> dict[str, Any]:
        """Give the column's statistics as plain JSON: the fields of `columns` in the contract."""
        numbers = self.values[~np.isnan(self.values)].astype(np.float64) if self.is_number else None
        if numbers is not None and self.codes is None:
            found, counts = np.unique(numbers, return_counts=True)
            names = [_typed(value, self.posted) for value in _most(found, counts).tolist()]
        else:
            codes, texts = self.coded()
            counts = np.bincount(codes[codes >= 0], minlength=len(texts))
            names = [_cut(_typed(texts[i], self.posted)) for i in _most(np.arange(len(counts)), counts).tolist()]
        unique, missing = int((counts > 0).sum()), len(self.values) - int(counts.sum())
        description: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "missing": missing,
            "unique": unique,
            "min": None,
            "max": None,
            "mean": None,
            "std": None,
            "top": [[n, int(c)] for n, c in zip(names, _most(counts, counts).tolist(), strict=True)],
            "warnings": [*self.warnings, *_oddities(self, unique, len(self.values) - missing)],
        }
        if numbers is not None and len(numbers):
            with np.errstate(over="ignore", invalid="ignore"):
                figures = {"min": numbers.min(), "max": numbers.max(), "mean": numbers.mean(), "std": numbers.std()}
            description |= {name: float(v) if np.isfinite(v) else None for name, v in figures.items()}
        return description


@dataclass(frozen=True)
class Table:
    """Columns of equal length n ≥ 1.

    Args:
        default_target: the column a training job aims at unless it says otherwise.
        warnings: what the parser noticed.
    """

    columns: tuple[Column, ...]
    default_target: str
    warnings: tuple[str, ...] = field(default=())

    @property
    def rows(self) -> int:
        """The number of rows."""
        return len(self.columns[0].values)

    def column(self, name: str) -> Column:
        """Give a column by name, or raise `KeyError`."""
        return next(c for c in self.columns if c.name == name) if name in self.names else _no(name)

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""
        return [column.name for column in self.columns]

    def save(self, path: Path) -> None:
        """Write the table to a file that `TableFile` reads."""
        write_table(path, self.columns, len(self.columns), self.default_target, self.warnings)


class Columns(Protocol):
    """What is asked of a table by those who look at one column at a time; a `Table` has it, and a `TableFile`."""

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""

    @property
    def rows(self) -> int:
        """The number of rows."""

    def column(self, name: str) -> Column:
        """Give a column by name, or raise `KeyError`."""


class TableFile:
    """A table in its file: what opening it reads is the columns' names and texts, but none of their n cells.

    Raises:
        OSError: there is no such file.
        ValueError: it is none, or is cut off; here or where cells are read.
    """

    def __init__(self, path: Path) -> None:
        self._tensors = Tensors(path)
        # the format's own metadata holds at most 100 MB, and the texts of a column may be more
        document = orjson.loads(self._tensors.read(SCHEMA).data)
        #: where each stands, and the column without its cells
        self._columns: dict[str, tuple[int, Column]] = {}
        for i, each in enumerate(document["columns"]):
            texts = {name: tuple(each[name]) for name in ("categories", "spellings", "warnings")}
            self._columns[each["name"]] = (i, Column(**{**each, **texts}, values=np.empty(0)))
        self.rows = self._tensors.length("0")
        self.default_target = str(document["default_target"])
        self.warnings: tuple[str, ...] = tuple(document["warnings"])

    @property
    def names(self) -> list[str]:
        """The columns' names, in order."""
        return list(self._columns)

    def column(self, name: str) -> Column:
        """Read a column by name, or raise `KeyError`."""
        return self._read(name, self._tensors.read)

    def slice(self, start: int, stop: int, names: Sequence[str]) -> Table:
        """Read the rows [start, stop) of these columns; beyond the end there are none."""
        return self._table(names, partial(self._tensors.read, start=start, stop=stop))

    def take(self, rows: NDArray[np.intp], names: Sequence[str]) -> Table:
        """Read a few rows of these columns, by their indices (m,), which ascend."""
        return self._table(names, partial(self._tensors.take, rows=rows))

    def _table(self, names: Sequence[str], read: Callable[[str], NDArray[Any]]) -> Table:
        return Table(tuple(self._read(name, read) for name in names), self.default_target, self.warnings)

    def _read(self, name: str, read: Callable[[str], NDArray[Any]]) -> Column:
        i, column = self._columns[name]
        has_codes = f"{i}.codes" in self._tensors
        return replace(column, values=read(f"{i}"), codes=read(f"{i}.codes") if has_codes else None)


def load(path: Path, limit: int | None = None) -> Table:
    """Read a whole table from its file, or its first `limit` rows."""
    file = TableFile(path)
    return file.slice(0, file.rows if limit is None else limit, file.names)


def write_table(
    path: Path, columns: Iterable[Column], count: int, default_target: str, warnings: Sequence[str] = ()
) -> None:
    """Write a table to a safetensors file, its schema as JSON in the last array; no two columns are held at once.

    Args:
        columns: made as they are asked for; where that fails, so does this, and the file is of no use.
        count: how many there will be at most.
    """
    with path.open("wb") as file, tempfile.TemporaryFile(dir=path.parent) as schema:
        tensors = TensorWriter(file, 2 * count + 1)
        schema.write(b'{"columns":')
        for i, column in enumerate(columns):
            for name, array in ((f"{i}", column.values), (f"{i}.codes", column.codes)):
                if array is not None:
                    tensors.add(name, array.dtype, [np.ascontiguousarray(array).data])
            schema.write((b"," if i else b"[") + orjson.dumps({name: getattr(column, name) for name in _DESCRIBED}))
        rest = orjson.dumps({"default_target": default_target, "warnings": warnings})
        schema.write(b"]," + rest.removeprefix(b"{"))
        schema.seek(0)
        tensors.add(SCHEMA, np.uint8, iter(partial(schema.read, _COPY_BYTES), b""))
        tensors.finish()


def clean_names(header: Iterable[str]) -> tuple[list[str], list[str]]:
    """Give the names of columns without blanks around them, and warnings about absent ones.

    Raises:
        Invalid: equal names, or one that cannot be printed.
    """
    names: dict[str, None] = {}
    warnings = []
    for i, raw in enumerate(header):
        name = raw.strip()
        if not name:
            name = f"unnamed_{i}"
            warnings.append(f"column {i} has no name in the header; it is called {name!r}")
        if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in name) or len(name) > 200:
            raise Invalid.at(
                ("columns", i), f"Expected column names of at most 200 printable characters; column {i} has another."
            )
        if name in names:
            raise Invalid.at(("columns", i), f"Expected different column names, got {name!r} twice.")
        names[name] = None
    return list(names), warnings


def label_key(label: Label) -> str:
    """Give the text by which equal labels of different types meet: 1, 1.0 and "1"; true and "True"."""
    if isinstance(label, str):
        return label.lower() if label.lower() in ("true", "false") else label
    if isinstance(label, bool):
        return "true" if label else "false"
    return str(int(label)) if float(label).is_integer() else repr(label)


def spell(label: Label) -> str:
    """Give a label as the text that stands for it where only texts can."""
    return label if isinstance(label, str) else label_key(label)


def match_labels(column: Column, classes: Sequence[Label]) -> tuple[NDArray[np.int32], list[Label]]:
    """Read a target column in the classes of a model.

    Returns:
        y int32 (n,), indices into `classes`, -1 where missing; and the labels that are no class.
    """
    known = {label_key(label): i for i, label in enumerate(classes)}
    # "True" and "true" may be two classes
    texts: dict[Label, int] = {label: i for i, label in enumerate(classes) if isinstance(label, str)}
    present, codes = column.labels()
    found = [texts.get(label, known.get(label_key(label), -1)) for label in present]
    strange = [label for label, i in zip(present, found, strict=True) if i < 0]
    return np.array([*found, -1], np.int32)[codes], strange


def _used(texts: Sequence[str], codes: NDArray[np.int32], posted: Posted) -> tuple[list[Label], NDArray[np.int32]]:
    used = np.unique(codes[codes >= 0]).tolist()
    labels = sorted(((_typed(texts[code], posted), code) for code in used), key=lambda pair: pair[0])
    index = np.full(len(texts) + 1, -1, np.int32)
    for i, (_, code) in enumerate(labels):
        index[code] = i
    return [label for label, _ in labels], index[codes]


def _typed(value: float | str, posted: Posted) -> Label:
    if posted == "bool":
        return value.lower() == "true" if isinstance(value, str) else bool(value)
    if posted == "int":
        return int(value)
    if posted == "float":
        return float(value)
    return value if isinstance(value, str) else label_key(value)


def _cut(label: Label) -> Label:
    return f"{label[:TOP_CHARACTERS]}…" if isinstance(label, str) and len(label) > TOP_CHARACTERS else label


def _most(values: NDArray[Any], counts: NDArray[Any]) -> NDArray[Any]:
    return values[np.argsort(-counts, kind="stable")[:TOP]][: int((counts > 0).sum())]


def _oddities(column: Column, unique: int, present: int) -> Iterable[str]:
    if present == 0:
        yield "every value is missing"
    elif unique == 1:
        yield "constant: it can teach nothing"
    elif unique == present >= 20 and (column.kind in ("text", "categorical") or column.posted == "int"):
        yield "every value is different: it looks like an identifier"
    if column.kind in ("text", "datetime"):
        yield f"{column.kind} columns are left out of the features; PATCH the kind to use this one"


def _no(name: str) -> Column:
    raise KeyError(name)
