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
from app.records.rooms import Rooms
from app.settings import Settings
from app.storage.migrate import migrate
from app.wiring import open_rooms
from tests.cgroup import can_limit_memory
from tests.disks import can_mount_images
from tests.postgres import Postgres, find_programs
from tests.service import ROOT, Service

pytest_plugins = ["tests.shared_services"]

PENGUINS = ROOT / "examples" / "penguins.csv"
Start = Callable[..., Service]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine or account cannot do: nothing can be installed for it."""
    _leave_out(config, items, "memory_group", can_limit_memory)
    # CI is root and has e2fsprogs: there the tests run, and fail where they cannot
    if not os.environ.get("CI"):
        _leave_out(config, items, "disk_image", can_mount_images)


def _leave_out(config: pytest.Config, items: list[pytest.Item], marker: str, is_possible: Callable[[], bool]) -> None:
    needy = [item for item in items if item.get_closest_marker(marker)]
    if needy and not is_possible():
        config.hook.pytest_deselected(items=needy)
        items[:] = [item for item in items if item not in needy]


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
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; its database `migrated` is migrated."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: postgresql)")
    server = Postgres(programs)
    try:
        server.start()
        server.create("template1", "migrated")
        _migrate(server.url("migrated"))
        yield server
    finally:
        server.stop()


def _migrate(url: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        migrate(url)


@pytest.fixture
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a migrated, empty database: SQLite, or what a test asks for as this fixture's parameter."""
    if getattr(request, "param", "sqlite") == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        return server.empty("migrated")
    path = tmp_path / "data" / "fitserve.db"
    path.parent.mkdir()
    shutil.copy(request.getfixturevalue("migrated"), path)
    return f"sqlite:///{path}"


@pytest.fixture
def rooms(tmp_path: Path, database_url: str) -> Iterator[Rooms]:
    """Every room, on an empty database and an empty local store in `tmp_path / "data"`."""
    opened = open_rooms(Settings(data_dir=tmp_path / "data", database_url=database_url))
    yield opened
    opened.close()
