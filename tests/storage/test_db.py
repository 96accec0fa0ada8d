"""The contract of `Database` on SQLite and on PostgreSQL, and the schema that the migrations make."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from app.client import Client
from app.errors import Invalid, StorageFull, Unavailable
from app.storage.database import STAMP_SECONDS, Database
from app.storage.migrate import migrate
from app.storage.rows import now, page
from app.storage.tables import events, metadata, models, workers
from tests.service import ROOT

BOTH = ["sqlite", "postgres"]
on_both_databases = pytest.mark.parametrize("database_url", BOTH, indirect=True)


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = Database(database_url)
    yield opened
    opened.close()


def add_model(database: Database, name: str, latest: int = 0) -> None:
    with database.write() as connection:
        connection.execute(sa.insert(models).values(name=name, latest_version=latest, created_at=now()))


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.execute(sa.select(models.c.name).order_by(models.c.name)).scalars())


@on_both_databases
def test_what_a_transaction_writes_is_there_for_another_connection(database: Database, database_url: str) -> None:
    add_model(database, "a")

    other = Database(database_url)
    found = names(other)
    other.close()

    assert ["a"] == found


@on_both_databases
def test_a_stamp_is_another_after_a_commit_of_this_process(database: Database) -> None:
    before = database.stamp()
    add_model(database, "a")
    after = database.stamp()

    assert before != after


@on_both_databases
def test_a_stamp_is_another_soon_after_a_commit_of_another_process(database: Database, database_url: str) -> None:
    names(database)
    before = database.stamp()
    assert before == database.stamp() or not database.is_sqlite
    other = Database(database_url)
    add_model(other, "a")
    other.close()

    if not database.is_sqlite:
        time.sleep(STAMP_SECONDS)
    assert before != database.stamp()


def test_reading_and_a_transaction_that_fails_leave_a_stamp_as_it_is(database: Database) -> None:
    add_model(database, "a")
    before = database.stamp()

    names(database)
    with suppress(ZeroDivisionError), database.write() as connection:
        connection.execute(sa.insert(models).values(name="b", latest_version=0, created_at=now()))
        raise ZeroDivisionError

    assert before == database.stamp()


def test_the_stamp_of_a_database_that_is_away_equals_no_other(database_url: str) -> None:
    database = Database(database_url.replace("fitserve.db", "nowhere.db"))

    assert database.stamp() != database.stamp()


@on_both_databases
def test_a_transaction_that_fails_leaves_nothing(database: Database) -> None:
    def write_and_fail() -> None:
        with database.write() as connection:
            connection.execute(sa.insert(models).values(name="a", latest_version=1, created_at=now()))
            raise RuntimeError("expected")

    with pytest.raises(RuntimeError, match="expected"):
        write_and_fail()

    assert names(database) == []


@on_both_databases
def test_a_text_that_a_database_cannot_hold_is_a_fact(database: Database) -> None:
    with suppress(Invalid):
        add_model(database, "a\0b")
        assert ["a\0b"] == names(database)

    assert "sqlite" in database.url or [] == names(database)


@on_both_databases
def test_a_read_sees_one_state_whatever_is_written_meanwhile(database: Database) -> None:
    with ThreadPoolExecutor(1) as pool:
        with database.read() as connection:
            before = connection.execute(sa.select(sa.func.count()).select_from(models)).scalar()
            writing = pool.submit(add_model, database, "a")
            time.sleep(0.3)
            after = connection.execute(sa.select(sa.func.count()).select_from(models)).scalar()
        writing.result(timeout=30)

    assert (0, 0) == (before, after)
    assert ["a"] == names(database)


@on_both_databases
def test_concurrent_writers_lose_no_update(database: Database) -> None:
    add_model(database, "a")
    gate = threading.Barrier(8)

    def count_up(_: int) -> None:
        gate.wait()
        for _ in range(5):
            with database.write() as connection:
                row = connection.execute(sa.select(models).where(models.c.name == "a").with_for_update()).one()
                connection.execute(sa.update(models).values(latest_version=row.latest_version + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count_up, range(8)))

    with database.read() as connection:
        assert 40 == connection.execute(sa.select(models.c.latest_version)).scalar()


_HALF = """
import sys, time, sqlalchemy as sa
from app.storage.database import Database, STAMP_SECONDS
from app.storage.tables import models
with Database(sys.argv[1]).write() as connection:
    connection.execute(sa.insert(models).values(name="half", latest_version=1, created_at="now"))
    print("written", flush=True)
    time.sleep(60)
