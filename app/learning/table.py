"""A table in memory: typed columns as arrays, their statistics, and the file they are kept in.

Knows nothing of the formats tables arrive in (`formats`), nor of storage, nor of networks. Needs NumPy alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from app.errors import Invalid

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
        is_missing = np.isnan(self.values)
        found, inverse = np.unique(self.values[~is_missing], return_inverse=True)
        y = np.full(len(self.values), -1, np.int32)
        y[~is_missing] = inverse
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
        """Write the table to one safetensors file, its schema as JSON in the last array."""
        tensors: dict[str, NDArray[Any]] = {}
        schema = []
        for i, column in enumerate(self.columns):
            tensors[f"{i}"] = np.ascontiguousarray(column.values)
            if column.codes is not None:
                tensors[f"{i}.codes"] = np.ascontiguousarray(column.codes)
            names = ("name", "kind", "categories", "posted", "spellings", "warnings")
            schema.append({name: getattr(column, name) for name in names})
        document = {"columns": schema, "default_target": self.default_target, "warnings": self.warnings}
        # the format's own metadata holds at most 100 MB, and the texts of a column may be more
        tensors[SCHEMA] = np.frombuffer(json.dumps(document).encode(), np.uint8)
        save_file(tensors, path)


def load(path: Path, limit: int | None = None) -> Table:
    """Read a table that `Table.save` wrote, or its first `limit` rows."""
    with safe_open(path, "numpy") as file:
        document = json.loads(file.get_tensor(SCHEMA).tobytes())
        present = set(file.keys())

        def array(name: str) -> NDArray[Any]:
            part = file.get_slice(name)
            # unlike Python's, its slices may not go beyond the end
            tensor: NDArray[Any] = part[: part.get_shape()[0] if limit is None else min(limit, part.get_shape()[0])]
            return tensor

        columns = [
            Column(
                name=c["name"],
                kind=c["kind"],
                values=array(f"{i}"),
                categories=tuple(c["categories"]),
                posted=c["posted"],
                codes=array(f"{i}.codes") if f"{i}.codes" in present else None,
                spellings=tuple(c["spellings"]),
                warnings=tuple(c["warnings"]),
            )
            for i, c in enumerate(document["columns"])
        ]
    return Table(tuple(columns), document["default_target"], tuple(document["warnings"]))


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
