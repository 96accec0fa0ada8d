"""One file with everything that a service knows, taken while it runs, and put back elsewhere.

A backup is a tar of the database and of every blob that it names. The database is copied by SQLite's own online
backup, and the blobs never change; those that a deletion takes away in between are noticed, and the copy of the
database is made again.

A backup that is restored may come from anybody, so only rows of our own tables are taken from its database. What only
a restore needs is imported when it runs: a backup starts a second sooner.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa

from app.errors import Conflict, Corrupt, FitserveError, Invalid, StorageFull, is_disk_full
from app.learning.artifact.artifact_files import load_artifact
from app.storage.blobs import LocalBlobs, fsync, make_folder, sha256_of
from app.storage.database import Database
from app.storage.tables import datasets, jobs, metadata, versions
from app.system.file_lock import hold

FORMAT = 1
#: the label of staging folders
_LABEL = "backup"
_DATABASE = "fitserve.db"
_HEADER = "backup.json"
#: the folders of a store that hold blobs
_FOLDERS = ("datasets", "tables", "versions")
_KEY = re.compile(rf"({'|'.join(_FOLDERS)})/[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_REVISION = re.compile(r"[0-9]{4}")
#: how often a deletion may come between before we give up
_ATTEMPTS = 20


def database_file_of(url: str) -> Path:
    """Give the file of a database's address; `Invalid` where it is none of SQLite."""
    address = sa.make_url(url)
    if address.get_backend_name() != "sqlite" or not address.database:
        raise Invalid("backup and restore are of SQLite; use pg_dump for PostgreSQL, then copy the store")
    return Path(address.database)


def backup(database_file: Path, store: Path, target: Path) -> dict[str, int]:
    """Write a backup; it appears under its name when it is whole and durable.

    Args:
        database_file: the SQLite file of a service, running or not.
        store: the folder of blobs.

    Returns:
        How many data sets, versions and bytes it holds.

    Raises:
        Conflict: the target exists; or things were deleted faster than they could be copied.
        Invalid: there is no database.
        StorageFull, OSError: a file cannot be read or written.
    """
    if target.exists():
        raise Conflict(f"Expected a new file to write to; {str(target)!r} exists.")
    if not database_file.is_file():
        raise Invalid(f"Expected a service's database; there is no {str(database_file)!r}.")
    # in the store, so that a blob is linked and not copied, and stays when it is deleted meanwhile
    with _alone(store) as staging:
        lacking: str | None = None
        for attempt in range(_ATTEMPTS):
            folder = staging / str(attempt)
            folder.mkdir(mode=0o700)
            _copy_database(database_file, folder / _DATABASE)
            counts, keys = _contents(folder / _DATABASE)
            lacking = _link_all(keys, store, folder)
            if lacking is None:
                break
        else:
            raise Conflict(f"Expected every stored file to stay while it is copied; {lacking} was away each time.")
        header = {"format": FORMAT, "database_sha256": sha256_of(folder / _DATABASE), **counts}
        (folder / _HEADER).write_text(json.dumps(header), encoding="utf-8")
        return counts | {"bytes": _write_tar(folder, target)}


