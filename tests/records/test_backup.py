"""A backup beside a service that works, and what a restore makes of it, of less than it, and of what is none."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.client import ApiError, Client
from app.errors import Corrupt, Invalid, Unavailable
from app.learning.artifact.artifact_files import load_artifact
from app.records.backup import backup
from app.records.dataset import ParsedTable
from app.records.restore import restore
from app.records.rooms import Rooms
from app.storage.blobs import LocalBlobs
from app.storage.migrate import migrate
from app.storage.tables import metadata
from tests.planted import Plot
from tests.processes import spawn, until
from tests.service import ROOT, Service
from tests.stored_rows import add_dataset, submit, train

pytestmark = pytest.mark.slow

ROWS = [[i % 7 / 7, i % 3 / 3] for i in range(40)]
DATA: dict[str, Any] = {"x": ROWS, "y": [i % 2 for i in range(40)]}
BACKUPS = 3
#: those that hold something when pickles were planted everywhere, but for the one of the work itself and of its arguments
ENGINE_TABLES = (
    "workflow_output",
    "operation_outputs",
    "workflow_events",
    "streams",
    "notifications",
    "workflow_schedules",
)
#: of the jobs too
PICKLED = "UPDATE workflow_status SET serialization = 'py_pickle'"

#: deterministic operations are not XLA's, so that the first epoch ends seconds sooner
ENDLESS = {"epochs": 100_000, "deterministic": True}


def run(data_dir: Path, *arguments: str, **settings: str) -> tuple[int, str, str]:
    """Run a command of `fitserve` to its end; gives its exit code and what it said."""
    process = spawn(data_dir, *arguments, **settings)
    out, errors = process.communicate(timeout=60)
    return process.returncode, out, errors


@dataclass
class Traffic:
    """Uploads, deletions and trainings that go on until the end, and what each version answered at first."""

    client: Client
    answers: dict[str, list[list[float]]] = field(default_factory=dict)
    failures: list[BaseException] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Traffic:
        self._threads = [threading.Thread(target=self._repeat, args=(each,)) for each in (self._upload, self._train)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, act: Any) -> None:
        moments = random.Random(act.__name__)
        while not self.over.wait(0.05):
            try:
                act(moments)
            except ApiError as error:
                self.failures.append(error)
                return

    def _upload(self, moments: random.Random) -> None:
        made = self.client.upload(f"a,y\n{moments.random()},x\n2,z\n".encode(), content_type="text/csv")
        if moments.random() < 0.7:
            self.client.delete_dataset(made.id)

    def _train(self, moments: random.Random) -> None:
        job = self.client.wait(
            self.client.train("m", data=DATA, validation=None, fit={"epochs": 2, "seed": moments.randrange(10**6)})
        )
        self.answers[job.ref] = self.client.predict(job.ref, rows=ROWS[:5]).probabilities
        if job.version is not None and job.version > 1 and moments.random() < 0.5:
            self.client.delete_version(f"m@{job.version - 1}", force=True)


@pytest.fixture(scope="module")
def backups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Path], Traffic]]:
    """Backups that were taken, with `fitserve backup`, of a service under load; and what its versions answered."""
    folder = tmp_path_factory.mktemp("backups")
    service = Service(folder / "data").start()
    try:
        with service.client() as client:
            with Traffic(client) as traffic:
                targets = [folder / f"{n}.tar" for n in range(BACKUPS)]
                for count, target in enumerate(targets[:-1], 1):
                    until(lambda count=count: len(traffic.answers) >= count)  # type: ignore[misc]
                    assert 0 == run(service.data_dir, "backup", str(target))[0]
                running = client.train("endless", data=DATA, validation=None, fit=ENDLESS)
                waiting = client.train("waiting", data=DATA, validation=None, fit={"epochs": 2, "seed": 7})
                until(lambda: client.job(running).status == "running")
                code, said, errors = run(service.data_dir, "backup", str(targets[-1]))
                client.cancel(running)
                client.cancel(waiting)
            assert (0, "") == (code, errors)
            assert said.startswith(f"{targets[-1]}: ")
            assert [] == traffic.failures
            assert not list((service.data_dir / "staging").glob("backup-*"))
            yield targets, traffic
    finally:
        service.kill_all()


def test_what_was_backed_up_under_load_is_whole_and_answers_the_same_bits(
    backups: tuple[list[Path], Traffic], tmp_path: Path
) -> None:
    targets, traffic = backups

    for target in targets:
        data_dir = tmp_path / target.stem
        code, _, errors = run(data_dir, "restore", str(target))

        assert (0, "") == (code, errors)
        assert not list((data_dir / "staging").iterdir())
        assert {0o600} == {stat.S_IMODE(path.stat().st_mode) for path in (target, data_dir / "fitserve.db")}
        check_rows(data_dir)
    check_answers(Service(data_dir, {"workers": "0"}), traffic)


def check_answers(service: Service, traffic: Traffic) -> None:
    """Assert that versions predict what they did before, and that data sets have their rows."""
    service.start()
    try:
        with service.client() as client:
            versions = {f"m@{version['version']}" for version in client.model("m")["versions"]}
            # the last may have been published when nobody asked it any more
            assert len(versions & traffic.answers.keys()) >= len(versions) - 1 > 0
            for ref in versions & traffic.answers.keys():
                assert traffic.answers[ref] == client.predict(ref, rows=ROWS[:5]).probabilities
            for dataset in client.datasets():
                rows = httpx.get(f"{service.url}/api/v1/datasets/{dataset.id}/rows").raise_for_status().json()["rows"]
                assert dataset.rows == len(rows) > 0
    finally:
        service.kill_all()


def check_rows(data_dir: Path) -> None:
    """Assert that each row's files are there, and each file's row."""
    with closing(sqlite3.connect(data_dir / "fitserve.db")) as database:
        assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
        assert [] == database.execute("PRAGMA foreign_key_check").fetchall()
        named = {key for row in database.execute("SELECT raw_key, table_key FROM datasets") for key in row if key}
        unfinished = (
            "SELECT table_key FROM jobs WHERE status != 'succeeded' AND dataset_id IN (SELECT id FROM datasets)"
        )
        named |= {key for (key,) in database.execute(unfinished)}
        live = database.execute("SELECT key, sha256 FROM versions WHERE NOT is_deleted").fetchall()
        moves = "SELECT a.model FROM aliases a LEFT JOIN versions v USING (model, version) WHERE v.key IS NULL"
        assert [] == database.execute(moves).fetchall()
    blobs = LocalBlobs(data_dir)
    assert named == {key for prefix in ("datasets", "tables") for key in blobs.keys(prefix)}
    assert {key for key, _ in live} == {f"versions/{path.name}" for path in (data_dir / "versions").iterdir()}
    for key, digest in live:
        load_artifact(data_dir / key, digest)


def test_jobs_that_waited_or_ran_go_on_after_a_restore_and_no_pickle_runs(
    backups: tuple[list[Path], Traffic], plot: Plot, tmp_path: Path
) -> None:
    targets, _ = backups
    data_dir = tmp_path / "data"
    evil = change(targets[-1], tmp_path / "evil.tar", PICKLED, plot=plot)
    assert 0 == run(data_dir, "restore", str(evil))[0]

    service = Service(data_dir).start()

    try:
        with service.client() as client:
            (endless,) = client.jobs(model="endless")
            until(lambda: client.job(endless).progress["epoch"])
            assert 2 == client.job(endless).document["attempt"]
            client.cancel(endless)
            (waiting,) = client.jobs(model="waiting")
            assert "waiting@1" == client.wait(waiting, timeout=60).ref
        assert [] == plot.ran
    finally:
        service.kill_all()


@pytest.fixture
def plot(tmp_path: Path) -> Plot:
    (tmp_path / "traces").mkdir()
    return Plot(Path(), tmp_path / "traces")


@pytest.fixture
def data_dir(tmp_path: Path, rooms: Rooms) -> Path:
    """The data directory of `rooms`: a version, a data set, and a job that may be resumed with an earlier reading."""
    train(rooms)
    dataset = add_dataset(rooms, b"a,y\n7,x\n", b"first")
    rooms.jobs.cancel(submit(rooms, dataset=dataset).id)
    with rooms.blobs.staging("test") as folder:
        (folder / "table").write_bytes(b"second")
        rooms.datasets.replace_table(dataset.id, ParsedTable(folder / "table", 1, [], [], "y"))
    return tmp_path / "data"


@pytest.fixture
def made(tmp_path: Path, data_dir: Path) -> Path:
    """A backup of `data_dir`."""
    backup(data_dir / "fitserve.db", data_dir, tmp_path / "made.tar")
    return tmp_path / "made.tar"


def put_back(source: Path, folder: Path) -> dict[str, int]:
    return restore(source, folder / "fitserve.db", folder)


def content(folder: Path) -> dict[str, bytes]:
    """Return every stored file of a data directory, and of the database the schema and the rows of our own tables."""
    tops = ("datasets", "tables", "versions", "fitserve.db")
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] in tops]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    if "fitserve.db" in found:
        # SQLite counts its changes in the file's head
        with closing(sqlite3.connect(folder / "fitserve.db")) as database:
            tables = ("alembic_version", *metadata.tables)
            schema = database.execute("SELECT tbl_name, sql FROM sqlite_master ORDER BY name").fetchall()
            rows = [database.execute(f"SELECT * FROM {table}").fetchall() for table in tables]
            found["fitserve.db"] = repr([[each for each in schema if each[0] in tables], rows]).encode()
    return found


def test_a_restored_directory_is_the_same_to_the_bit_and_its_owners_alone(
    data_dir: Path, made: Path, tmp_path: Path
) -> None:
    counts = put_back(made, tmp_path / "new")

    assert {"datasets": 2, "versions": 1} == counts
    assert content(data_dir) == content(tmp_path / "new")
    modes = {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in content_paths(tmp_path / "new")}
    assert {0} == modes


def content_paths(folder: Path) -> list[Path]:
    return [folder / name for name in (*content(folder), "datasets", "tables", "versions", ".")]


def test_a_bit_that_flipped_is_found_or_does_not_matter(data_dir: Path, made: Path, tmp_path: Path) -> None:
    body, places, refused = bytearray(made.read_bytes()), random.Random(7), 0
    expected = content(data_dir)

    for _ in range(60):
        place, bit = places.randrange(len(body)), 1 << places.randrange(8)
        body[place] ^= bit
        (tmp_path / "flipped.tar").write_bytes(body)
        body[place] ^= bit
        try:
            put_back(tmp_path / "flipped.tar", tmp_path / "new")
        except (Invalid, Corrupt):
            refused += 1
            assert {} == content(tmp_path / "new")
        else:
            assert expected == content(tmp_path / "new"), place
        assert not list((tmp_path / "new" / "staging").iterdir())
        shutil.rmtree(tmp_path / "new")

    assert refused > 30


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.9, 0.98])
def test_a_backup_that_was_cut_off_is_refused(made: Path, tmp_path: Path, share: float) -> None:
    with tarfile.open(made) as archive:
        end = max(member.offset_data + member.size for member in archive)
    os.truncate(made, int(end * share))

    with pytest.raises((Invalid, Corrupt)):
        put_back(made, tmp_path / "new")

    assert {} == content(tmp_path / "new")


def member(
    name: str, kind: bytes = tarfile.REGTYPE, body: bytes = b"", link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size, entry.linkname = kind, len(body), link
    return entry, body


@pytest.mark.parametrize(
    "evil",
    [
        member("../outside", body=b"x"),
        member("store/../../../outside", body=b"x"),
        member("store/datasets/link", tarfile.SYMTYPE, link="/etc/passwd"),
        member("store/datasets/link", tarfile.SYMTYPE, link="../../backup.json"),
        member("store/datasets/link", tarfile.LNKTYPE, link="backup.json"),
        member("store/pipe", tarfile.FIFOTYPE),
        member("store/device", tarfile.CHRTYPE),
    ],
    ids=lambda value: f"{value[0].name} {value[0].linkname}".strip(),
)
def test_a_member_that_leads_outside_or_is_no_file_is_refused(
    made: Path, tmp_path: Path, evil: tuple[tarfile.TarInfo, bytes]
) -> None:
    with tarfile.open(made, "a") as archive:
        archive.addfile(evil[0], io.BytesIO(evil[1]))
    before = set(tmp_path.rglob("outside"))

    with pytest.raises(Invalid, match="Expected a backup that `fitserve backup` wrote"):
        put_back(made, tmp_path / "new")

    assert {} == content(tmp_path / "new")
    assert before == set(tmp_path.rglob("outside"))


def rewrite(source: Path, target: Path, changes: dict[str, bytes]) -> Path:
    """Write a backup with other bytes in some of its members."""
    with tarfile.open(source) as old, tarfile.open(target, "w") as new:
        for each in old:
            file = old.extractfile(each)
            body = changes.get(each.name, file.read() if file else b"")
            each.size = len(body)
            new.addfile(each, io.BytesIO(body))
    return target


def change(source: Path, target: Path, *statements: str, plot: Plot | None = None) -> Path:
    """Write a backup whose database was changed, or planted with pickles, and has the digest that it should have."""
    folder = target.with_suffix("")
    with tarfile.open(source) as archive:
        archive.extract("fitserve.db", folder, filter="data")
    with closing(sqlite3.connect(folder / "fitserve.db")) as database:
        for statement in statements:
            database.execute(statement)
        database.commit()
    if plot is not None:
        replace(plot, database_file=folder / "fitserve.db").everywhere()
    body = (folder / "fitserve.db").read_bytes()
    header = json.dumps({"format": 1, "database_sha256": sha256(body).hexdigest()}).encode()
    return rewrite(source, target, {"backup.json": header, "fitserve.db": body})


def test_a_later_format_and_a_name_outside_the_store_are_refused(made: Path, tmp_path: Path) -> None:
    header = json.dumps({"format": 2, "database_sha256": ""}).encode()
    with pytest.raises(Invalid, match="format 1"):
        put_back(rewrite(made, tmp_path / "later.tar", {"backup.json": header}), tmp_path / "new")

    evil = change(made, tmp_path / "evil.tar", "UPDATE datasets SET raw_key = '../../etc/passwd'")
    with pytest.raises(Invalid, match="names of stored files"):
        put_back(evil, tmp_path / "new")
    assert {} == content(tmp_path / "new")


def test_only_rows_of_our_own_tables_come_back(data_dir: Path, rooms: Rooms, plot: Plot, tmp_path: Path) -> None:
    waiting, running = submit(rooms), submit(rooms)
    assert rooms.claims.take(running.id, running.workflow_id)
    backup(data_dir / "fitserve.db", data_dir, tmp_path / "good.tar")
    evil = change(
        tmp_path / "good.tar",
        tmp_path / "evil.tar",
        "CREATE TABLE more (a)",
        "CREATE VIEW seen AS SELECT * FROM jobs",
        "CREATE TRIGGER fired AFTER UPDATE ON jobs BEGIN DELETE FROM versions; END",
        plot=plot,
    )

    put_back(evil, tmp_path / "new")

    assert content(data_dir) == content(tmp_path / "new")
    assert [] == plot.ran
    query = "SELECT workflow_uuid, status, serialization FROM workflow_status"
    with closing(sqlite3.connect(tmp_path / "new" / "fitserve.db")) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        work = database.execute(query).fetchall()
        counts = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ENGINE_TABLES]
    assert set() == names & {"more", "seen", "fired"}
    assert [(job.workflow_id, "ENQUEUED", "portable_json") for job in (waiting, running)] == work
    assert [0] * len(ENGINE_TABLES) == counts


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["ALTER TABLE keys RENAME TO k", "CREATE VIEW keys AS SELECT * FROM k"], "Expected a table 'keys'"),
        (["ALTER TABLE keys DROP COLUMN name"], "cannot be copied: no such column"),
        (["DELETE FROM alembic_version"], "Expected one revision of our schema"),
        (["UPDATE alembic_version SET version_num = 'base'"], "Expected one revision of our schema"),
        (["UPDATE jobs SET status = 'queued', workflow_id = 'other.1'"], "Expected work named after job"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_database_that_is_not_ours_is_refused(made: Path, tmp_path: Path, statements: list[str], said: str) -> None:
    with pytest.raises(Corrupt, match=said):
        put_back(change(made, tmp_path / "evil.tar", *statements), tmp_path / "new")

    assert {} == content(tmp_path / "new")


def test_a_backup_of_an_earlier_release_comes_back_in_the_present_schema(tmp_path: Path) -> None:
    old = tmp_path / "old" / "fitserve.db"
    old.parent.mkdir()
    migrate(f"sqlite:///{old}", "0001")
    with closing(sqlite3.connect(old)) as database:
        database.execute("INSERT INTO models VALUES ('m', 1, '')")
        database.execute("INSERT INTO aliases VALUES ('m', 'best', 1, '2026')")
        database.commit()
    backup(old, old.parent, tmp_path / "old.tar")

    put_back(tmp_path / "old.tar", tmp_path / "new")

    with closing(sqlite3.connect(tmp_path / "new" / "fitserve.db")) as database:
        moves = database.execute("SELECT model, alias, version, reason FROM alias_moves").fetchall()
    assert [("m", "best", 1, "set")] == moves


def test_a_backup_of_a_later_release_is_refused(made: Path, tmp_path: Path) -> None:
    later = change(made, tmp_path / "later.tar", "UPDATE alembic_version SET version_num = '9999'")

    with pytest.raises(Unavailable, match="could not be migrated: Can't locate revision"):
        put_back(later, tmp_path / "new")

    assert {} == content(tmp_path / "new")


def test_a_service_that_was_killed_in_a_transaction_is_backed_up_as_it_was_before(
    data_dir: Path, made: Path, tmp_path: Path
) -> None:
    program = (
        "import os, sqlite3, sys\n"
        "database = sqlite3.connect(sys.argv[1])\n"
        "database.execute('PRAGMA cache_spill = 1'); database.execute('PRAGMA cache_size = 1')\n"
        "database.execute('BEGIN IMMEDIATE')\n"
        "database.executemany('INSERT INTO keys VALUES (?, ?, ?, ?, ?)',"
        " [(str(i), str(i), 'x' * 200, '[]', '') for i in range(3000)])\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, data_dir / "fitserve.db"], check=False)
    journal = data_dir / "fitserve.db-journal"
    assert (-signal.SIGKILL, True) == (killed.returncode, journal.exists())

    backup(data_dir / "fitserve.db", data_dir, tmp_path / "after.tar")

    for name in ("made", "after"):
        put_back(tmp_path / f"{name}.tar", tmp_path / name)
    assert content(tmp_path / "made") == content(tmp_path / "after")


def test_what_a_killed_backup_left_goes_with_the_next_one(data_dir: Path, made: Path, tmp_path: Path) -> None:
    left = data_dir / "staging" / "backup-0123"
    other = data_dir / "staging" / "request-0123"
    for folder in (left, other):
        folder.mkdir()

    backup(data_dir / "fitserve.db", data_dir, tmp_path / "next.tar")

    assert [other] == list((data_dir / "staging").iterdir())


def test_a_file_that_is_away_is_named_and_leaves_no_backup(data_dir: Path, tmp_path: Path) -> None:
    (table,) = list((data_dir / "tables").iterdir())[:1]
    table.unlink()

    code, _, errors = run(data_dir, "backup", str(tmp_path / "b.tar"))

    assert 1 == code
    assert f"tables/{table.name} was away each time" in errors
    assert not (tmp_path / "b.tar").exists()
    assert [] == list((data_dir / "staging").iterdir())
    assert [] == list(tmp_path.glob(".b.tar*"))


def test_the_default_folder_with_its_page_takes_a_restore_and_any_data_refuses_it(made: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    shutil.copy(ROOT / "models" / "README.md", models)

    first = run(models, "restore", str(made))
    kept = content(models)
    second = run(models, "restore", str(made))

    assert (0, f"{models}: 2 data sets, 1 versions\n", "") == first
    assert 1 == second[0]
    assert "Expected no data where a backup is restored" in second[2]
    assert kept == content(models)
    for name in ("fitserve.db-journal", "datasets"):
        folder = tmp_path / f"with {name}"
        (folder / name).mkdir(parents=True)
        assert (1, "") == run(folder, "restore", str(made))[:2]
        assert {} == content(folder)


@pytest.mark.parametrize(
    ("arguments", "settings", "code", "said"),
    [
        (["backup", "EXISTS"], {}, 1, "Expected a new file to write to; "),
        (["backup", "nowhere/at/all.tar"], {}, 1, "No such file or directory"),
        (["backup", "b.tar"], {"data_dir": "nothing-here"}, 1, "Expected a service's database; there is no "),
        (["restore", "MISSING"], {"data_dir": "new"}, 1, "Expected a backup that `fitserve backup` wrote: "),
        (["restore", "README.md"], {"data_dir": "new"}, 1, "Expected a backup that `fitserve backup` wrote: "),
        (["restore", "tests"], {"data_dir": "new"}, 1, "Expected a backup that `fitserve backup` wrote: "),
        (["backup", "b.tar"], {"database_url": "postgresql://secret@nowhere/db"}, 1, "use pg_dump for PostgreSQL"),
        (["restore", "b.tar"], {"database_url": "postgresql://secret@nowhere/db"}, 1, "use pg_dump for PostgreSQL"),
        (["backup"], {}, 2, "Missing argument 'FILE'"),
        (["restore", "a", "b"], {}, 2, "unexpected extra argument"),
        (["backup", "b.tar", "--sideways"], {}, 2, "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_cannot_be_done_is_said_in_words_and_by_the_exit_code(
    tmp_path: Path, data_dir: Path, arguments: list[str], settings: dict[str, str], code: int, said: str
) -> None:
    (tmp_path / "exists").write_text("mine")
    given = [arguments[0], *(str(tmp_path / "exists") if each == "EXISTS" else each for each in arguments[1:])]
    folder = tmp_path / settings.pop("data_dir", "data")

    found, out, errors = run(folder, *given, **settings)

    assert (code, "") == (found, out)
    assert said in " ".join(errors.split())
    assert code == 2 or len(errors.splitlines()) == 1
    assert "Traceback" not in errors
    assert "secret" not in errors
    assert "mine" == (tmp_path / "exists").read_text()
    assert not (ROOT / "b.tar").exists()
    assert {} == content(tmp_path / "new")


def test_two_backups_at_once_do_not_meet(data_dir: Path, tmp_path: Path) -> None:
    processes = [spawn(data_dir, "backup", str(tmp_path / f"{n}.tar")) for n in range(2)]

    said = [process.communicate(timeout=60)[1] for process in processes]

    # the second waits a moment, and either has its turn or says why not
    for process, errors in zip(processes, said, strict=True):
        assert process.returncode == 0 or "another backup or restore runs" in errors
    whole = [path for path in tmp_path.glob("*.tar") if path.name[0] in "01"]
    assert whole
    for path in whole:
        put_back(path, tmp_path / f"of {path.name}")