"""


@on_both_databases
def test_a_writer_that_is_killed_leaves_nothing_and_blocks_nobody(database: Database, database_url: str) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _HALF, database_url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with writer:
        assert writer.stdout is not None
        assert "written\n" == writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)

    add_model(database, "whole")

    assert ["whole"] == names(database)


@on_both_databases
@pytest.mark.parametrize(
    "value",
    [{}, [], {"a": None}, {"é": ["\U0001f427", 1, 1.5, True, {"b": []}]}, {"n": 2**53, "tiny": 5e-324}],
    ids=["empty object", "empty list", "null", "nested", "numbers"],
)
def test_json_comes_back_as_it_was(database: Database, value: Any) -> None:
    with database.write() as connection:
        connection.execute(sa.insert(workers).values(name="w", slots=1, document=value, beat_at=now()))

    with database.read() as connection:
        assert value == connection.execute(sa.select(workers.c.document)).scalar()


@on_both_databases
@pytest.mark.parametrize("limit", [1, 2, 5, 7])
def test_pages_give_every_row_once_last_first(database: Database, limit: int) -> None:
    given = ["A", "a", "a-b", "a.b", "a_b", "b", "b1"]
    for name in given:
        add_model(database, name)

    found: list[str] = []
    cursor: str | None = None
    with database.read() as connection:
        while True:
            rows, cursor = page(connection, sa.select(models), models.c.name, limit, cursor)
            found += [row["name"] for row in rows]
            if cursor is None:
                break
        ordered = connection.execute(sa.select(models.c.name).order_by(models.c.name.desc())).scalars().all()

    assert list(ordered) == found
    assert sorted(given) == sorted(found)


@on_both_databases
def test_an_event_needs_its_job(database: Database) -> None:
    event = {"job_id": "job_none", "id": 1, "at": now(), "type": "log", "body": {}}

    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(sa.insert(events).values(event))


@on_both_databases
def test_the_migrations_make_the_tables_that_the_rooms_use(database: Database) -> None:
    def is_ours(name: str | None, kind: str, _parents: Any) -> bool:
        # the job engine's tables are its own matter
        return kind != "table" or name in metadata.tables

    with database.read() as connection:
        context = MigrationContext.configure(connection, opts={"include_name": is_ours, "compare_type": True})
        assert [] == compare_metadata(context, metadata)


_MIGRATE = """
import sys
from app.storage.migrate import migrate
print("ready", flush=True)
for line in sys.stdin:
    migrate(sys.argv[1])
"""


@pytest.mark.parametrize("kind", BOTH)
def test_migrations_at_the_same_time_and_again_all_end_well(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    if kind == "postgres":
        server = request.getfixturevalue("postgres")
        url = server.url(server.create("template1"))
    command, pipe = [sys.executable, "-c", _MIGRATE, url], subprocess.PIPE
    running = [subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(3)]
    for each in running:
        assert each.stdout is not None
        assert "ready\n" == each.stdout.readline()

    said = "".join(each.communicate("once\nagain\n", timeout=120)[1] for each in running)

    assert [0, 0, 0] == [each.returncode for each in running], said
    database = Database(url)
    add_model(database, "a")
    database.close()


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all.db", "postgresql+psycopg://nobody@/none?host=/nowhere"], ids=BOTH
)
def test_a_database_that_cannot_be_reached_says_so(url: str) -> None:
    database = Database(url)

    with pytest.raises(Unavailable):
        database.ping()


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all.db", "postgresql+psycopg://u:SECRET@/none?host=/nowhere"], ids=BOTH
)
def test_a_migration_that_cannot_be_made_says_why(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "migrate"]
    environment = {**os.environ, "FITSERVE_DATABASE_URL": url, "FITSERVE_DATA_DIR": str(tmp_path / "data")}

    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert 1 == done.returncode
    assert done.stderr.startswith("fitserve: the database ")
    assert "Traceback" not in done.stderr
    assert "SECRET" not in done.stderr


def test_a_database_of_a_later_release_is_left_alone(database_url: str) -> None:
    database = Database(database_url)
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    database.close()

    with pytest.raises(Unavailable, match="9999"):
        migrate(database_url)


@pytest.mark.parametrize(("pragma", "value"), [("journal_mode", "delete"), ("foreign_keys", 1)])
def test_sqlite_has_a_rollback_journal_and_checks_references(database: Database, pragma: str, value: str | int) -> None:
    with database.read() as connection:
        assert value == connection.exec_driver_sql(f"PRAGMA {pragma}").scalar()


_LOOK_AT_POOLS = """
import sqlalchemy as sa
from app.cli.main import main
pools = []
def look(connection):
    if connection.engine.pool not in pools:
        pools.append(connection.engine.pool)
        driver = connection.connection.driver_connection
        print("pool", driver.isolation_level, driver.execute("PRAGMA synchronous").fetchone()[0], flush=True)
