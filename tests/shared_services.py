"""What the tests of the HTTP surface share: services with small limits and with a key, and a look at what is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from app.client import Client, Job
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
    "allowed_hosts": "data.lan, other.lan",
    # on loopback it opens nothing, and shows
    "insecure_no_auth": "true",
}


@pytest.fixture(scope="session")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service with small limits and without a worker: its jobs stay queued."""
    yield from _serve(tmp_path_factory, LIMITS)


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A service with a key, which this client does not send, from a file that is gone by now."""
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(f"  {KEY}\n")
    for connected in _serve(tmp_path_factory, {"workers": "0", "api_key_file": str(file)}):
        file.unlink()
        yield connected


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


#: by version of the model `labelled`: what its labels were posted as
LABELS: dict[int, tuple[list[Any], Any]] = {
    1: (["3", "7"], {"columns": {"x0": [0, 1] * 4, "x1": [0.5, None] * 4, "y": ["3", "7"] * 4}}),
    2: ([False, True], {"columns": {"x0": [0, 1] * 4, "x1": [0.5, None] * 4, "y": [False, True] * 4}}),
    3: ([3, 7], "x0,x1,y\n" + "0,0.5,3\n1,,7\n" * 4),
}


#: rows of two numbers and two classes
NUMBERS = {"columns": {"a": [i / 4 for i in range(24)], "b": [(i * 7) % 24 for i in range(24)], "y": ["p", "q"] * 12}}


@pytest.fixture(scope="session")
def versioned(client: Client) -> list[Job]:
    """The jobs of versions 1, 2 and 3 of the model `versioned`, whose default is 3; its columns are all numbers."""
    asked = [client.train("versioned", data=NUMBERS, fit={"epochs": 2, "seed": seed}) for seed in (1, 2, 3)]
    return [client.wait(job) for job in asked]


@pytest.fixture(scope="session")
def labelled(client: Client) -> Job:
    """The last job of the model `labelled`, whose versions differ by their labels."""
    for version, (_, table) in LABELS.items():
        given = client.upload(table if isinstance(table, dict) else table.encode(), content_type="text/csv")
        job = client.wait(
            client.train(
                "labelled",
                dataset=given,
                target="y",
                validation=None,
                fit={"epochs": 20, "batch_size": 8},
                optimizer={"learning_rate": 0.2, "momentum": 0.9},
                promote="never" if version == len(LABELS) else "always",
                tags={"labels": str(version)},
            )
        )
    return job
