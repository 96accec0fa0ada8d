"""What the tests of the HTTP surface share: services with small limits and with a key, and a look at what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.service import Service

KEY = "a-key-of-sixteen-characters"
LIMITS = {
    "workers": "0",
    "max_columns": "6",
    "max_rows": "40",
    "max_classes": "3",
    "max_parameters": "2000",
    "max_job_seconds": "60",
    "max_upload_bytes": "6000",
    "max_json_bytes": "4000",
    "max_predict_bytes": "1000",
    "max_queued_jobs": "2",
    "max_streams": "2",
    "body_seconds": "0.5",
    "header_seconds": "0.5",
}


@pytest.fixture(scope="session")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service with small limits and without a worker: its jobs stay queued."""
    yield from _serve(tmp_path_factory, LIMITS)


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service with a key, which this client does not send."""
    yield from _serve(tmp_path_factory, {"workers": "0", "api_key": KEY})


def _serve(tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]) -> Iterator[httpx.Client]:
    service = Service(tmp_path_factory.mktemp("own") / "data", settings).start()
    with httpx.Client(base_url=service.url, timeout=60) as connected:
        yield connected
    assert service.stop() == 0


def listed(http: httpx.Client) -> dict[str, list[Any]]:
    """Give the names of all that a service has stored."""
    found = {}
    for noun, name in (("datasets", "id"), ("jobs", "id"), ("models", "name")):
        page = http.get(f"/api/v1/{noun}", params={"limit": 500}).raise_for_status().json()
        found[noun] = [item[name] for item in page["items"]]
    return found


@pytest.fixture
def nothing_stored(http: httpx.Client) -> Iterator[None]:
    """Assert that the test leaves the shared service as it was."""
    before = listed(http)
    yield
    assert before == listed(http)