@contextmanager
def _alone(store: Path) -> Iterator[Path]:
    """Give a staging folder to the one backup or restore of a store, and remove what a killed one left.

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
    # to be written: what a kill left half done is rolled back first
    address = f"{source.absolute().as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=30)) as live, closing(sqlite3.connect(target)) as copy:
        live.backup(copy)


def _contents(database_file: Path) -> tuple[dict[str, int], set[str]]:
    """Count what a database describes, and list the keys of every blob that it needs."""
    database = Database(f"sqlite:///{database_file}")
    try:
        with database.read() as connection:
            tables = connection.execute(sa.select(datasets.c.raw_key, datasets.c.table_key)).all()
            # what has not succeeded goes on, or may be resumed while its data set is there
            is_resumable = (jobs.c.status != "succeeded") & jobs.c.dataset_id.in_(sa.select(datasets.c.id))
            used = sa.select(jobs.c.table_key, jobs.c.validation_table_key).where(is_resumable)
            waiting = connection.execute(used).all()
            live = sa.select(versions.c.key).where(versions.c.is_deleted.is_(False))
            folders = connection.execute(live).scalars().all()
    finally:
        database.close()
    keys = {key for row in (*tables, *waiting) for key in row if key} | set(folders)
    return {"datasets": len(tables), "versions": len(folders)}, keys


def _link_all(keys: set[str], store: Path, folder: Path) -> str | None:
    """Link blobs into a folder; gives the key of one that is gone, or None."""
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
        # the mode of what only its owner may read
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, dereference=True) as archive:
                for path in (folder / _HEADER, folder / _DATABASE, folder / "store"):
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


def restore(source: Path, database_file: Path, store: Path) -> dict[str, int]:
    """Put a backup where there is no data yet; every file is checked against its digest before it counts.

    The database is made anew, and gets the rows of our own tables and nothing else. Jobs that were queued or running are
    enqueued again. The database comes last: what an interrupted restore leaves is not taken for a service's data.

    Returns:
        How many data sets and versions came back.

    Raises:
        Conflict: there is data already.
        Invalid: the file is no backup of a format that this release reads.
        Corrupt: something in it is not, to the bit, what was stored.
        Unavailable: a later release wrote it.
        StorageFull, OSError: a file cannot be written.
    """
    # a journal without its database would be played back into the new one
    files = (database_file, *(database_file.with_name(database_file.name + end) for end in ("-journal", "-wal")))
    present = [path for path in (*files, *(store / name for name in _FOLDERS)) if path.exists()]
    if present:
        raise Conflict(f"Expected no data where a backup is restored; {str(present[0])!r} exists.")
    make_folder(database_file.parent)
    part = database_file.with_name(f".{database_file.name}.part")
    with _alone(store) as folder:
        try:
            archive = folder / "archive"
            _extract(source, archive)
            _copy_rows(archive / _DATABASE, folder / _DATABASE)
            counts, keys = _contents(folder / _DATABASE)
            _check(folder / _DATABASE, archive / "store", keys)
            _enqueue(folder / _DATABASE)
            shutil.copyfile(folder / _DATABASE, part)
            part.chmod(0o600)
            _sync(archive)
            _sync(part)
            for name in _FOLDERS:
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
            # refuses every path that leads outside
            archive.extractall(folder, _plain(archive.getmembers()), filter="data")
        header = json.loads((folder / _HEADER).read_bytes())
    except (tarfile.TarError, OSError, ValueError) as error:
        if is_disk_full(error):
            raise
        raise Invalid(f"Expected a backup that `fitserve backup` wrote: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT or not (folder / _DATABASE).is_file():
        raise Invalid(f"Expected a backup of format {FORMAT}, got another.")
    if header.get("database_sha256") != sha256_of(folder / _DATABASE):
        raise Corrupt("The database in the backup differs from its digest.")


def _plain(members: list[tarfile.TarInfo]) -> list[tarfile.TarInfo]:
    """Give files and folders, readable by their owner alone; refuse what is neither."""
    for member in members:
        if not (member.isfile() or member.isdir()):
            raise tarfile.SpecialFileError(member)
        member.mode = 0o600
    return members


def _copy_rows(source: Path, target: Path) -> None:
    """Make a database of the present schema with the rows of our own tables in another one.

    The rest stays behind: the tables of the job engine, whose rows name the format in which they are read; triggers and
    views, which would run with our statements.
    """
    from app.storage.migrate import migrate

    url = f"sqlite:///{target}"
    # with `immutable` SQLite plays no journal back that lies beside the file
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
                # in brackets: SQLite takes a name in quotes that it does not find for a text
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
    # all names are of our own schema
    rows = old.execute(f"SELECT {names} FROM {table}")  # noqa: S608
    new.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", rows)  # noqa: S608


def _enqueue(database_file: Path) -> None:
    """Enqueue every queued or running job, the oldest first."""
    from app.records.job_status import ACTIVE
    from app.storage.job_queue import JobQueue

    url = f"sqlite:///{database_file}"
    database, queue = Database(url), JobQueue(url)
    try:
        with database.write() as connection:
            query = sa.select(jobs.c.id, jobs.c.workflow_id).where(jobs.c.status.in_(ACTIVE)).order_by(jobs.c.id)
            for job_id, workflow_id in connection.execute(query).all():
                if str(workflow_id).rpartition(".")[0] != job_id:
                    raise Corrupt(f"Expected work named after job {job_id!r}, got {workflow_id!r}.")
                queue.enqueue(connection, workflow_id, job_id)
    finally:
        queue.close()
        database.close()


def _check(database_file: Path, store: Path, keys: set[str]) -> None:
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
    for key in (key for key in keys if key.startswith("tables/")):
        if sha256_of(store / key) != Path(key).stem:
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
