"""What a killed service leaves goes when it starts again; and there is one service on a data directory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.service import ROOT, Service


def staged(service: Service) -> list[Path]:
    return sorted((service.data_dir / "staging").iterdir())


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that these tests may kill and stop, if it runs again afterwards."""
    running = Service(tmp_path_factory.mktemp("litter") / "data", {"workers": "0"}).start()
    yield running
    running.kill_all()


def test_half_an_upload_of_a_killed_service_is_swept_at_the_next_start(service: Service) -> None:
    address = urlsplit(service.url)
    head = f"POST /api/v1/datasets HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: text/csv\r\nContent-Length: 1000\r\n\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0)) as connection:
        connection.sendall(head.encode() + b"a,y\n1,x\n")
        deadline = time.monotonic() + 30
        while not staged(service) and time.monotonic() < deadline:
            time.sleep(0.02)
        left = staged(service)
        service.kill_all()
    still_there = staged(service)

    service.start()

    assert ["request"] == [folder.name.partition("-")[0] for folder in left]
    assert left == still_there
    assert [] == staged(service)


def test_a_second_service_on_one_data_directory_is_refused_and_the_first_serves_on(service: Service) -> None:
    environment = {**os.environ, "FITSERVE_DATA_DIR": str(service.data_dir), "FITSERVE_PORT": "0"}
    command = [sys.executable, "-m", "app", "serve"]

    second = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)

    assert 1 == second.returncode
    assert f"fitserve: another service runs on the data directory {service.data_dir} already\n" == second.stderr
    assert service.is_ready(service.url)


def test_a_service_starts_again_as_soon_as_it_has_stopped(service: Service) -> None:
    assert 0 == service.stop()
    service.start()

    assert service.is_ready(service.url)
