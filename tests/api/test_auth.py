"""Keys: every route requires one unless it is listed as public, and a new route is closed until it is made public."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from app.api.app import create_app
from app.api.auth import required_scope
from app.http.policy import POLICY
from app.records.keys import Keys
from app.records.rooms import Rooms
from app.server.main import make_first_key
from app.settings import Settings
from app.wiring import open_services
from tests.api.test_statuses import prepare
from tests.conftest import Start
from tests.shared_services import KEY, listed
from tests.wire import JSON, check_problem, exchange, head

PUBLIC = {"/livez", "/readyz", "/openapi.json", "/docs", "/docs/{name}", "/favicon.ico"}
OWN = {"name": "iris", "ref": "iris", "n": "1", "alias": "best", "format": "weights"}
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def application(rooms: Rooms, tmp_path: Path, database_url: str) -> Iterator[FastAPI]:
    """The application with a key, on a database of its own."""
    services = open_services(Settings(data_dir=tmp_path / "data", database_url=database_url, api_key=KEY))
    edge = create_app(services)
    assert isinstance(edge.app, FastAPI)
    yield edge.app
    services.close()


def routes(app: FastAPI) -> set[tuple[str, str]]:
    """Return every method and path of an application, from its own routing tree."""
    pairs = set()
    for context in iter_route_contexts(app.routes):
        assert context.path_format is not None
        pairs |= {(method, context.path_format) for method in context.methods or ()}
    return pairs


def filled(path: str) -> str:
    """Fill the places in a path."""
    if path.startswith("/docs/"):
        return "/docs/docs.js"
    noun = "ds_0" if "/datasets/" in path else "job_0"
    return re.sub(r"\{(\w+)\}", lambda place: OWN.get(place[1], noun), path)


def test_every_route_but_the_public_ones_asks_for_a_key(application: FastAPI, locked: httpx.Client) -> None:
    pairs = routes(application)

    assert {path for _, path in pairs} >= PUBLIC | {"/metrics", "/api/v1/system", "/api/v1/models/{ref}/predict"}
    for method, path in sorted(pairs):
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


@pytest.fixture(scope="module")
def keyed(locked: httpx.Client) -> Iterator[dict[str, dict[str, str]]]:
    """A key of each scope, as the header that sends it."""
    keys = {
        scope: locked.post("/api/v1/keys", json={"scopes": [scope]}, headers=BEARER).raise_for_status().json()
        for scope in ("predict", "train", "admin")
    }
    yield {scope: {"Authorization": f"Bearer {key['key']}"} for scope, key in keys.items()}
    for key in keys.values():
        locked.delete(f"/api/v1/keys/{key['id']}", headers=BEARER).raise_for_status()


def test_every_route_answers_the_scopes_that_it_is_listed_with_and_admins(
    application: FastAPI, locked: httpx.Client, keyed: dict[str, dict[str, str]]
) -> None:
    names = set()
    for context in iter_route_contexts(application.routes):
        assert context.path_format is not None
        names.add(context.name)
        for method in sorted(context.methods or ()) if context.path_format not in PUBLIC else ():
            for scope, header in keyed.items():
                answer = locked.request(method, filled(context.path_format), headers=header)

                if POLICY.get(str(context.name), "admin") in ("any", scope) or scope == "admin":
                    assert answer.status_code not in (401, 403, 500), (method, context.path_format, scope)
                else:
                    refused = check_problem(answer, 403, "forbidden")
                    assert f"this one has {scope}." in refused["detail"]
    # the policy has no name without a route
    assert set(POLICY) <= names


def test_what_deletes_versions_and_manages_keys_is_for_admins() -> None:
    for name in ("delete_model", "delete_version", "list_keys", "add_key", "delete_key", "a route of tomorrow", ""):
        assert "admin" == required_scope(type("Route", (), {"name": name}))
    assert ("predict", "train", "any") == (POLICY["predict"], POLICY["train"], POLICY["get_model"])


def test_a_key_of_two_scopes_may_do_what_either_may(locked: httpx.Client) -> None:
    key = locked.post("/api/v1/keys", json={"scopes": ["train", "predict"]}, headers=BEARER).raise_for_status().json()
    mine = {"Authorization": f"Bearer {key['key']}"}

    answers = [
        locked.get("/api/v1/jobs", headers=mine),
        locked.post("/api/v1/models/nobody/predict", json={"records": [{}]}, headers=mine),
        locked.get("/api/v1/keys", headers=mine),
    ]

    assert [200, 404, 403] == [answer.status_code for answer in answers]
    assert "this one has predict, train." in answers[2].json()["detail"]
    locked.delete(f"/api/v1/keys/{key['id']}", headers=BEARER).raise_for_status()


def test_no_body_is_read_before_the_key(locked: httpx.Client) -> None:
    requests = [("PATCH", "/api/v1/datasets/ds_0"), ("PUT", "/api/v1/models/m/aliases/a"), ("POST", "/api/v1/datasets")]
    url = str(locked.base_url)

    for method, path in requests:
        broken = locked.request(method, path, content=b"{", headers={"Content-Type": "application/json"})
        check_problem(broken, 401, "unauthorized")
        # the service does not wait for the body either
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


def test_a_new_route_is_closed_until_it_says_public(application: FastAPI) -> None:
    application.add_api_route("/new", lambda: {"secret": 1})
    application.add_api_route("/shown", lambda: {"shown": 1}, openapi_extra={"security": []})

    async def ask() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        transport = httpx.ASGITransport(application)
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

    make_first_key(services)

    shown = re.search(r"shown once: (fs_\S{43})$", capsys.readouterr().out.strip())
    assert shown is not None
    assert ("admin",) == services.keys.scopes(shown[1])
    assert services.keys.scopes(shown[1][:-1]) is None
    assert shown[1].encode() not in (tmp_path / "data" / "fitserve.db").read_bytes()
    # a restart knows the same key and makes no other
    again = open_services(settings)
    make_first_key(again)
    assert "" == capsys.readouterr().out
    assert ("admin",) == again.keys.scopes(shown[1])
    services.close()
    again.close()


def test_without_an_admin_key_no_key_is_made_and_none_is_valid(
    rooms: Rooms, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = Keys(rooms.database, None)

    assert not keys.load()
    assert keys.scopes("") is None
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


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{}", 422),
        ('{"scopes": []}', 422),
        ('{"scopes": "admin"}', 422),
        ('{"scopes": ["root"]}', 422),
        ('{"scopes": ["train", "train", "train", "train"]}', 422),
        ('{"scopes": ["train"], "name": ""}', 422),
        ('{"scopes": ["train"], "name": 5}', 422),
        ('{"scopes": ["train"], "name": "a\\u0000b"}', 422),
        ('{"scopes": ["train"], "name": "a\\nb"}', 422),
        (f'{{"scopes": ["train"], "name": "{"x" * 201}"}}', 422),
        ('{"scopes": ["train"], "key": "my own"}', 422),
        ("[]", 422),
        ("{", 400),
        ('{"scopes": ["train"], "name": "\\ud800"}', 400),
    ],
)
def test_a_key_that_cannot_be_made_is_not(locked: httpx.Client, body: str, status: int) -> None:
    before = locked.get("/api/v1/keys", headers=BEARER).json()

    check_problem(locked.post("/api/v1/keys", content=body, headers=BEARER | JSON), status)

    assert before == locked.get("/api/v1/keys", headers=BEARER).json()


def test_what_is_no_key_is_not_revoked(locked: httpx.Client) -> None:
    check_problem(locked.post("/api/v1/keys", content=b"{}", headers=BEARER), 415, "unsupported_media_type")
    check_problem(locked.delete("/api/v1/keys/key_0", headers=BEARER), 404, "not_found")
    for wrong in ("0", "job_0", "key_", "key_%00"):
        check_problem(locked.delete(f"/api/v1/keys/{wrong}", headers=BEARER), 422, "invalid")


def test_keys_are_made_shown_once_listed_revoked_and_outlive_a_restart(start: Start) -> None:
    service = start(workers="0", api_key=KEY)

    def ask(method: str, path: str, key: str = KEY, **body: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.request(method, f"{service.url}/api/v1/{path}", headers=headers, json=body or None)

    answers = [ask("POST", "keys", name=name, scopes=["train"]) for name in ("lasting", "revoked")]
    lasting, revoked = (answer.raise_for_status().json() for answer in answers)

    assert [201, 201] == [answer.status_code for answer in answers]
    assert {"id", "name", "scopes", "created_at", "key"} == set(lasting)
    shown = [{name: value for name, value in key.items() if name != "key"} for key in (lasting, revoked)]
    assert sorted(shown, key=lambda key: str(key["id"]), reverse=True) == ask("GET", "keys").json()["items"]
    page = ask("GET", "keys?limit=1").json()
    assert (1, 1) == (len(page["items"]), len(ask("GET", f"keys?limit=1&after={page['next']}").json()["items"]))
    # the key itself is in no stored file and in no log line
    for file in (*service.data_dir.rglob("*"), service.log):
        if file.is_file():
            assert lasting["key"].encode() not in file.read_bytes()
    assert [200, 200] == [ask("GET", "jobs", key["key"]).status_code for key in (lasting, revoked)]
    assert 204 == ask("DELETE", f"keys/{revoked['id']}").status_code
    check_problem(ask("GET", "jobs", revoked["key"]), 401, "unauthorized")

    service.stop()
    service.start()
    assert [200, 401] == [ask("GET", "jobs", key["key"]).status_code for key in (lasting, revoked)]

    # without a key in the settings, the last admin key cannot be deleted, and all others can
    admin = ask("POST", "keys", scopes=["admin"]).raise_for_status().json()
    service.stop()
    del service.settings["api_key"]
    service.start()
    check_problem(ask("DELETE", f"keys/{admin['id']}", ""), 409, "conflict")
    assert 204 == ask("DELETE", f"keys/{lasting['id']}", "").status_code
    assert [admin["id"]] == [key["id"] for key in ask("GET", "keys", "").json()["items"]]


def test_nothing_was_stored_on_the_locked_service(locked: httpx.Client) -> None:
    with httpx.Client(base_url=locked.base_url, headers=BEARER) as client:
        assert {"datasets": [], "jobs": [], "models": []} == listed(client)


def test_uvicorn_trusts_no_proxy_header() -> None:
    # a Host from a proxy header would pass the check of the Host
    assert not uvicorn.Config(FastAPI(), proxy_headers=False).proxy_headers


def test_a_key_to_predict_reads_no_stored_data_by_way_of_evaluate(tmp_path: Path, migrated: Path) -> None:
    service, names = prepare(tmp_path / "data", migrated)
    service.settings["api_key"] = KEY
    try:
        with httpx.Client(base_url=service.start().url, timeout=60) as http:
            key = http.post("/api/v1/keys", json={"scopes": ["predict"]}, headers=BEARER).raise_for_status().json()
            mine = {"Authorization": f"Bearer {key['key']}"}
            own = {"data": {"columns": {"a": [1, 2], "b": ["x", "z"], "y": ["no", "yes"]}}}

            answers = [
                http.post("/api/v1/models/m/evaluate?by=a", json=body, headers=mine)
                for body in ({"dataset": names["dataset"]}, own)
            ]

            assert "the scope train" in check_problem(answers[0], 403, "forbidden")["detail"]
            assert 403 != answers[1].status_code
    finally:
        service.kill_all()
