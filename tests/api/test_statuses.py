"""Every error that `/openapi.json` documents is provoked, operation by operation."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.api.app import create_app
from app.records.dataset import RawFile
from app.records.keys import Keys
from app.records.rooms import Rooms
from app.settings import Settings
from app.wiring import open_rooms, open_services
from tests.conftest import Start
from tests.disks import fill
from tests.server.test_main import small_disk
from tests.service import Service
from tests.stored_rows import add_dataset, submit, train
from tests.wire import JSON, check_problem, exchange, head, is_of_other_protocol

LIMITS = {"workers": "0", "body_seconds": "0.3", "max_queued_jobs": "1", "max_streams": "1"}
LIMITS |= {"max_upload_bytes": "2000", "max_json_bytes": "2000", "max_predict_bytes": "2000"}
TABLE = {"columns": {"a": [1, 2, 3, 4] * 5, "y": ["s", "t", "s", "t"] * 5}}
NOWHERE = {"name": "nobody", "ref": "nobody", "n": "7", "alias": "nothing"}
WRONG = {"name": "a b", "ref": "a b", "n": "0", "alias": "1", "id": "none"}
#: by a name: path and body of a request that the present state does not allow
CONFLICTS: dict[str, tuple[str, Any]] = {
    "rows": ("/api/v1/datasets/{unread}/rows", None),
    "patch": ("/api/v1/datasets/{unread}", {"columns": {"a": {"kind": "text"}}}),
    "delete dataset": ("/api/v1/datasets/{used}", None),
    "train": ("/api/v1/models/m/train", {"dataset": "{unread}"}),
    "evaluate": ("/api/v1/models/m/evaluate", {"dataset": "{unread}"}),
    "cancel": ("/api/v1/jobs/{ended}/cancel", None),
    "resume": ("/api/v1/jobs/{waiting}/resume", None),
    "delete job": ("/api/v1/jobs/{waiting}", None),
    "delete model": ("/api/v1/models/m", None),
    "delete version": ("/api/v1/models/m/versions/1", None),
    "rollback": ("/api/v1/models/m/aliases/default/rollback", None),
    "alias of a damaged version": ("/api/v1/models/damaged/aliases/best", {"version": 1}),
    "revoke": ("/api/v1/keys/{key}", None),
}


@dataclass(frozen=True)
class Target:
    """A service with small limits, the operations of its document, and the names of what it holds."""

    service: Service
    http: httpx.Client
    names: dict[str, str]

    def operations(self, status: int) -> list[tuple[str, str, dict[str, Any]]]:
        """Return method, path and document of every operation that documents a status."""
        paths = self.http.get("/openapi.json").raise_for_status().json()["paths"]
        operations = [
            (method, path, operation)
            for path, item in paths.items()
            for method, operation in item.items()
            if str(status) in operation["responses"]
        ]
        assert operations
        return operations

    def address(self, path: str, places: dict[str, str] | None = None) -> str:
        """Fill the places in a path, by default with things that exist."""
        noun = next((noun for noun in ("dataset", "job", "key") if f"/{noun}s/" in path), "")
        there = {"name": "m", "ref": "m", "n": "1", "alias": "default", "id": self.names.get(noun, "")}
        filled = re.sub(r"\{(\w+)\}", lambda place: (places or there)[place[1]], path)
        return f"{filled}?format=weights" if path.endswith("/export") else filled


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Target]:
    service, names = prepare(tmp_path_factory.mktemp("statuses") / "data", migrated)
    with httpx.Client(base_url=service.start().url, timeout=60) as http:
        yield Target(service, http, names)
    assert service.stop() == 0


def prepare(data_dir: Path, migrated: Path) -> tuple[Service, dict[str, str]]:
    """Fill a data directory; return a service on it that is not started, and the names of what the directory holds."""
    data_dir.mkdir()
    shutil.copy(migrated, data_dir / "fitserve.db")
    rooms = open_rooms(Settings(data_dir=data_dir))
    # the model `m` has an alias and a waiting job; everything of `other` may be deleted
    for model in ("m", "other", "other", "damaged"):
        train(rooms, model)
    damaged = rooms.registry.folder(rooms.registry.get_version("damaged", 1)) / "weights.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    ended = rooms.jobs.cancel(submit(rooms, dataset=add_dataset(rooms)).id)
    with rooms.blobs.staging("test") as folder:
        (folder / "raw").write_text("nothing but a header\n")
        unread, _ = rooms.datasets.add_unread(None, RawFile.of(folder / "raw", "csv"))
    waiting = submit(rooms, dataset=add_dataset(rooms, b"a,y\n3,x\n", b"used"))
    key, _ = Keys(rooms.database, None).add("the last", ["admin"])
    names = {"dataset": waiting.dataset_id, "used": waiting.dataset_id, "job": waiting.id, "waiting": waiting.id}
    names |= {"ended": ended.id, "unread": unread.id, "key": key.id}
    rooms.close()
    return Service(data_dir, dict(LIMITS)), names


def media_types(operation: dict[str, Any]) -> list[str]:
    return list(operation["requestBody"]["content"])


def test_400_what_cannot_be_read(target: Target) -> None:
    for method, path, operation in target.operations(400):
        if is_of_other_protocol(path) and "requestBody" not in operation:
            check_problem(target.http.request(method, target.address(path, WRONG)), 400)
            continue
        assert "requestBody" in operation, path
        answer = target.http.request(
            method, target.address(path), content=b"{", headers={"Content-Type": "application/json"}
        )
        check_problem(answer, 400, "malformed")


def test_401_no_key_or_an_unknown_one(target: Target, locked: httpx.Client) -> None:
    for method, path, _ in target.operations(401):
        for headers in ({}, {"Authorization": "Bearer nobody-knows-this-key"}):
            answer = locked.request(method, target.address(path), headers=headers)
            check_problem(answer, 401, "unauthorized")
            assert "Bearer" == answer.headers["www-authenticate"]


def test_403_a_host_that_is_not_answered(target: Target) -> None:
    for method, path, _ in target.operations(403):
        answer = target.http.request(method, target.address(path), headers={"Host": "evil.example"})
        check_problem(answer, 403, "forbidden")


def test_404_what_is_not_there(target: Target) -> None:
    for method, path, operation in target.operations(404):
        absent = next(
            (absent for part, absent in (("/datasets/", "ds_0"), ("/jobs/", "job_0")) if part in path), "key_0"
        )
        body: dict[str, Any] | None = None
        if "requestBody" in operation:
            body = {"version": 1} if "alias" in path else {"dataset": "ds_0"}
            body = {"columns": {"a": {"kind": "text"}}} if method == "patch" else body
            body = {"x": [[1, 2]]} if path.endswith("/predict") else body
        answer = target.http.request(method, target.address(path, NOWHERE | {"id": absent}), json=body)
        check_problem(answer, 404, "not_found")


def test_405_a_method_that_a_path_does_not_have_names_those_it_has(target: Target) -> None:
    paths = target.http.get("/openapi.json").json()["paths"]
    for path, item in paths.items():
        answer = target.http.request("PROPFIND", target.address(path))
        check_problem(answer, 405, "method_not_allowed")
        assert {method.upper() for method in item} == set(answer.headers["allow"].split(", ")), path


def test_406_an_answer_that_there_is_not(target: Target) -> None:
    for method, path, operation in target.operations(406):
        body = {"x": [[1, 2]]} if "requestBody" in operation else None
        answer = target.http.request(method, target.address(path), json=body, headers={"Accept": "image/png"})
        check_problem(answer, 406, "not_acceptable")


def test_408_a_body_that_stops(target: Target) -> None:
    url = target.service.url

    def ask(documented: tuple[str, str, dict[str, Any]]) -> Any:
        method, path, operation = documented
        framing = (f"Content-Type: {media_types(operation)[0]}", "Content-Length: 100")
        return exchange(url, head(url, method.upper(), target.address(path), *framing) + b"{")

    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(ask, target.operations(408)):
            check_problem(answer, 408, "timeout")


def test_409_what_the_present_state_does_not_allow(target: Target) -> None:
    documented = target.operations(409)

    provoked = set()
    for name, (path, body) in CONFLICTS.items():
        at = path.format(**target.names)
        content = None if body is None else json.dumps(body).replace("{unread}", target.names["unread"])
        # the request is one operation of the document
        ((method, template),) = {
            (method, template)
            for method, template, _ in documented
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), at)
            and (method == "delete") == name.startswith(("delete", "revoke"))
        }
        headers = {"Content-Type": "application/json"} if content else {}
        check_problem(target.http.request(method, at, content=content, headers=headers), 409, "conflict")
        provoked.add((method, template))

    assert {(method, path) for method, path, _ in documented} == provoked


def test_an_alias_stays_where_it_is_when_a_version_cannot_be_loaded(target: Target) -> None:
    for alias in ("default", "best"):
        answer = target.http.put(f"/api/v1/models/damaged/aliases/{alias}", json={"version": 1})
        assert "can be loaded" in check_problem(answer, 409, "conflict")["detail"]

    moves = target.http.get("/api/v1/models/damaged/aliases/default/history").json()["items"]
    assert ["promoted"] == [move["reason"] for move in moves]
    check_problem(target.http.get("/api/v1/models/damaged/aliases/best/history"), 404, "not_found")


def test_413_a_body_over_the_limit(target: Target) -> None:
    for method, path, operation in target.operations(413):
        body, headers = b" " * (1024**2 + 1), {"Content-Type": media_types(operation)[0]}
        for content in (body, iter([body[:3000], body[3000:]])):
            answer = target.http.request(method, target.address(path), content=content, headers=headers)
            assert "at most" in check_problem(answer, 413, "too_large")["detail"]


@pytest.mark.parametrize("headers", [{}, {"Content-Type": "image/png"}, {"Content-Encoding": "br"}], ids=str)
def test_415_a_type_that_is_not_read(target: Target, headers: dict[str, str]) -> None:
    for method, path, operation in target.operations(415):
        if is_of_other_protocol(path) and "Content-Encoding" not in headers:
            # the other protocols ignore the Content-Type
            continue
        sent = headers if "Content-Encoding" not in headers else {"Content-Type": media_types(operation)[0], **headers}
        answer = target.http.request(method, target.address(path), content=b"{}", headers=sent)
        check_problem(answer, 415, "unsupported_media_type")


def test_422_what_is_well_formed_and_wrong(target: Target) -> None:
    for method, path, operation in target.operations(422):
        at, sent = target.address(path, WRONG), {}
        if "{" not in path:
            query = [parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "query"]
            at = f"{path}?" + "&".join(f"{name}={'x' * 300}" for name in query)
        if "requestBody" in operation:
            sent = {"content": b"{}", "headers": {"Content-Type": "application/json"}}
        check_problem(target.http.request(method, at, **sent), 422, "invalid")  # type: ignore[arg-type]


def test_429_a_queue_that_is_full(target: Target) -> None:
    sse = {"Accept": "text/event-stream"}
    with target.http.stream("GET", target.address("/api/v1/jobs/{id}/events"), headers=sse) as stream:
        assert 200 == stream.status_code
        for method, path, operation in target.operations(429):
            body = {"data": TABLE} if "requestBody" in operation else None
            answer = target.http.request(method, target.address(path), json=body, headers=sse)
            check_problem(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) > 0


def test_503_where_the_database_cannot_be_read_and_when_to_try_again(
    start: Start,
) -> None:
    service = start(workers="0")
    # paths that need no database
    apart = {"/livez", "/readyz", "/metrics", "/v2", "/v2/health/live", "/v2/health/ready"}
    with httpx.Client(base_url=service.url, timeout=60) as http:
        target = Target(service, http, {"dataset": "ds_0", "job": "job_0", "key": "key_0"})
        operations = [documented for documented in target.operations(503) if documented[1] not in apart]
        with (service.data_dir / "fitserve.db").open("r+b") as file:
            file.write(bytes(100))

        for method, path, operation in operations:
            sent = {"content": body_of(path), "headers": JSON} if "requestBody" in operation else {}
            answer = http.request(method, target.address(path), **sent)  # type: ignore[arg-type]
            check_problem(answer, 503, "unavailable")
            assert int(answer.headers["retry-after"]) > 0
        for path in apart:
            assert http.get(path).is_success


def body_of(path: str) -> bytes:
    """Return a body that the operation at a path accepts."""
    last = path.rpartition("/")[2]
    bodies: dict[str, Any] = {"train": {"data": TABLE}, "predict": {"records": [{"a": 1.0, "b": "x"}]}}
    bodies |= {"evaluate": {"data": {"columns": {"a": [1, 2], "b": ["x", "z"], "y": ["no", "yes"]}}}}
    bodies |= {"datasets": TABLE, "keys": {"scopes": ["predict"]}, "{alias}": {"version": 1}}
    return json.dumps(bodies.get(last, {"columns": {"a": {"kind": "categorical"}}})).encode()


def test_503_while_it_drains(rooms: Rooms, tmp_path: Path, database_url: str) -> None:
    services = open_services(Settings(data_dir=tmp_path / "data", database_url=database_url))
    services.drain()

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(services))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/readyz")

    check_problem(asyncio.run(ask()), 503, "not_ready")
    services.close()


def test_507_a_disk_that_is_full(request: pytest.FixtureRequest, migrated: Path) -> None:
    disk: Path = request.getfixturevalue(small_disk.__name__)
    service, names = prepare(disk / "data", migrated)
    try:
        with httpx.Client(base_url=service.start().url, timeout=60) as http:
            table = http.post("/api/v1/datasets", json=TABLE).raise_for_status().json()["id"]
            # not the last admin key, which cannot be deleted
            key = http.post("/api/v1/keys", json={"scopes": ["admin"]}).raise_for_status().json()["id"]
            target = Target(service, http, names | {"dataset": table, "key": key})
            fill(disk, 0)

            for method, path, operation in target.operations(507):
                places = {"name": "other", "ref": "other", "n": "1", "alias": "default"}
                ended = path.endswith(("/resume", "/jobs/{id}"))
                noun = next((noun for noun in ("dataset", "job", "key") if f"/{noun}s/" in path), "")
                places["id"] = names["ended"] if ended else target.names.get(noun, "")
                sent: dict[str, Any] = {"headers": {"Accept": "application/vnd.apache.arrow.stream, */*;q=0.1"}}
                if "requestBody" in operation:
                    sent |= {"content": body_of(path), "headers": sent["headers"] | JSON}
                answer = http.request(method, target.address(path, places), **sent)
                check_problem(answer, 507, "storage_full")
    finally:
        service.kill_all()
