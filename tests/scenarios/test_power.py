"""Power cuts: the disk of one moment holds all that was acknowledged before that moment.

The data directory is on an ext4 disk in a file. Each test stops every process of the service, copies the file, and looks at
the copy. `make test-power CYCLES=50` cuts more often under load; `POWER_SEED` repeats the moments of a run.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.learning.artifact.artifact_files import load_artifact
from app.settings import Settings
from app.storage.blobs import make_data_dir, sha256_of
from app.storage.migrate import migrate
from app.wiring import open_rooms
from tests.disks import Disk, mounted_image, new_disk
from tests.processes import spawn
from tests.service import Service
from tests.stored_rows import train

pytestmark = pytest.mark.disk_image

CYCLES = int(os.environ.get("POWER_CYCLES", "5"))
SEED = int(os.environ.get("POWER_SEED", str(random.randrange(2**32))))
#: longest time of one cut, on a slow machine
CYCLE_SECONDS = 15
#: a cycle of the load adds half a megabyte
DISK_MEGABYTES = 128


def ask(api: httpx.Client, method: str, path: str, status: int, **body: Any) -> Any:
    """Send a request that must be acknowledged with this status, and return the answer's document."""
    answer = api.request(method, f"/api/v1/{path}", **body)
    assert status == answer.status_code, answer.text
    return answer.json() if answer.content else None


def upload(api: httpx.Client) -> str:
    """Upload a table that no other is equal to, and return the data set's id."""
    rows = f"a,y\n{random.random()},x\n{random.random()},x\n2,z\n3,z\n"
    return str(ask(api, "POST", "datasets", 201, content=rows, headers={"Content-Type": "text/csv"})["id"])


def submit(api: httpx.Client, dataset: str) -> str:
    body = {"dataset": dataset, "validation": None, "fit": {"epochs": 2}}
    return str(ask(api, "POST", "models/m/train", 202, json=body)["id"])


def make_key(api: httpx.Client) -> str:
    return str(ask(api, "POST", "keys", 201, json={"name": "shop", "scopes": ["predict"]})["id"])


def revoke(api: httpx.Client, key: str) -> None:
    ask(api, "DELETE", f"keys/{key}", 204)


#: a query, and the rows that it must return
Found = tuple[str, list[tuple[Any, ...]]]


def an_upload(api: httpx.Client) -> Found:
    return f"SELECT status FROM datasets WHERE id = '{upload(api)}'", [("ready",)]


def a_job(api: httpx.Client) -> Found:
    return _states(submit(api, upload(api))), [("queued", "ENQUEUED")]


def a_cancelled_job(api: httpx.Client) -> Found:
    job = submit(api, upload(api))
    ask(api, "POST", f"jobs/{job}/cancel", 202)
    return _states(job), [("cancelled", "CANCELLED")]


def a_key(api: httpx.Client) -> Found:
    return f"SELECT name FROM keys WHERE id = '{make_key(api)}'", [("shop",)]


def a_revocation(api: httpx.Client) -> Found:
    key = make_key(api)
    revoke(api, key)
    return f"SELECT name FROM keys WHERE id = '{key}'", []


def an_alias(api: httpx.Client) -> Found:
    ask(api, "PUT", "models/trained/aliases/default", 200, json={"version": 1})
    return "SELECT version FROM aliases WHERE model = 'trained' AND alias = 'default'", [(1,)]


def _states(job: str) -> str:
    queue = "JOIN workflow_status w ON w.workflow_uuid = jobs.workflow_id"
    return f"SELECT jobs.status, w.status FROM jobs {queue} WHERE jobs.id = '{job}'"


@contextmanager
def opened(data_dir: Path) -> Iterator[sqlite3.Connection]:
    """Open a database that lost its power; it must be whole, and so must every file that it names."""
    with closing(sqlite3.connect(data_dir / "fitserve.db")) as database:
        assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
        for raw, sha256, table in database.execute("SELECT raw_key, sha256, table_key FROM datasets"):
            assert sha256 == sha256_of(data_dir / raw)
            assert Path(table).stem == sha256_of(data_dir / table)
        for key, sha256 in database.execute("SELECT key, sha256 FROM versions"):
            load_artifact(data_dir / key, sha256)
        yield database


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    with new_disk(tmp_path_factory.mktemp("power") / "disk", DISK_MEGABYTES) as made:
        yield made


@pytest.fixture(scope="module")
def idle(disk: Disk) -> Iterator[Service]:
    """A service on that disk that writes only when it is asked to; it has two versions of the model `trained`."""
    settings = Settings(data_dir=disk.folder / "data", workers=0)
    make_data_dir(settings.data_dir)
    migrate(settings.resolved_database_url)
    rooms = open_rooms(settings)
    for _ in range(2):
        train(rooms, "trained")
    rooms.close()
    service = Service(settings.data_dir, {"workers": "0"}).start()
    yield service
    service.kill_all()


