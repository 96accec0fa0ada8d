"""Promotions while clients predict: no error, no answer that mixes versions, and other processes' changes seen at once."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.records.rooms import Rooms
from app.settings import Settings
from app.wiring import open_rooms
from tests.service import Service
from tests.stored_rows import make_artifact, train

SWAPS = int(os.environ.get("SWAPS", "50"))
VERSIONS, CALLERS = 4, 8
MODELS = ("promoted", "deleted", "swapped")
BODY = {"records": [{"a": 1.5, "b": "z"}, {"a": -2.0, "b": "x"}]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[tuple[Rooms, Service]]:
    """Rooms of this process, and a service on the same data; each test's model has versions of other weights."""
    folder = tmp_path_factory.mktemp("swaps") / "data"
    folder.mkdir()
    shutil.copy(migrated, folder / "fitserve.db")
    rooms = open_rooms(Settings(data_dir=folder))
    for model in MODELS:
        for seed in range(VERSIONS):
            train(rooms, model, make_artifact(seed, units=16))
    service = Service(folder, {"workers": "0"}).start()
    yield rooms, service
    assert service.stop() == 0
    rooms.close()


def path(ref: str) -> str:
    return f"/api/v1/models/{ref}/predict"


def test_a_promotion_by_another_process_is_followed_by_the_next_request(shared: tuple[Rooms, Service]) -> None:
    rooms, service = shared
    with httpx.Client(base_url=service.url) as http:
        for version in (1, 3, 2, 4, 1):
            rooms.aliases.set("promoted", "default", version)

            assert f"promoted@{version}" == http.post(path("promoted"), json=BODY).headers["x-model"]
        rooms.aliases.set("promoted", "best", 2)
        assert "promoted@2" == http.post(path("promoted@best"), json=BODY).headers["x-model"]
        rooms.aliases.delete("promoted", "best")
        assert 404 == http.post(path("promoted@best"), json=BODY).status_code


def test_a_deletion_is_followed_by_the_next_request(shared: tuple[Rooms, Service]) -> None:
    rooms, service = shared
    with httpx.Client(base_url=service.url) as http:
        for version in (1, 2):
            assert 200 == http.post(path(f"deleted@{version}"), json=BODY).status_code

        http.delete("/api/v1/models/deleted/versions/1").raise_for_status()
        rooms.registry.delete_version("deleted", 2, force=True)

        for version in (1, 2):
            assert 404 == http.post(path(f"deleted@{version}"), json=BODY).status_code
        assert 200 == http.post(path("deleted"), json=BODY).status_code
        rooms.registry.delete("deleted")
        assert 404 == http.post(path("deleted"), json=BODY).status_code


def test_versions_are_swapped_under_load_without_a_mixed_answer(shared: tuple[Rooms, Service]) -> None:
    rooms, service = shared
    seen: set[str] = set()

    async def run() -> None:
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
            expected = {}
            for version in range(1, VERSIONS + 1):
                answer = await http.post(path(f"swapped@{version}"), json=BODY)
                expected[f"swapped@{version}"] = answer.content
            assert VERSIONS == len(set(expected.values()))
            is_done = False

            async def call() -> None:
                while not is_done:
                    answer = await http.post(path("swapped"), json=BODY)
                    assert 200 == answer.status_code, answer.text
                    assert expected[answer.headers["x-model"]] == answer.content
                    seen.add(answer.headers["x-model"])

            async def swap() -> None:
                for i in range(SWAPS):
                    version = 1 + i % VERSIONS
                    if i % 2:
                        await asyncio.to_thread(rooms.aliases.set, "swapped", "default", version)
                    else:
                        answer = await http.put("/api/v1/models/swapped/aliases/default", json={"version": version})
                        answer.raise_for_status()
                    # a request after the promotion is answered by the promoted version
                    assert f"swapped@{version}" == (await http.post(path("swapped"), json=BODY)).headers["x-model"]

            callers = [asyncio.create_task(call()) for _ in range(CALLERS)]
            try:
                await swap()
            finally:
                is_done = True
                await asyncio.gather(*callers)

    asyncio.run(run())

    assert VERSIONS == len(seen)
