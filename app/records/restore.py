"""Putting a backup where there is no data yet.

A backup may come from anybody. So a restore takes only rows of the service's own tables from the backup's database.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import sqlalchemy as sa

from app.errors import Conflict, Corrupt, FitserveError, Invalid, StorageFull, is_disk_full
from app.learning.artifact.artifact_files import load_artifact
from app.records.backup import DATABASE, FOLDERS, FORMAT, HEADER, exclusive_staging, list_contents
from app.records.job import job_id_of
from app.records.job_status import ACTIVE
from app.storage.blobs import fsync, make_folder, sha256_of
from app.storage.database import Database
from app.storage.job_queue import JobQueue
from app.storage.migrate import migrate
from app.storage.tables import datasets, jobs, metadata, versions

#: what the key of a blob looks like
_KEY = re.compile(rf"({'|'.join(FOLDERS)})/[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_REVISION = re.compile(r"[0-9]{4}")


def restore(source: Path, database_file: Path, store: Path) -> dict[str, int]:
    """Put a backup where there is no data yet. Every file is checked against its digest first.

    The new database gets the rows of the service's own tables and nothing else. Jobs that were queued or running are
    enqueued again. The database comes last, so that no service takes what an interrupted restore left for its data.

    Args:
        source: the backup.
        database_file: the SQLite file to make.
        store: the folder of blobs.

    Returns:
        The numbers of `datasets` and `versions`.

    Raises:
        Conflict: there is data already.
        Invalid: the file is no backup of a format that this release reads.
        Corrupt: some bytes differ from those that were stored.
        Unavailable: a later release wrote the backup.
        StorageFull, OSError: a file cannot be written.
    """
    # SQLite would play a journal that lies there back into the new database
    files = (database_file, *(database_file.with_name(database_file.name + end) for end in ("-journal", "-wal")))
    present = [path for path in (*files, *(store / name for name in FOLDERS)) if path.exists()]
    if present:
        raise Conflict(f"Expected no data where a backup is restored; {str(present[0])!r} exists.")
    make_folder(database_file.parent)
    part = database_file.with_name(f".{database_file.name}.part")
    with exclusive_staging(store) as folder:
        try:
            archive = folder / "archive"
            _extract(source, archive)
            _copy_rows(archive / DATABASE, folder / DATABASE)
            counts, keys = list_contents(folder / DATABASE)
            _check(folder / DATABASE, archive / "store", keys)
            _enqueue(folder / DATABASE)
            shutil.copyfile(folder / DATABASE, part)
            part.chmod(0o600)
            _sync(archive)
            _sync(part)
            for name in FOLDERS:
                if (archive / "store" / name).exists():
                    (archive / "store" / name).rename(store / name)
                    (store / name).chmod(0o700)
                    fsync(store / name)
            fsync(store)
            part.rename(database_file)
            fsync(database_file.parent)
        finally:
            part.unlink(missing_ok=True)
    return counts


def _extract(source: Path, folder: Path) -> None:
    try:
        with tarfile.open(source, "r:") as archive:
            # the filter refuses every path that leads outside
            archive.extractall(folder, _plain(archive.getmembers()), filter="data")
        header = json.loads((folder / HEADER).read_bytes())
    except (tarfile.TarError, OSError, ValueError) as error:
        if is_disk_full(error):
            raise
        raise Invalid(f"Expected a backup that `fitserve backup` wrote: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or not (folder / DATABASE).is_file():
        raise Invalid(f"Expected a backup of format {FORMAT}, got another.")
    if header.get("database_sha256") != sha256_of(folder / DATABASE):
        raise Corrupt("The database in the backup differs from its digest.")


def _plain(members: list[tarfile.TarInfo]) -> list[tarfile.TarInfo]:
    """Return files and folders, with the mode for their owner alone; raise for a member that is neither."""
    for member in members:
        if not (member.isfile() or member.isdir()):
            raise tarfile.SpecialFileError(member)
        member.mode = 0o600
    return members


def _copy_rows(source: Path, target: Path) -> None:
    """Make a database of the present schema, with the rows that the service's own tables have in another database.

    The rest stays behind: the tables of the job engine, whose rows name the format in which they are read; triggers and
    views, which would run with the service's statements.
    """
    url = f"sqlite:///{target}"
    # with `immutable` SQLite does not play back a journal that lies beside the file
    address = f"{source.absolute().as_uri()}?immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as old, closing(sqlite3.connect(target)) as new:
            old.execute("PRAGMA trusted_schema=OFF")
            plain = {name for (name,) in old.execute("SELECT name FROM pragma_table_list WHERE type = 'table'")}
            revisions = [str(row[0]) for row in old.execute("SELECT version_num FROM alembic_version")]
            if len(revisions) != 1 or not _REVISION.fullmatch(revisions[0]):
                raise Corrupt(f"Expected one revision of our schema in the backup's database, got {revisions[:2]}.")
            migrate(url, revisions[0])
            for table in metadata.tables:
                # names in brackets: SQLite takes a name in quotes that it does not find for a text
                columns = [f"[{row[1]}]" for row in new.execute(f"PRAGMA table_info({table})")]
                # a table of a later revision has no columns yet
                if columns and table not in plain:
                    raise Corrupt(f"Expected a table {table!r} in the backup's database.")
                if columns:
                    _copy_table(old, new, table, columns)
            new.commit()
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            raise StorageFull("The disk is full; nothing was restored.") from error
        raise Corrupt(f"The database in the backup cannot be copied: {error}") from error
    migrate(url)


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str, columns: list[str]) -> None:
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    # the names come from the service's own schema
    rows = old.execute(f"SELECT {names} FROM {table}")  # noqa: S608
    new.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)  # noqa: S608


def _enqueue(database_file: Path) -> None:
    """Enqueue every queued or running job, the oldest first."""
    url = f"sqlite:///{database_file}"
    database, queue = Database(url), JobQueue(url)
    try:
        with database.write() as connection:
            query = sa.select(jobs.c.id, jobs.c.workflow_id).where(jobs.c.status.in_(ACTIVE)).order_by(jobs.c.id)
            for job_id, workflow_id in connection.execute(query).all():
                if job_id_of(str(workflow_id)) != job_id:
                    raise Corrupt(f"Expected work named after job {job_id!r}, got {workflow_id!r}.")
                queue.enqueue(connection, workflow_id, job_id)
    finally:
        queue.close()
        database.close()


def _check(database_file: Path, store: Path, keys: set[str]) -> None:
    """Raise `Invalid` or `Corrupt` where a blob has a strange name, is missing, or differs from its digest."""
    for key in sorted(keys):
        if not _KEY.fullmatch(key):
            raise Invalid(f"Expected the names of stored files, got {key[:80]!r}.")
        if not (store / key).exists():
            raise Corrupt(f"Blob {key} is not in the backup.")
    database = Database(f"sqlite:///{database_file}")
    try:
        with database.read() as connection:
            raw = connection.execute(sa.select(datasets.c.raw_key, datasets.c.sha256)).all()
            live = connection.execute(sa.select(versions).where(versions.c.is_deleted.is_(False))).all()
    finally:
        database.close()
    for row in raw:
        if sha256_of(store / row.raw_key) != row.sha256:
            raise Corrupt(f"Data set file {row.raw_key} differs from its digest.")
    for key in keys:
        if key.startswith("tables/") and sha256_of(store / key) != Path(key).stem:
            raise Corrupt(f"Table {key} differs from its digest.")
    for version in live:
        try:
            load_artifact(store / version.key, version.sha256)
        except FitserveError as error:
            raise Corrupt(f"Version {version.model}@{version.version}: {error.message}") from error


def _sync(top: Path) -> None:
    """Make a file or a tree durable, files before the folders that name them."""
    for path in [*sorted(top.rglob("*"), reverse=True), top]:
        fsync(path)