sa.event.listen(sa.Engine, "engine_connect", look)
main()
"""


@pytest.mark.parametrize("command", ["serve", "work"])
def test_every_pool_of_a_process_syncs_the_directory_at_a_commit(command: str, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "FITSERVE_DATA_DIR": str(tmp_path / "data"),
        "FITSERVE_PORT": "0",
        "FITSERVE_WORKERS": "0",
    }
    run = [sys.executable, "-c", _LOOK_AT_POOLS, command]

    with subprocess.Popen(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pools: list[list[str]] = []
        while len(pools) < 4:
            line = process.stdout.readline()
            if line.startswith("pool "):
                pools.append(line.split()[1:])
            elif "serving on " in line:
                # the API opens the job engine's pool when it first cancels a job
                with Client(line.split()[3]) as client:
                    client.cancel(client.train("m", data={"x": [[0.0], [1.0]] * 10, "y": [0, 1] * 10}))
        process.kill()

    # the job engine's transactions are IMMEDIATE; 3 is EXTRA; each kind has a pool that migrates, and one that works
    assert [["IMMEDIATE", "3"]] * 2 + [["None", "3"]] * 2 == sorted(pools)


def test_a_file_that_is_no_database_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / "fitserve.db").write_bytes(b"not a database " * 1000)

    with pytest.raises(Unavailable):
        Database(f"sqlite:///{tmp_path}/fitserve.db").ping()


def test_a_full_disk_is_a_fact_and_leaves_what_was_there(database: Database) -> None:
    add_model(database, "a")

    def fill() -> None:
        with database.write() as connection:
            # SQLite's own bound gives the very error of a full disk
            connection.exec_driver_sql("PRAGMA max_page_count = 1")
            for i in range(1000):
                connection.execute(sa.insert(models).values(name=f"{i:060}", latest_version=1, created_at=now()))

    with pytest.raises(StorageFull):
        fill()

    assert ["a"] == names(database)


def test_times_are_rfc_3339_in_utc() -> None:
    assert "2000-01-01T00:00:00.000Z" < now() < "2999-01-01T00:00:00.000Z"
    assert now().endswith("Z")


def test_every_connection_knows_the_time_in_milliseconds_also_in_a_columns_default(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'own.db'}")
    # as the job engine's is: not one of ours
    other = sa.create_engine(database.url)
    now = "(unixepoch('subsec') * 1000)"

    with other.begin() as connection:
        connection.execute(sa.text(f"CREATE TABLE times (name TEXT, at INTEGER NOT NULL DEFAULT {now})"))
        connection.execute(sa.text("INSERT INTO times (name) VALUES ('theirs')"))
    with database.write() as connection:
        connection.execute(sa.text("INSERT INTO times (name) VALUES ('ours')"))

    with database.read() as connection:
        found = connection.execute(sa.text(f"SELECT at, {now} FROM times")).all()
    assert 2 == len(found)
    assert all(abs(time.time() * 1000 - value) < 60_000 for row in found for value in row)
    other.dispose()
    database.close()
