"""Data sets as values: one as it was read, and the files that one is made of. Knows no SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypedDict

from app.learning.tables.describe_column import ColumnDescription
from app.storage.blobs import sha256_of


class DatasetStatus(StrEnum):
    """The state of a data set, as the database and the API spell it."""

    #: stored; a parser process is to read its bytes
    PROCESSING = "processing"
    #: read: the data set has a table
    READY = "ready"
    #: its bytes could not be read
    FAILED = "failed"


class DatasetError(TypedDict):
    """Why the bytes of a data set could not be read."""

    code: str
    message: str


@dataclass(frozen=True)
class Dataset:
    """A data set as it was when it was read.

    Args:
        format: the form of the uploaded bytes, such as "csv".
        rows, table_key, columns, warnings, default_target: of the table; 0 and empty where the data set is not ready.
        sha256: of the uploaded bytes, in hexadecimal.
        raw_key, table_key: where the store has the uploaded bytes, and the table.
        default_target: the column to predict where a training request names none.
        error: of a failed one.
    """

    id: str
    name: str | None
    status: DatasetStatus
    format: str
    rows: int
    size_bytes: int
    sha256: str
    raw_key: str
    table_key: str
    columns: Sequence[ColumnDescription]
    warnings: Sequence[str]
    default_target: str
    error: DatasetError | None
    created_at: str

    @property
    def table_keys(self) -> list[str]:
        """The key of its table in a list; an empty list where there is none."""
        return [self.table_key] if self.table_key else []


@dataclass(frozen=True)
class RawFile:
    """An uploaded file as it came.

    Args:
        form: one of the forms that the parser process reads.
        sha256: of its bytes, in hexadecimal.
    """

    path: Path
    form: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path, form: str) -> RawFile:
        """Read a file's size and digest."""
        return cls(path, form, path.stat().st_size, sha256_of(path))

    @property
    def key(self) -> str:
        """Where the store keeps it: equal bytes of one form have one place."""
        return f"datasets/{self.sha256}.{self.form}"


@dataclass(frozen=True)
class ParsedTable:
    """What a parser process made of a raw file: a table file, and its description."""

    path: Path
    rows: int
    columns: Sequence[ColumnDescription]
    warnings: Sequence[str]
    default_target: str
