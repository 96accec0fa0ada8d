"""Data sets: uploaded tables, addressed by their content. Knows nothing of how bytes become tables."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict, NotFound
from app.learning.tables.describe_column import ColumnDescription
from app.names import new_id
from app.storage.blobs import ORPHAN_SECONDS, Blobs, sha256_of
from app.storage.database import Database
from app.storage.rows import now, page
from app.storage.tables import datasets, versions


@dataclass(frozen=True)
class Dataset:
    """A data set as it was when it was read from the database.

    Args:
        status: "processing" while its bytes are not yet read, then "ready" or "failed"; only a ready one has rows,
            columns, a table and a target.
        error: code and message of a failed one.
    """

    id: str
    name: str | None
    status: str
    format: str
    rows: int
    size_bytes: int
    sha256: str
    raw_key: str
    table_key: str
    columns: list[ColumnDescription]
    warnings: list[str]
    default_target: str
    error: dict[str, Any] | None
    created_at: str


@dataclass(frozen=True)
class Parsed:
    """What the ingest child made of a file: a table file, and its description."""

    path: Path
    rows: int
    columns: list[ColumnDescription]
    warnings: list[str]
    default_target: str


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


class DatasetUsage(Protocol):
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

    def add(self, name: str | None, raw: RawFile, parsed: Parsed) -> tuple[Dataset, bool]:
        """Store an upload, blobs first and then the row; consumes both files.

        Returns:
            The data set, and whether it is new: equal bytes give the one that is there.
        """
        row = _new(name, raw)
        table_key = _table_key(parsed)
        with self._changing:
            self._blobs.put(row["raw_key"], raw.path)
            self._blobs.put(table_key, parsed.path)
            return self._insert(row, _described(parsed, table_key))

    def add_unread(self, name: str | None, raw: RawFile) -> tuple[Dataset, bool]:
        """Store an upload that is to be read later; consumes the file.

        Returns:
            The data set, and whether it is new: equal bytes give the one that is there.
        """
        row = _new(name, raw)
        with self._changing:
            self._blobs.put(row["raw_key"], raw.path)
            return self._insert(row, {"status": "processing"})

    def _insert(self, row: dict[str, Any], reading: Mapping[str, Any]) -> tuple[Dataset, bool]:
        with self._database.write() as connection:
            is_same = (datasets.c.sha256 == row["sha256"]) & (datasets.c.format == row["format"])
            # what could not be read before may be read now: limits and readers change
            connection.execute(sa.delete(datasets).where(is_same, datasets.c.status == "failed"))
            before = connection.execute(sa.select(datasets).where(is_same)).mappings().first()
            if before is None:
                connection.execute(sa.insert(datasets).values({**row, **reading}))
                return _get(connection, row["id"]), True
            if before["status"] == "processing":
                # a reader that did not wait its turn came first
                connection.execute(sa.update(datasets).where(datasets.c.id == before["id"]).values(reading))
            return _get(connection, before["id"]), False

    def processing(self) -> Sequence[Dataset]:
        """Give the data sets that are to be read, oldest first."""
        query = sa.select(datasets).where(datasets.c.status == "processing").order_by(datasets.c.id)
        with self._database.read() as connection:
            return [Dataset(**row) for row in connection.execute(query).mappings()]

    def finish(self, dataset_id: str, parsed: Parsed) -> None:
        """Make a data set ready; consumes the table file.

        Raises:
            NotFound: it was deleted meanwhile.
        """
        table_key = _table_key(parsed)
        with self._changing:
            self._blobs.put(table_key, parsed.path)
            with self._database.write() as connection:
                _get(connection, dataset_id)
                change = sa.update(datasets).where(datasets.c.id == dataset_id, datasets.c.status == "processing")
                connection.execute(change.values(_described(parsed, table_key)))

    def fail(self, dataset_id: str, code: str, message: str) -> None:
        """Say that a data set cannot be read, and why."""
        change = sa.update(datasets).where(datasets.c.id == dataset_id, datasets.c.status == "processing")
        with self._database.write() as connection:
            connection.execute(change.values(status="failed", error={"code": code, "message": message[:1000]}))

    def get(self, dataset_id: str) -> Dataset:
        """Give a data set, or raise `NotFound`."""
        with self._database.read() as connection:
            return _get(connection, dataset_id)

    def get_ready(self, dataset_id: str) -> Dataset:
        """Give a data set that can be used.

        Raises:
            NotFound, Conflict: its bytes are not read yet, or could not be.
        """
        found = self.get(dataset_id)
        if found.status != "ready":
            raise Conflict(f"Expected a data set that is ready; {dataset_id} is {found.status}.")
        return found

    def list(self, limit: int, after: str | None) -> tuple[Sequence[Dataset], str | None]:
        """Give a page of data sets, newest first, and the next cursor."""
        with self._database.read() as connection:
            rows, following = page(connection, sa.select(datasets), datasets.c.id, limit, after)
        return [Dataset(**row) for row in rows], following

    def forget_unused(self, moment: str, users: DatasetUsage, limit: int) -> int:
        """Remove at most `limit` data sets uploaded before a time that no version came from, and nothing unfinished."""
        document = versions.c.document
        names = (document["dataset"]["id"].as_string(), document["spec"]["validation"]["dataset"].as_string())
        is_source = sa.select(versions.c.version).where(
            versions.c.is_deleted.is_(False), sa.or_(*(datasets.c.id == name for name in names))
        )
        query = sa.select(datasets).where(
            datasets.c.created_at < moment, datasets.c.status != "processing", ~is_source.exists()
        )
        with self._changing:
            with self._database.write() as connection:
                old = [Dataset(**row) for row in connection.execute(query.order_by(datasets.c.id)).mappings()]
                unused = (each for each in old if not users.needs_dataset(connection, each.id, _tables(each)))
                gone = list(islice(unused, limit))
                connection.execute(sa.delete(datasets).where(datasets.c.id.in_([each.id for each in gone])))
                kept = _keys(connection) | users.table_keys(connection)
            self._delete_files(gone, kept)
        return len(gone)

    def path(self, table_key: str) -> Path:
        """Give the local file of a table."""
        return self._blobs.local(table_key)

    def raw_path(self, dataset: Dataset) -> Path:
        """Give the local file of a data set's uploaded bytes."""
        return self._blobs.local(dataset.raw_key)

    def replace_table(self, dataset_id: str, parsed: Parsed, was: str | None = None) -> Dataset:
        """Give a data set another reading of its bytes; jobs keep the one they were submitted with.

        Args:
            was: the table that the new reading corrects.

        Raises:
            NotFound, Conflict: it has another table than that by now.
        """
        table_key = _table_key(parsed)
        with self._changing, self._database.write() as connection:
            if was not in (None, _get(connection, dataset_id).table_key):
                raise Conflict(f"Data set {dataset_id} was corrected by somebody else meanwhile; try again.")
            self._blobs.put(table_key, parsed.path)
            change = sa.update(datasets).where(datasets.c.id == dataset_id).values(_described(parsed, table_key))
            connection.execute(change)
            return _get(connection, dataset_id)

    def delete(self, dataset_id: str, users: DatasetUsage) -> None:
        """Remove a data set.

        Raises:
            NotFound, Conflict: a queued or running job needs it.
        """
        with self._changing:
            with self._database.write() as connection:
                dataset = _get(connection, dataset_id)
                if users.needs_dataset(connection, dataset_id, _tables(dataset)):
                    raise Conflict(f"A queued or running job needs data set {dataset_id}; wait for it or cancel it.")
                connection.execute(sa.delete(datasets).where(datasets.c.id == dataset_id))
                kept = _keys(connection) | users.table_keys(connection)
            self._delete_files([dataset], kept)

    def _delete_files(self, gone: Sequence[Dataset], kept: set[str]) -> None:
        for key in {key for each in gone for key in (each.raw_key, *_tables(each))} - kept:
            self._blobs.delete(key)

    def sweep(self, users: DatasetUsage) -> None:
        """Remove stored files that nothing reads: what a crash before a row, or a corrected column, leaves."""
        with self._changing:
            found = {key for prefix in ("datasets", "tables") for key in self._blobs.keys(prefix, ORPHAN_SECONDS)}
            with self._database.read() as connection:
                kept = _keys(connection) | users.table_keys(connection)
            for key in found - kept:
                self._blobs.delete(key)


def _keys(connection: Connection) -> set[str]:
    return {key for row in connection.execute(sa.select(datasets.c.raw_key, datasets.c.table_key)) for key in row}


def _tables(dataset: Dataset) -> list[str]:
    """Give the key of a data set's table; one that was not read has none."""
    return [dataset.table_key] if dataset.table_key else []


def _new(name: str | None, raw: RawFile) -> dict[str, Any]:
    return {
        "id": new_id("ds"),
        "name": name,
        "format": raw.form,
        "size_bytes": raw.size_bytes,
        "sha256": raw.sha256,
        "raw_key": f"datasets/{raw.sha256}.{raw.form}",
        "created_at": now(),
        "rows": 0,
        "table_key": "",
        "columns": [],
        "warnings": [],
        "default_target": "",
    }


def _table_key(parsed: Parsed) -> str:
    return f"tables/{sha256_of(parsed.path)}.safetensors"


def _described(parsed: Parsed, table_key: str) -> Mapping[str, Any]:
    return {
        "status": "ready",
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
