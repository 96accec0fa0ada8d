"""Keys: every route asks for one unless it is listed as public, and a new route is closed until it says otherwise."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.api.app import create_app
from app.api.edge import Edge
from app.config import Settings
from app.keys import Keys
from app.serve import _give_key
from app.training import Rooms
from app.wiring import open_services
from tests.api.conftest import KEY, listed
from tests.api.wire import check_problem, exchange, head

PUBLIC = {"/livez", "/readyz", "/openapi.json", "/docs", "/docs/{name}", "/favicon.ico"}
OWN = {"name": "iris", "ref": "iris", "n": "1", "alias": "best", "format": "weights"}
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def given(rooms: Rooms, tmp_path: Path, database_url: str) -> Iterator[FastAPI]:
    """The application with a key, on a database of its own."""
    services = open_services(Settings(data_dir=tmp_path / "data", database_url=database_url, api_key=KEY))
    edge = create_app(services)
    assert isinstance(edge, Edge)
    assert isinstance(edge.app, FastAPI)
    yield edge.app
    services.close()


def routes(app: FastAPI) -> set[tuple[str, str]]:
    """Give every method and path of an application, from its own routing tree."""
    found = set()
    for context in iter_route_contexts(app.routes):
        assert context.path is not None
        found |= {(method, context.path) for method in context.methods or ()}
    return found


def filled(path: str) -> str:
    """Put something into a path's places."""
    if path.startswith("/docs/"):
        return "/docs/docs.js"
    noun = "ds_0" if "/datasets/" in path else "job_0"
    return re.sub(r"\{(\w+)\}", lambda place: OWN.get(place[1], noun), path)


def test_every_route_but_the_public_ones_asks_for_a_key(given: FastAPI, locked: httpx.Client) -> None:
    found = routes(given)

    assert {path for _, path in found} >= PUBLIC | {"/metrics", "/api/v1/system", "/api/v1/models/{ref}/predict"}
    for method, path in sorted(found):
        answers = {
            name: locked.request(method, filled(path), headers=headers)
            for name, headers in {
                "none": {},
                "wrong": {"Authorization": f"Bearer {KEY}x"},
                "other scheme": {"Authorization": f"Basic {KEY}"},
                "right": BEARER,
            }.items()
        }
        right = answers.pop("right")
        assert right.status_code not in (401, 403, 500), (method, path)
        for name, answer in answers.items():
            if path in PUBLIC:
                assert 200 == answer.status_code, (method, path, name)
            else:
                check_problem(answer, 401, "unauthorized")
                assert "Bearer" == answer.headers["www-authenticate"]


def test_no_body_is_read_before_the_key(locked: httpx.Client) -> None:
    requests = [("PATCH", "/api/v1/datasets/ds_0"), ("PUT", "/api/v1/models/m/aliases/a"), ("POST", "/api/v1/datasets")]
    url = str(locked.base_url)

    for method, path in requests:
        broken = locked.request(method, path, content=b"{", headers={"Content-Type": "application/json"})
        check_problem(broken, 401, "unauthorized")
        # and it is not waited for
        declared = head(url, method, path, "Content-Type: application/json", "Content-Length: 1000")
        check_problem(exchange(url, declared), 401, "unauthorized")


def test_a_wrong_key_says_nothing_of_the_right_one(locked: httpx.Client) -> None:
    for key in ("x", KEY[:-1], KEY.upper(), "é" * 20, "k" * 4000):
        answer = locked.get("/api/v1/models", headers={b"Authorization": f"Bearer {key}".encode()})
        check_problem(answer, 401, "unauthorized")
        assert KEY not in answer.text


def test_the_scheme_is_read_in_any_case(locked: httpx.Client) -> None:
    assert locked.get("/api/v1/models", headers={"Authorization": f"bearer {KEY}"}).is_success


def test_with_a_key_any_host_and_origin_is_answered(locked: httpx.Client) -> None:
    headers = {**BEARER, "Host": "fitserve.example", "Origin": "https://page.example"}

    check_problem(locked.delete("/api/v1/models/nobody", headers=headers), 404, "not_found")


def test_a_new_route_is_closed_until_it_says_public(given: FastAPI) -> None:
    given.add_api_route("/new", lambda: {"secret": 1})
    given.add_api_route("/shown", lambda: {"shown": 1}, openapi_extra={"security": []})

    async def ask() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(given)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/new"), await client.get("/new", headers=BEARER), await client.get("/shown")

    closed, opened, public = asyncio.run(ask())

    assert (401, 200, 200) == (closed.status_code, opened.status_code, public.status_code)
    assert {"secret": 1} == opened.json()


def test_off_loopback_a_key_is_made_stored_hashed_and_shown_once(
    rooms: Rooms, tmp_path: Path, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data_dir=tmp_path / "data", database_url=database_url, host="192.0.2.1")
    services = open_services(settings)

    _give_key(services)

    found = re.search(r"shown once: (fs_\S{43})$", capsys.readouterr().out.strip())
    assert found is not None
    assert services.keys.accepts(found[1])
    assert not services.keys.accepts(found[1][:-1])
    assert found[1].encode() not in (tmp_path / "data" / "fitserve.db").read_bytes()
    # after a restart the same key is known, and none is made again
    again = open_services(settings)
    _give_key(again)
    assert "" == capsys.readouterr().out
    assert again.keys.accepts(found[1])
    services.close()
    again.close()


def test_a_made_key_does_not_open_what_needs_none_nor_is_one_made_there(
    rooms: Rooms, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = Keys(rooms.database, None)

    assert not keys.load()
    assert not keys.accepts("")
    assert "" == capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "needs_key"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "127.9.9.9"}, False),
        ({"host": "localhost"}, False),
        ({"api_key": KEY}, True),
        ({"host": "0.0.0.0"}, True),
        ({"host": "::"}, True),
        ({"host": "fitserve.example"}, True),
        ({"host": "0.0.0.0", "insecure_no_auth": True}, False),
        ({"host": "0.0.0.0", "insecure_no_auth": True, "api_key": KEY}, True),
    ],
)
def test_a_key_is_needed_off_loopback_or_where_one_is_configured(settings: dict[str, str], needs_key: bool) -> None:
    assert needs_key == Settings.model_validate(settings).needs_key


def test_nothing_was_stored_on_the_locked_service(locked: httpx.Client) -> None:
    with httpx.Client(base_url=locked.base_url, headers=BEARER) as client:
        assert {"datasets": [], "jobs": [], "models": []} == listed(client)


def test_uvicorn_trusts_no_proxy_header() -> None:
    # what the service builds on: a forwarded Host would get around the check
    assert not uvicorn.Config(FastAPI(), proxy_headers=False).proxy_headers
