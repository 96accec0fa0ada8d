"""What tests share: one service with its warm child, a trained model in it, and rooms on a database of their own."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.client import Client, Job
from app.config import Settings
from app.storage.migrate import migrate
from app.training import Rooms
from app.wiring import open_rooms
from tests.service import ROOT, Service

PENGUINS = ROOT / "examples" / "penguins.csv"
Start = Callable[..., Service]


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In CI everything that tests want is installed, so that a skip is a failure."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and exitstatus == 0 and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service that most tests share: on loopback, without a key. Leave it as it was: use names of your own."""
    running = Service(tmp_path_factory.mktemp("shared") / "data").start()
    yield running
    assert running.stop() == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a service of the test's own with these settings: `start(workers="0", api_key=…)`."""
    running: list[Service] = []

    def run(**settings: str) -> Service:
        running.append(Service(tmp_path / f"data{len(running)}", settings).start())
        return running[-1]

    yield run
    for each in running:
        each.kill_all()


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[Client]:
    """Our own client, on the shared service."""
    with service.client() as connected:
        yield connected


@pytest.fixture(scope="session")
def http(service: Service) -> Iterator[httpx.Client]:
    """Plain HTTP to the shared service, for what our client would not send."""
    with httpx.Client(base_url=service.url, timeout=60) as connected:
        yield connected


@pytest.fixture(scope="session")
def penguins(client: Client) -> Job:
    """The ended job that trained the model `penguins` on the shared service."""
    dataset = client.upload(PENGUINS)
    return client.wait(client.train("penguins", dataset=dataset, target="species", fit={"epochs": 15}))


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy."""
    path = tmp_path_factory.mktemp("migrated") / "fitserve.db"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def rooms(tmp_path: Path, migrated: Path) -> Iterator[Rooms]:
    """Every room, on an empty SQLite database and an empty local store in `tmp_path / "data"`."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    shutil.copy(migrated, data_dir / "fitserve.db")
    opened, engine = open_rooms(Settings(data_dir=data_dir))
    yield opened
    engine.close()
    opened.database.close()
