"""Data sets: uploaded tables, addressed by their content. Knows nothing of how bytes become tables."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict, NotFound
from app.storage.blobs import ORPHAN_SECONDS, Blobs, sha256_of
from app.storage.db import Database, datasets, new_id, now, page


@dataclass(frozen=True)
class Dataset:
    """A data set as it was when it was read."""

    id: str
    name: str | None
    status: str
    format: str
    rows: int
    size_bytes: int
    sha256: str
    raw_key: str
    table_key: str
    columns: list[dict[str, Any]]
    warnings: list[str]
    default_target: str
    created_at: str


@dataclass(frozen=True)
class Parsed:
    """What the ingest child made of a file: a table file, and its description."""

    path: Path
    rows: int
    columns: list[dict[str, Any]]
    warnings: list[str]
    default_target: str


class Users(Protocol):
    """Who may need a data set or a table to stay."""

    def needs_dataset(self, connection: Connection, dataset_id: str, table_keys: Sequence[str]) -> bool:
        """Tell whether something unfinished reads this data set."""

    def table_keys(self, connection: Connection) -> set[str]:
        """Give the tables that may still be read, though a data set has another reading by now."""


class Datasets:
    """The room of data sets."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database = database
        self._blobs = blobs
        # between finding a blob present and adding its row nobody may delete it
        self._changing = threading.Lock()

    def find(self, sha256: str, form: str) -> Dataset | None:
        """Give the data set of these very bytes, or None."""
        query = sa.select(datasets).where(datasets.c.sha256 == sha256, datasets.c.format == form)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else Dataset(**row)

    def add(self, name: str | None, form: str, raw: Path, parsed: Parsed) -> tuple[Dataset, bool]:
        """Store an upload, blobs first and then the row; consumes both files.

        Returns:
            The data set, and whether it is new: equal bytes give the one that is there.
        """
        sha256, size = sha256_of(raw), raw.stat().st_size
        raw_key, table_key = f"datasets/{sha256}.{form}", f"tables/{sha256_of(parsed.path)}.safetensors"
        row = {
            "id": new_id("ds"),
            "name": name,
            "status": "ready",
            "format": form,
            "size_bytes": size,
            "sha256": sha256,
            "raw_key": raw_key,
            "created_at": now(),
            **_described(parsed, table_key),
        }
        with self._changing:
            self._blobs.put(raw_key, raw)
            self._blobs.put(table_key, parsed.path)
            return self._insert(row)

    def _insert(self, row: dict[str, Any]) -> tuple[Dataset, bool]:
        with self._database.write() as connection:
            same = sa.select(datasets).where(datasets.c.sha256 == row["sha256"], datasets.c.format == row["format"])
            before = connection.execute(same).mappings().first()
            if before is not None:
                return Dataset(**before), False
            connection.execute(sa.insert(datasets).values(row))
            return _get(connection, str(row["id"])), True

    def get(self, dataset_id: str) -> Dataset:
        """Give a data set, or raise `NotFound`."""
        with self._database.read() as connection:
            return _get(connection, dataset_id)

    def list(self, limit: int, after: str | None) -> tuple[Sequence[Dataset], str | None]:
        """Give a page of data sets, newest first, and the next cursor."""
        with self._database.read() as connection:
            rows, following = page(connection, sa.select(datasets), datasets.c.id, limit, after)
        return [Dataset(**row) for row in rows], following

    def path(self, table_key: str) -> Path:
        """Give the local file of a table."""
        return self._blobs.local(table_key)

    def raw_path(self, dataset: Dataset) -> Path:
        """Give the local file of a data set's uploaded bytes."""
        return self._blobs.local(dataset.raw_key)

    def replace_table(self, dataset_id: str, parsed: Parsed) -> Dataset:
        """Give a data set another reading of its bytes; jobs keep the one they were submitted with."""
        table_key = f"tables/{sha256_of(parsed.path)}.safetensors"
        with self._changing, self._database.write() as connection:
            _get(connection, dataset_id)
            self._blobs.put(table_key, parsed.path)
            change = sa.update(datasets).where(datasets.c.id == dataset_id).values(_described(parsed, table_key))
            connection.execute(change)
            return _get(connection, dataset_id)

    def delete(self, dataset_id: str, users: Users) -> None:
        """Remove a data set.

        Raises:
            NotFound, Conflict: a queued or running job needs it.
        """
        with self._changing:
            with self._database.write() as connection:
                dataset = _get(connection, dataset_id)
                if users.needs_dataset(connection, dataset_id, [dataset.table_key]):
                    raise Conflict(f"A queued or running job needs data set {dataset_id}; wait for it or cancel it.")
                connection.execute(sa.delete(datasets).where(datasets.c.id == dataset_id))
                kept = _keys(connection)
            for key in {dataset.raw_key, dataset.table_key} - kept:
                self._blobs.delete(key)

    def sweep(self, users: Users) -> None:
        """Remove stored files that nothing reads: what a crash before a row, or a corrected column, leaves."""
        with self._changing:
            found = {key for prefix in ("datasets", "tables") for key in self._blobs.keys(prefix, ORPHAN_SECONDS)}
            with self._database.read() as connection:
                kept = _keys(connection) | users.table_keys(connection)
            for key in found - kept:
                self._blobs.delete(key)


def _keys(connection: Connection) -> set[str]:
    return {key for row in connection.execute(sa.select(datasets.c.raw_key, datasets.c.table_key)) for key in row}


def _described(parsed: Parsed, table_key: str) -> Mapping[str, Any]:
    return {
        "table_key": table_key,
        "rows": parsed.rows,
        "columns": parsed.columns,
        "warnings": parsed.warnings,
        "default_target": parsed.default_target,
    }


def _get(connection: Connection, dataset_id: str) -> Dataset:
    row = connection.execute(sa.select(datasets).where(datasets.c.id == dataset_id)).mappings().first()
    if row is None:
        raise NotFound("data set", dataset_id)
    return Dataset(**row)
