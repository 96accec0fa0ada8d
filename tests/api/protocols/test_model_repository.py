"""The protocols' answers for versions that cannot be loaded, and for a service that stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.app import create_app
from app.records.rooms import Rooms
from app.settings import Settings
from app.wiring import Services, open_services
from tests.stored_rows import train
from tests.wire import check_protocol_error

Ask = Callable[..., httpx.Response]


@pytest.fixture
def services(rooms: Rooms, tmp_path: Path, database_url: str) -> Iterator[Services]:
    """Services with a model whose version 1 is damaged, and whose default, version 2, is not."""
    train(rooms, "m", promote="never")
    train(rooms, "m", promote="always")
    damaged = rooms.registry.folder(rooms.registry.get_version("m", 1)) / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    opened = open_services(Settings(data_dir=tmp_path / "data", database_url=database_url))
    yield opened
    opened.close()


@pytest.fixture
def ask(services: Services) -> Ask:
    app = create_app(services)

    def run(method: str, path: str, **sent: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **sent)

        return asyncio.run(send())

    return run


def test_a_damaged_version_is_shown_as_soon_as_it_was_tried(ask: Ask) -> None:
    for path in ("/v2/models/m/versions/1/ready", "/v1/models/m/versions/1:predict", "/v2/models/m/versions/1/infer"):
        answer = ask("POST" if path.endswith(("predict", "infer")) else "GET", path)
        assert "m@1" in check_protocol_error(answer, 503)

    states = ask("GET", "/v1/models/m").json()
    assert ("m", True) == (states["name"], states["ready"])
    assert [("2", "AVAILABLE", "OK"), ("1", "END", "DATA_LOSS")] == [
        (status["version"], status["state"], status["status"]["error_code"])
        for status in states["model_version_status"]
    ]
    index = ask("POST", "/v2/repository/index").json()
    assert [("1", "UNAVAILABLE"), ("2", "READY")] == [(entry["version"], entry["state"]) for entry in index]
    assert ["2"] == [entry["version"] for entry in ask("POST", "/v2/repository/index", json={"ready": True}).json()]


def test_a_model_whose_default_is_damaged_is_not_ready(ask: Ask, services: Services) -> None:
    services.rooms.aliases.set("m", "default", 1)

    check_protocol_error(ask("POST", "/v2/repository/models/m/load"), 503)

    assert ask("GET", "/v1/models/m").json()["ready"] is False
    check_protocol_error(ask("GET", "/v2/models/m/ready"), 503)
    assert ask("GET", "/v2/models/m/versions/2/ready").is_success


def test_a_model_without_a_default_is_not_ready_and_its_versions_are(ask: Ask, services: Services) -> None:
    services.rooms.aliases.delete("m", "default")

    assert ask("GET", "/v1/models/m").json()["ready"] is False
    assert "m@default" in check_protocol_error(ask("POST", "/v1/models/m:predict"), 404)
    assert ask("POST", "/v1/models/m/versions/2:predict", content=b'{"instances": [[1, "x"]]}').is_success


def test_a_service_that_stops_is_alive_and_not_ready(ask: Ask, services: Services) -> None:
    services.drain()

    assert ask("GET", "/v2/health/live").is_success
    check_protocol_error(ask("GET", "/v2/health/ready"), 503)


def test_a_failure_of_the_service_has_the_same_shape(ask: Ask, services: Services) -> None:
    # no request can cause this error
    rooms, services.rooms = services.rooms, None  # type: ignore[assignment]

    for path in ("/v1/models", "/v2/models"):
        assert "failed" in check_protocol_error(ask("GET", path), 500)
    services.rooms = rooms