@pytest.mark.parametrize("act", [an_upload, a_job, a_cancelled_job, a_key, a_revocation, an_alias])
def test_a_power_cut_takes_back_nothing_that_was_acknowledged(
    act: Callable[[httpx.Client], Found], disk: Disk, idle: Service, tmp_path: Path
) -> None:
    with httpx.Client(base_url=idle.url, timeout=60) as api:
        query, expected = act(api)
    with idle.frozen():
        disk.lose_power(tmp_path / "left")

    with mounted_image(tmp_path / "left") as left, opened(left / "data") as database:
        assert expected == database.execute(query).fetchall()


def test_a_backup_and_a_restored_service_outlive_a_power_cut(disk: Disk, idle: Service, tmp_path: Path) -> None:
    archive, folder = disk.folder / "backup.tar", disk.folder / "new" / "data"
    with httpx.Client(base_url=idle.url, timeout=60) as api:
        dataset = upload(api)

    for command in (("backup", str(archive)), ("restore", str(archive), "--data-dir", str(folder))):
        with spawn(idle.data_dir, *command) as process:
            assert "" == process.communicate(timeout=60)[1]
        assert 0 == process.returncode
        with idle.frozen():
            disk.lose_power(tmp_path / command[0])

    with mounted_image(tmp_path / "backup") as left:
        assert sha256_of(archive) == sha256_of(left / "backup.tar")
    with mounted_image(tmp_path / "restore") as left, opened(left / "new" / "data") as database:
        assert (dataset,) in database.execute("SELECT id FROM datasets").fetchall()


@dataclass
class Crowd:
    """Clients that upload, submit, make keys and revoke keys, and remember what was acknowledged."""

    url: str
    seed: int
    acknowledged: dict[str, set[str]] = field(
        default_factory=lambda: {"data sets": set(), "jobs": set(), "keys": set(), "revocations": set()}
    )
    failures: list[BaseException] = field(default_factory=list)
    _changing: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def working(self) -> Iterator[None]:
        acts = (self._upload, self._submit, self._make_key, self._upload, self._make_key)
        threads = [threading.Thread(target=self._repeat, args=(act, self.seed + i)) for i, act in enumerate(acts)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def remembered(self) -> dict[str, set[str]]:
        """Return the ids of what was acknowledged until now."""
        with self._changing:
            return {kind: set(ids) for kind, ids in self.acknowledged.items()}

    def _repeat(self, act: Callable[[httpx.Client, random.Random], None], seed: int) -> None:
        moments = random.Random(seed)
        try:
            with httpx.Client(base_url=self.url, timeout=60) as api:
                while not self._over.wait(moments.uniform(0, 0.1)):
                    act(api, moments)
        except (AssertionError, httpx.TransportError) as error:
            self.failures.append(error)

    def _upload(self, api: httpx.Client, moments: random.Random) -> None:
        self._remember("data sets", upload(api))

    def _submit(self, api: httpx.Client, moments: random.Random) -> None:
        self._over.wait(moments.uniform(0, 1))
        self._remember("jobs", submit(api, upload(api)))

    def _make_key(self, api: httpx.Client, moments: random.Random) -> None:
        key = make_key(api)
        self._remember("keys", key)
        if moments.random() < 0.5:
            # the key may be there or not until the answer says that it is not
            with self._changing:
                self.acknowledged["keys"].discard(key)
            revoke(api, key)
            self._remember("revocations", key)

    def _remember(self, kind: str, made: str) -> None:
        with self._changing:
            self.acknowledged[kind].add(made)


def lost(acknowledged: dict[str, set[str]], database: sqlite3.Connection) -> Counter[str]:
    """Return how many of each kind are missing, and how many revoked keys are there."""
    present = {
        kind: {row[0] for row in database.execute(f"SELECT id FROM {table}")}
        for kind, table in (("data sets", "datasets"), ("jobs", "jobs"), ("keys", "keys"))
    }
    missing = Counter({kind: len(acknowledged[kind] - found) for kind, found in present.items()})
    missing["revocations"] = len(acknowledged["revocations"] & present["keys"])
    return +missing


@pytest.mark.timeout(300 + CYCLE_SECONDS * CYCLES)
def test_power_cuts_at_random_moments_under_load_lose_nothing(tmp_path: Path) -> None:
    print(f"POWER_SEED={SEED} POWER_CYCLES={CYCLES}")
    moments, losses = random.Random(SEED), []
    with new_disk(tmp_path / "disk", DISK_MEGABYTES + CYCLES) as disk:
        service = Service(disk.folder / "data").start()
        try:
            crowd = Crowd(service.url, SEED)
            with crowd.working():
                for _ in range(CYCLES):
                    time.sleep(moments.uniform(0.2, 1.5))
                    with service.frozen():
                        acknowledged = crowd.remembered()
                        disk.lose_power(tmp_path / "left")
                    with mounted_image(tmp_path / "left") as left, opened(left / "data") as database:
                        losses.append(lost(acknowledged, database))
        finally:
            service.kill_all()

    with mounted_image(tmp_path / "left") as left:
        assert 0 == Service(left / "data").start().stop()
    counts = {kind: len(ids) for kind, ids in acknowledged.items()}
    print(f"{len(losses)} cuts, {sum(map(bool, losses))} with a loss: {sum(losses, Counter())} of {counts}")
    assert [] == crowd.failures
    assert all(counts.values())
    assert [Counter()] * CYCLES == losses
