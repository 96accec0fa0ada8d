"""A real PostgreSQL of the tests' own: a temporary data directory, a Unix socket, no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

START_SECONDS = 60.0
_EMPTY = """
SET LOCAL lock_timeout = '10s';
SET LOCAL session_replication_role = replica;
DO $$ DECLARE found record; BEGIN
    FOR found IN SELECT schemaname, tablename FROM pg_tables
        WHERE schemaname IN ('public', 'dbos') AND tablename NOT IN ('alembic_version', 'dbos_migrations')
    LOOP EXECUTE 'DELETE FROM ' || quote_ident(found.schemaname) || '.' || quote_ident(found.tablename); END LOOP;
END $$
"""


def find_programs() -> Path | None:
    """Give the folder of PostgreSQL's own programs, or None: Debian keeps them off the PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


@dataclass
class Postgres:
    """One server; `create` gives each test a database of its own."""

    programs: Path
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="postgres-")))
    _created: int = 0
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Make a cluster and wait until it answers."""
        who: dict[str, Any] = {"cwd": "/"}
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(self.folder, "postgres", "postgres")
            who |= {"user": "postgres", "group": "postgres", "extra_groups": []}
        data, log = self.folder / "data", self.folder.with_suffix(".log")
        make = [
            str(self.programs / "initdb"),
            "-D",
            str(data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
        ]
        subprocess.run(make, check=True, capture_output=True, timeout=START_SECONDS, **who)
        serve = [str(self.programs / "postgres"), "-D", str(data), "-k", str(self.folder), "-c", "listen_addresses="]
        with log.open("wb") as output:
            self._process = subprocess.Popen([*serve, "-c", "fsync=off"], stdout=output, stderr=output, **who)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            is_waiting = time.monotonic() < deadline and self._process.poll() is None
            assert is_waiting, f"PostgreSQL did not start:\n{log.read_text(errors='replace')}"
            time.sleep(0.05)
        return self

    def url(self, database: str) -> str:
        """Give a database's address."""
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    def create(self, template: str, name: str = "") -> str:
        """Make a database like another one; gives its name."""
        self._created += 1
        name = name or f"test{self._created}"
        engine = sa.create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return name

    def empty(self, database: str) -> str:
        """Delete every row of a migrated database, which is quicker than another one; gives its address."""
        engine = sa.create_engine(self.url(database), poolclass=sa.NullPool)
        with engine.begin() as connection:
            connection.exec_driver_sql(_EMPTY)
        return self.url(database)

    def stop(self) -> None:
        """End the server and remove its files."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.with_suffix(".log").unlink(missing_ok=True)

    def _answers(self) -> bool:
        engine = sa.create_engine(self.url("postgres"), poolclass=sa.NullPool)
        try:
            engine.connect().close()
        except sa.exc.OperationalError:
            return False
        return True
