"""Data sets: uploaded tables, addressed by their content. Knows nothing of how bytes become tables."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from app.errors import Conflict, NotFound
from app.names import new_id
from app.records.dataset import Dataset, DatasetError, DatasetStatus, ParsedTable, RawFile
from app.storage.blobs import ORPHAN_SECONDS, Blobs, sha256_of
from app.storage.database import Database
from app.storage.rows import now, page
from app.storage.tables import datasets, versions

_IS_PROCESSING = datasets.c.status == DatasetStatus.PROCESSING


class DatasetUsage(Protocol):
    """Who may need a data set or a table to stay."""

    def needs_dataset(self, connection: Connection, dataset_id: str, table_keys: Sequence[str]) -> bool:
        """Return whether something unfinished reads this data set, or one of these tables."""

    def table_keys(self, connection: Connection) -> set[str]:
        """Return the tables that may still be read, though their data sets may have others by now."""


class Datasets:
    """The room of data sets."""

    def __init__(self, database: Database, blobs: Blobs) -> None:
        self._database, self._blobs = database, blobs
        # between finding a blob present and adding its row nobody may delete the blob
        self._changing = threading.Lock()

    def find(self, sha256: str, form: str) -> Dataset | None:
        """Return the data set of these very bytes, or None."""
        query = sa.select(datasets).where(datasets.c.sha256 == sha256, datasets.c.format == form)
        with self._database.read() as connection:
            row = connection.execute(query).mappings().first()
        return None if row is None else _read(row)

    def get(self, dataset_id: str) -> Dataset:
        """Return a data set, or raise `NotFound`."""
        with self._database.read() as connection:
            return _get(connection, dataset_id)

    def get_ready(self, dataset_id: str) -> Dataset:
        """Return a data set that has a table.

        Raises:
            NotFound: there is no such data set.
            Conflict: its bytes are not read yet, or could not be.
        """
        dataset = self.get(dataset_id)
        if dataset.status != DatasetStatus.READY:
            raise Conflict(f"Expected a data set that is ready; {dataset_id} is {dataset.status}.")
        return dataset

    def list(self, limit: int, after: str | None) -> tuple[Sequence[Dataset], str | None]:
        """Return a page of data sets, newest first, and the next cursor."""
        with self._database.read() as connection:
            rows, following = page(connection, sa.select(datasets), datasets.c.id, limit, after)
        return [_read(row) for row in rows], following

    def processing(self) -> Sequence[Dataset]:
        """Return the data sets that are to be read, oldest first."""
        query = sa.select(datasets).where(_IS_PROCESSING).order_by(datasets.c.id)
        with self._database.read() as connection:
            return [_read(row) for row in connection.execute(query).mappings()]

    def path(self, table_key: str) -> Path:
        """Return the local file of a table."""
        return self._blobs.local(table_key)

    def raw_path(self, dataset: Dataset) -> Path:
        """Return the local file of a data set's uploaded bytes."""
        return self._blobs.local(dataset.raw_key)

    def add(self, name: str | None, raw: RawFile, table: ParsedTable) -> tuple[Dataset, bool]:
        """Store an upload, blobs first and then the row; consumes both files.

        Returns:
            The data set, and whether it is new: equal bytes give the one that is there.
        """
        table_key = _table_key(table)
        with self._changing:
            self._blobs.put(raw.key, raw.path)
            self._blobs.put(table_key, table.path)
            return self._insert(name, raw, _columns_of(table, table_key))

    def add_unread(self, name: str | None, raw: RawFile) -> tuple[Dataset, bool]:
        """Store an upload that is to be read later; consumes the file.

        Returns:
            The data set, and whether it is new: equal bytes give the one that is there.
        """
        with self._changing:
            self._blobs.put(raw.key, raw.path)
            return self._insert(name, raw, {"status": DatasetStatus.PROCESSING})

    def _insert(self, name: str | None, raw: RawFile, values: Mapping[str, object]) -> tuple[Dataset, bool]:
        with self._database.write() as connection:
            is_same = (datasets.c.sha256 == raw.sha256) & (datasets.c.format == raw.form)
            # what could not be read before may be read now: limits and parsers change
            connection.execute(sa.delete(datasets).where(is_same, datasets.c.status == DatasetStatus.FAILED))
            before = connection.execute(sa.select(datasets).where(is_same)).mappings().first()
            if before is None:
                dataset_id = new_id("ds")
                row = {"id": dataset_id, "name": name, **_new_row(raw), **values}
                connection.execute(sa.insert(datasets).values(row))
                return _get(connection, dataset_id), True
            # a small upload of the same bytes may be read before the data set's own turn comes
            connection.execute(sa.update(datasets).where(datasets.c.id == before["id"], _IS_PROCESSING).values(values))
            return _get(connection, before["id"]), False

    def finish(self, dataset_id: str, table: ParsedTable) -> None:
        """Make a data set ready; consumes the table file. Raise `NotFound` where the data set was deleted meanwhile."""
        table_key = _table_key(table)
        change = sa.update(datasets).where(datasets.c.id == dataset_id, _IS_PROCESSING)
        with self._changing:
            self._blobs.put(table_key, table.path)
            with self._database.write() as connection:
                _get(connection, dataset_id)
                connection.execute(change.values(_columns_of(table, table_key)))

    def fail(self, dataset_id: str, code: str, message: str) -> None:
        """Write that the bytes of a data set cannot be read, and why."""
        error: DatasetError = {"code": code, "message": message[:1000]}
        change = sa.update(datasets).where(datasets.c.id == dataset_id, _IS_PROCESSING)
        with self._database.write() as connection:
            connection.execute(change.values(status=DatasetStatus.FAILED, error=error))

    def replace_table(self, dataset_id: str, table: ParsedTable, replaced_key: str | None = None) -> Dataset:
        """Give a data set another table of its bytes; jobs keep the one that they were submitted with.

        Args:
            replaced_key: the table that the new one corrects; None is any.

        Raises:
            NotFound: there is no such data set.
            Conflict: it has another table than that by now.
        """
        table_key = _table_key(table)
        with self._changing, self._database.write() as connection:
            if replaced_key not in (None, _get(connection, dataset_id).table_key):
                raise Conflict(f"Data set {dataset_id} was corrected by somebody else meanwhile; try again.")
            self._blobs.put(table_key, table.path)
            change = sa.update(datasets).where(datasets.c.id == dataset_id)
            connection.execute(change.values(_columns_of(table, table_key)))
            return _get(connection, dataset_id)

    def delete(self, dataset_id: str, usage: DatasetUsage) -> None:
        """Delete a data set and its files.

        Raises:
            NotFound: there is no such data set.
            Conflict: a queued or running job needs it.
        """
        with self._changing:
            with self._database.write() as connection:
                dataset = _get(connection, dataset_id)
                if usage.needs_dataset(connection, dataset_id, dataset.table_keys):
                    raise Conflict(f"A queued or running job needs data set {dataset_id}; wait for it or cancel it.")
                connection.execute(sa.delete(datasets).where(datasets.c.id == dataset_id))
                kept = _keys(connection) | usage.table_keys(connection)
            self._delete_files([dataset], kept)

    def delete_unused(self, uploaded_before: str, usage: DatasetUsage, limit: int) -> int:
        """Delete at most `limit` data sets that no version and no unfinished job came from; return how many."""
        document = versions.c.document
        sources = (document["dataset"]["id"].as_string(), document["spec"]["validation"]["dataset"].as_string())
        is_source = sa.select(versions.c.version).where(
            versions.c.is_deleted.is_(False), sa.or_(*(datasets.c.id == source for source in sources))
        )
        query = sa.select(datasets).where(datasets.c.created_at < uploaded_before, ~_IS_PROCESSING, ~is_source.exists())
        with self._changing:
            with self._database.write() as connection:
                old = [_read(row) for row in connection.execute(query.order_by(datasets.c.id)).mappings()]
                unused = (one for one in old if not usage.needs_dataset(connection, one.id, one.table_keys))
                deleted = list(islice(unused, limit))
                connection.execute(sa.delete(datasets).where(datasets.c.id.in_([dataset.id for dataset in deleted])))
                kept = _keys(connection) | usage.table_keys(connection)
            self._delete_files(deleted, kept)
        return len(deleted)

    def _delete_files(self, deleted: Sequence[Dataset], kept: set[str]) -> None:
        for key in {key for dataset in deleted for key in (dataset.raw_key, *dataset.table_keys)} - kept:
            self._blobs.delete(key)

    def sweep(self, usage: DatasetUsage) -> None:
        """Delete stored files that nothing reads: a crash before a row, or a corrected column, leaves some."""
        with self._changing:
            stored = {key for prefix in ("datasets", "tables") for key in self._blobs.keys(prefix, ORPHAN_SECONDS)}
            with self._database.read() as connection:
                kept = _keys(connection) | usage.table_keys(connection)
            for key in stored - kept:
                self._blobs.delete(key)


