"""Writing a backup: one file with everything that a service has stored, while the service runs.

A backup is a tar of the database and of every blob that the database names. SQLite's own online backup copies the
database. The blobs never change, but a deletion may take one away before it is copied. Then the database is copied
again. `restore` reads a backup.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from app.errors import Conflict, Invalid
from app.records.job_status import JobStatus
from app.storage.blobs import LocalBlobs, fsync, sha256_of
from app.storage.database import Database
from app.storage.tables import datasets, jobs, versions
from app.system.file_lock import hold

#: the number in the header, by which a release recognises a backup that it can read
FORMAT = 1
#: members of the tar
DATABASE = "fitserve.db"
HEADER = "backup.json"
#: the folders of a store that a backup holds
FOLDERS = ("datasets", "tables", "versions")
#: the label of staging folders
_LABEL = "backup"
#: copies of the database, each made after a deletion took a blob away, before the backup fails
_ATTEMPTS = 20


def database_file_of(url: str) -> Path:
    """Return the file of a database's address, or raise `Invalid` where the address is not one of SQLite."""
    address = sa.make_url(url)
    if address.get_backend_name() != "sqlite" or not address.database:
        raise Invalid("backup and restore are of SQLite; use pg_dump for PostgreSQL, then copy the store")
    return Path(address.database)


def backup(database_file: Path, store: Path, target: Path) -> dict[str, int]:
    """Write a backup. The file appears under its name when it is whole and durable.

    Args:
        database_file: the SQLite file of a service, running or not.
        store: the folder of blobs.

    Returns:
        The numbers of `datasets`, `versions` and `bytes` in the backup.

    Raises:
        Conflict: the target exists; or blobs were deleted faster than they could be copied.
        Invalid: there is no database.
        StorageFull, OSError: a file cannot be read or written.
    """
    if target.exists():
        raise Conflict(f"Expected a new file to write to; {str(target)!r} exists.")
    if not database_file.is_file():
        raise Invalid(f"Expected a service's database; there is no {str(database_file)!r}.")
    # staging is on the store's disk, so that blobs are linked, not copied; a link outlives the blob's deletion
    with exclusive_staging(store) as staging:
        missing: str | None = None
        for attempt in range(_ATTEMPTS):
            folder = staging / str(attempt)
            folder.mkdir(mode=0o700)
            _copy_database(database_file, folder / DATABASE)
            counts, keys = list_contents(folder / DATABASE)
            missing = _link_all(keys, store, folder)
            if missing is None:
                break
        else:
            raise Conflict(f"Expected every stored file to stay while it is copied; {missing} was away each time.")
        header = {"format": FORMAT, "database_sha256": sha256_of(folder / DATABASE), **counts}
        (folder / HEADER).write_text(json.dumps(header), encoding="utf-8")
        return counts | {"bytes": _write_tar(folder, target)}


@contextmanager
def exclusive_staging(store: Path) -> Iterator[Path]:
    """Yield a staging folder to the one backup or restore of a store; what a killed one left is deleted first.

    Raises:
        SystemExit: another one runs.
    """
    blobs = LocalBlobs(store)
    held = hold(store / "backup.lock", "another backup or restore")
    try:
        blobs.sweep(_LABEL)
        with blobs.staging(_LABEL) as folder:
            yield folder
    finally:
        os.close(held)


def _copy_database(source: Path, target: Path) -> None:
    # opened for writing, so that SQLite first rolls back a transaction that a kill cut off
    address = f"{source.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=30)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)


def list_contents(database_file: Path) -> tuple[dict[str, int], set[str]]:
    """Return the numbers of `datasets` and `versions` in a database, and the keys of all blobs that it needs."""
    database = Database(f"sqlite:///{database_file}")
    try:
        with database.read() as connection:
            tables = connection.execute(sa.select(datasets.c.raw_key, datasets.c.table_key)).all()
            # a job that has not succeeded goes on, or may be resumed while its data set is there
            is_resumable = (jobs.c.status != JobStatus.SUCCEEDED) & jobs.c.dataset_id.in_(sa.select(datasets.c.id))
            used = sa.select(jobs.c.table_key, jobs.c.validation_table_key).where(is_resumable)
            waiting = connection.execute(used).all()
            live = sa.select(versions.c.key).where(versions.c.is_deleted.is_(False))
            folders = connection.execute(live).scalars().all()
    finally:
        database.close()
    keys = {key for row in (*tables, *waiting) for key in row if key} | set(folders)
    return {"datasets": len(tables), "versions": len(folders)}, keys


def _link_all(keys: set[str], store: Path, folder: Path) -> str | None:
    """Link blobs into a folder; return the key of a blob that is gone, or None where all are linked."""
    for key in sorted(keys):
        source, target = store / key, folder / "store" / key
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if source.is_dir():
                shutil.copytree(source, target, copy_function=os.link)
            else:
                os.link(source, target)
        except (FileNotFoundError, shutil.Error):
            if source.exists():
                raise
            return key
    return None


def _write_tar(folder: Path, target: Path) -> int:
    part = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
    try:
        # a backup holds all data: only its owner may read it
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as archive:
                for path in (folder / HEADER, folder / DATABASE, folder / "store"):
                    if path.exists():
                        archive.add(path, path.name, filter=_anonymous)
            file.flush()
            os.fsync(file.fileno())
        part.rename(target)
        fsync(target.parent)
    finally:
        part.unlink(missing_ok=True)
    return target.stat().st_size


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
