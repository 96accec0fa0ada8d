"""The metadata database: its engine and its transactions. Does not know the tables.

SQLite runs with a rollback journal: write-ahead logging has a corruption bug in the releases that distributions ship
(sqlite.org, "WAL-reset bug", fixed in 3.51.3). `synchronous` is EXTRA, not FULL. A commit ends when the journal is
removed. FULL does not sync the directory after that: a power cut may bring the journal back, and then SQLite rolls back
what was committed (sqlite.org, "PRAGMA synchronous").
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Invalid, StorageFull, Unavailable

_POSTGRES_DISK_FULL = "53100"
#: what a wrong statement raises; the other errors of a driver say that the database is away
_OUR_FAULTS = (sa.exc.IntegrityError, sa.exc.ProgrammingError, sa.exc.DataError, sa.exc.NotSupportedError)

#: whether SQLite knows `unixepoch('subsec')`; that of Debian 12, and of images built on it, does not
HAS_SUBSEC = sqlite3.sqlite_version_info >= (3, 42)

#: how long another process's commit may go unnoticed on PostgreSQL
STAMP_SECONDS = 0.5
#: how long a connection of SQLite waits for a lock of another
_BUSY_MILLISECONDS = 30_000
#: where SQLite keeps the number of commits (https://www.sqlite.org/fileformat.html, 1.3.7)
_CHANGE_COUNTER = 24


class Database:
    """Transactions on one database, in SQL that SQLite and PostgreSQL both speak.

    Args:
        url: `sqlite:///path` or `postgresql+psycopg://…`.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.is_sqlite = url.startswith("sqlite")
        if self.is_sqlite:
            # every pool of this process is meant: the job engine opens pools of its own
            sa.event.listen(sa.Pool, "connect", _set_sqlite_up)
            self.engine = sa.create_engine(url, connect_args={"check_same_thread": False})
            sa.event.listen(self.engine, "connect", _set_ours_up)
            sa.event.listen(self.engine, "begin", _begin)
        else:
            self.engine = sa.create_engine(url, pool_pre_ping=True)
        self._reads = {} if self.is_sqlite else {"isolation_level": "REPEATABLE READ"}
        self._writes = 0
        self._file: int | None = None
        self._opening = threading.Lock()

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end; on SQLite it holds the write lock from its start.

        Raises:
            StorageFull: the disk is; nothing was written.
            Unavailable: the database is away; only where it went during the commit may the transaction be there.
        """
        try:
            with self._open(writes=True) as connection:
                yield connection
        finally:
            self._writes += 1

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that sees one state; it is for reading.

        Raises:
            Unavailable: the database is away.
            Invalid: a text that PostgreSQL cannot hold; `write` too.
        """
        with self._open(**self._reads) as connection:
            yield connection

    @contextmanager
    def _open(self, **options: Any) -> Iterator[Connection]:
        try:
            with self.engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection
        except (sa.exc.DatabaseError, sa.exc.InterfaceError, sa.exc.TimeoutError) as error:
            driver = getattr(error, "orig", None)
            if isinstance(error, sa.exc.DataError) and "NUL" in str(driver):
                # PostgreSQL's texts have none; SQLite's may, and then nothing has that name
                raise Invalid("Expected texts without NUL characters, got one with.") from error
            if isinstance(error, _OUR_FAULTS):
                raise
            is_full = getattr(driver, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
            if is_full or getattr(driver, "sqlstate", None) == _POSTGRES_DISK_FULL:
                raise StorageFull("The database's disk is full; nothing was stored.") from error
            raise Unavailable("The database cannot be reached; try again.") from error

    def ping(self) -> None:
        """Raise `Unavailable` where the database cannot answer."""
        with self.read() as connection:
            connection.execute(sa.text("SELECT 1"))

    def stamp(self) -> object:
        """Give a value that equals an earlier one only where nobody can have committed in between; asks for no lock.

        On SQLite that is the file's change counter, which every commit of every process moves. On PostgreSQL another
        process's commit is noticed within `STAMP_SECONDS`.
        """
        if not self.is_sqlite:
            return self._writes, int(time.monotonic() / STAMP_SECONDS)
        try:
            return os.pread(self._counter_file(), 4, _CHANGE_COUNTER)
        except OSError:
            return object()

    def _counter_file(self) -> int:
        # opened once: to close a file takes every lock off it that this process has (POSIX), SQLite's own too
        if self._file is None:
            with self._opening:
                if self._file is None:
                    self._file = os.open(str(self.engine.url.database), os.O_RDONLY)
        return self._file

    def close(self) -> None:
        """Close every pooled connection, and the file after them."""
        self.engine.dispose()
        with self._opening:
            if self._file is not None:
                os.close(self._file)
            self._file = None


def _set_sqlite_up(connection: Any, _record: Any) -> None:
    """Make a connection wait for locks and commit durably, whoever opened it; those of PostgreSQL are left alone."""
    if not isinstance(connection, sqlite3.Connection):
        return
    # busy_timeout comes first: to set `synchronous` SQLite reads the schema, which another process may have locked
    for pragma in (f"busy_timeout={_BUSY_MILLISECONDS}", "synchronous=EXTRA"):
        connection.execute(f"PRAGMA {pragma}")
    if not HAS_SUBSEC:
        # DBOS uses `unixepoch('subsec')` from Python 3.12 on, whatever SQLite there is
        connection.create_function("unixepoch", -1, _unixepoch)


def _set_ours_up(connection: Any, _record: Any) -> None:
    # SQLAlchemy, not the driver, begins transactions: a deferred upgrade from read to write fails at once
    # with SQLITE_BUSY_SNAPSHOT and no time-out helps
    connection.isolation_level = None
    # without subsec the engine's column defaults call the function of `_set_sqlite_up`, which a schema has to be trusted for
    trusted = f"trusted_schema={'OFF' if HAS_SUBSEC else 'ON'}"
    for pragma in ("journal_mode=DELETE", "foreign_keys=ON", trusted):
        connection.execute(f"PRAGMA {pragma}")


def _unixepoch(*arguments: str) -> float | None:
    return time.time() if arguments == ("subsec",) else None


def _begin(connection: Connection) -> None:
    is_write = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if is_write else "BEGIN")