def _get(connection: Connection, dataset_id: str) -> Dataset:
    row = connection.execute(sa.select(datasets).where(datasets.c.id == dataset_id)).mappings().first()
    if row is None:
        raise NotFound("data set", dataset_id)
    return _read(row)


def _read(row: RowMapping) -> Dataset:
    return Dataset(**{**row, "status": DatasetStatus(row["status"])})


def _keys(connection: Connection) -> set[str]:
    return {key for row in connection.execute(sa.select(datasets.c.raw_key, datasets.c.table_key)) for key in row}


def _new_row(raw: RawFile) -> Mapping[str, object]:
    """Return the columns of a row that a raw file decides, and empty ones of the table that there is not yet."""
    return {
        "format": raw.form,
        "size_bytes": raw.size_bytes,
        "sha256": raw.sha256,
        "raw_key": raw.key,
        "created_at": now(),
        "rows": 0,
        "table_key": "",
        "columns": [],
        "warnings": [],
        "default_target": "",
    }


def _table_key(table: ParsedTable) -> str:
    return f"tables/{sha256_of(table.path)}.safetensors"


def _columns_of(table: ParsedTable, table_key: str) -> Mapping[str, object]:
    """Return the columns of a row that a table decides."""
    return {
        "status": DatasetStatus.READY,
        "table_key": table_key,
        "rows": table.rows,
        "columns": table.columns,
        "warnings": table.warnings,
        "default_target": table.default_target,
    }
