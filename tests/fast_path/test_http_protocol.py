"""Duties of every request, kept for plain predictions, which no route sees: each duty on a real socket."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.settings import Settings
from app.wiring import open_rooms
from tests.hostile import MODELS, hostile_bodies, json_bodies, publish_models
from tests.service import Service
from tests.shared_services import KEY
from tests.wire import JSON, Answer, check_problem, connect, exchange, head, read_answer

PATH = "/api/v1/models/numbers/predict"
BODY = b'{"x":[[1,2]]}'
TENSOR = b'{"inputs":[{"name":"m","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'
BEARER = {"Authorization": f"Bearer {KEY}"}
#: a query that changes nothing, and that the fast path leaves to the route
BY_ROUTE = {"on_error": "fail"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Service]:
    """A service with a key, small limits, and versions that were published before it started."""
    folder = tmp_path_factory.mktemp("fast") / "data"
    folder.mkdir()
    shutil.copy(migrated, folder / "fitserve.db")
    rooms = open_rooms(Settings(data_dir=folder))
    publish_models(rooms)
    rooms.close()
    limits = {"max_predict_bytes": "1000", "body_seconds": "0.5", "workers": "0", "api_key": KEY, "fast_path": "true"}
    running = Service(folder, limits).start()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def http(service: Service) -> Iterator[httpx.Client]:
    """A connection that sends the key."""
    with httpx.Client(base_url=service.url, timeout=60, headers=BEARER) as connected:
        yield connected


def predict(http: httpx.Client, body: Any = BODY, path: str = PATH, **options: Any) -> httpx.Response:
    return http.post(path, content=body, headers={**JSON, **options.pop("headers", {})}, **options)


def test_a_plain_prediction_is_answered_as_by_the_route(http: httpx.Client) -> None:
    plain, by_route = predict(http), predict(http, params=BY_ROUTE)

    assert (200, by_route.content) == (plain.status_code, plain.content)
    assert "numbers@1" == plain.headers["x-model"]
    own = {"date", "x-request-id"}
    assert [each for each in plain.headers.items() if each[0] not in own] == [
        each for each in by_route.headers.items() if each[0] not in own
    ]


@pytest.mark.parametrize("model", MODELS)
def test_hostile_bodies_are_answered_as_by_the_route(http: httpx.Client, model: str) -> None:
    path = f"/api/v1/models/{model}/predict"

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.one_of(json_bodies(model), hostile_bodies(model)))
    def check(body: bytes) -> None:
        headers = {"X-Request-ID": "same"}
        answers = [predict(http, body, path, headers=headers, params=params) for params in ({}, BY_ROUTE)]
        assert (answers[1].status_code, answers[1].content) == (answers[0].status_code, answers[0].content)

    check()


def test_a_key_is_asked_for(service: Service, http: httpx.Client) -> None:
    for authorization in ("", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer", KEY):
        answer = httpx.post(service.url + PATH, content=BODY, headers={**JSON, "Authorization": authorization})

        check_problem(answer, 401, "unauthorized")
        assert "Bearer" == answer.headers["www-authenticate"]


def test_a_key_has_to_have_the_scope_and_is_revoked_at_once(http: httpx.Client) -> None:
    made = {
        scope: http.post("/api/v1/keys", json={"scopes": [scope]}).json() for scope in ("predict", "train", "admin")
    }

    def ask(scope: str) -> httpx.Response:
        return predict(http, headers={"Authorization": f"Bearer {made[scope]['key']}"})

    assert (200, 200) == (ask("predict").status_code, ask("admin").status_code)
    check_problem(ask("train"), 403, "forbidden")
    for each in made.values():
        http.delete(f"/api/v1/keys/{each['id']}").raise_for_status()
    for scope in made:
        check_problem(ask(scope), 401, "unauthorized")


def test_a_body_over_the_limit_is_413(http: httpx.Client) -> None:
    body = b'{"x":[[1,2]]' + b" " * 1000 + b"}"

    for content in (body, iter([body]), iter([body[:500], body[500:]])):
        assert "1000 bytes" in check_problem(predict(http, content), 413, "too_large")["detail"]
    assert 200 == predict(http, iter([BODY[:5], BODY[5:]])).status_code


def test_a_body_that_stops_is_408(service: Service) -> None:
    about = ("Content-Type: application/json", f"Authorization: Bearer {KEY}", "Content-Length: 100")
    request = head(service.url, "POST", PATH, *about)

    for sent in (request, request + BODY[:5]):
        check_problem(exchange(service.url, sent), 408, "timeout")


def test_a_body_may_come_late(service: Service) -> None:
    about = ("Content-Type: application/json", f"Authorization: Bearer {KEY}", f"Content-Length: {len(BODY)}")

    with connect(service.url) as connection:
        connection.sendall(head(service.url, "POST", PATH, *about))
        for byte in BODY[:3]:
            time.sleep(0.02)
            connection.sendall(bytes([byte]))
        connection.sendall(BODY[3:])
        assert 200 == read_answer(connection).status_code


def test_requests_that_come_together_are_answered_in_order(service: Service) -> None:
    bodies = [b'{"x":[[%d,2]]}' % i for i in range(6)]
    about = ("Content-Type: application/json", f"Authorization: Bearer {KEY}", f"Content-Length: {len(BODY)}")
    alone = [exchange(service.url, head(service.url, "POST", PATH, *about) + body).content for body in bodies]
    paths = [PATH, f"{PATH}?on_error=fail", PATH, PATH, f"{PATH}?on_error=fail", PATH]

    requests = [head(service.url, "POST", p, *about) + b for p, b in zip(paths, bodies, strict=True)]

    def read(came: BinaryIO) -> bytes:
        size = 0
        for line in iter(came.readline, b"\r\n"):
            size = int(line.partition(b":")[2]) if line.startswith(b"content-length") else size
        return came.read(size)

    with connect(service.url) as connection, connection.makefile("rb") as came:
        # the second time the fast path knows the heads
        for _ in range(2):
            connection.sendall(b"".join(requests))
            assert alone == [read(came) for _ in requests]
            for request, answer in zip(requests, alone, strict=True):
                connection.sendall(request)
                assert answer == read(came)


def test_the_last_request_of_a_connection_is_answered_and_ends_it(service: Service) -> None:
    about = ("Content-Type: application/json", f"Authorization: Bearer {KEY}", f"Content-Length: {len(BODY)}")

    with connect(service.url) as connection:
        connection.sendall(head(service.url, "POST", PATH, *about) + BODY)
        assert "connection" not in read_answer(connection).headers
        connection.sendall(head(service.url, "POST", PATH, *about, "Connection: close") + BODY)
        assert (200, "close") == ((last := read_answer(connection)).status_code, last.headers["connection"])
        assert b"" == connection.recv(1)


def send_at_once(connection: socket.socket, service: Service, key: str = KEY, body: bytes = BODY) -> Answer:
    """Send head and body in one piece: the fast path knows the head when it comes again."""
    about = ("Content-Type: application/json", f"Authorization: Bearer {key}", f"Content-Length: {len(body)}")
    connection.sendall(head(service.url, "POST", PATH, *about) + body)
    return read_answer(connection)


def test_a_known_head_asks_for_its_key_again(service: Service, http: httpx.Client) -> None:
    made = http.post("/api/v1/keys", json={"scopes": ["predict"]}).json()

    with connect(service.url) as connection:
        assert [200] * 3 == [send_at_once(connection, service, made["key"]).status_code for _ in range(3)]
        http.delete(f"/api/v1/keys/{made['id']}").raise_for_status()
        for _ in range(2):
            check_problem(send_at_once(connection, service, made["key"]), 401, "unauthorized")


def test_a_known_request_may_be_sent_many_times(service: Service) -> None:
    with connect(service.url) as connection:
        answers = [send_at_once(connection, service, body=BODY + b" " * 900) for _ in range(60)]

    assert {200} == {answer.status_code for answer in answers}
    assert 60 == len({answer.headers["x-request-id"] for answer in answers})


def test_a_client_that_goes_away_leaves_nothing_behind(service: Service, http: httpx.Client) -> None:
    about = ("Content-Type: application/json", f"Authorization: Bearer {KEY}", "Content-Length: 100")
    for sent in (b"", BODY):
        with connect(service.url) as connection:
            connection.sendall(head(service.url, "POST", PATH, *about) + sent)

    assert 200 == predict(http).status_code
    deadline = time.monotonic() + 10
    while figures(http, "http_server_active_requests", http_request_method="POST") != [0.0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def figures(http: httpx.Client, name: str, **labels: str) -> list[float]:
    """Return a metric's values in the lines that have these labels."""
    lines = http.get("/metrics").text.splitlines()
    of_it = [line for line in lines if re.match(rf"{name}(\{{|_requests?\{{|[a-z_]*\{{)", line)]
    return [float(line.rpartition(" ")[2]) for line in of_it if all(f'{k}="{v}"' in line for k, v in labels.items())]


@pytest.mark.parametrize(
    ("path", "body", "route"),
    [
        (PATH, BODY, "/api/v1/models/{ref}/predict"),
        ("/v1/models/numbers:predict", b'{"instances":[[1,2]]}', "/v1/models/{name}:predict"),
        ("/v1/models/numbers/versions/1:predict", b'{"inputs":[[1,2]]}', "/v1/models/{name}/versions/{n}:predict"),
        ("/v2/models/numbers/infer", TENSOR, "/v2/models/{name}/infer"),
        ("/v2/models/numbers/versions/1/infer", TENSOR, "/v2/models/{name}/versions/{n}/infer"),
    ],
)
def test_a_prediction_is_counted_among_the_requests_of_the_route(
    http: httpx.Client, path: str, body: bytes, route: str
) -> None:
    labels = {
        "http_route": route,
        "http_request_method": "POST",
        "http_response_status_code": "200",
        "network_protocol_version": "1.1",
        "url_scheme": "http",
        "otel_scope_name": "fastapi",
    }

    def counted() -> list[list[float]]:
        return [figures(http, f"http_server_request_duration_seconds_{name}", **labels) for name in ("count", "sum")]

    predict(http, body, path)
    predict(http, body, path, params=BY_ROUTE)
    (before,), (seconds,) = counted()
    for _ in range(3):
        predict(http, body, path).raise_for_status()
        predict(http, body, path, params=BY_ROUTE).raise_for_status()
    (after,), (more,) = counted()

    assert before + 6 == after
    assert seconds < more
    buckets = figures(http, "http_server_request_duration_seconds_bucket", **labels)
    assert sorted(buckets) == buckets
    assert after == buckets[-1]


def test_an_answer_has_an_id_and_the_headers_of_every_answer(http: httpx.Client) -> None:
    own, other = predict(http, headers={"X-Request-ID": "my-id.7"}), predict(http)

    assert "my-id.7" == own.headers["x-request-id"]
    assert re.fullmatch(r"[0-9a-f]{16}", other.headers["x-request-id"])
    for name in ("x-content-type-options", "referrer-policy", "cross-origin-opener-policy", "x-model"):
        assert 1 == len(own.headers.get_list(name))
    assert "server" not in own.headers


def test_a_prediction_has_a_line_in_the_log(service: Service, http: httpx.Client) -> None:
    predict(http, headers={"X-Request-ID": "one-in-the-log"})
    predict(http, headers={"X-Request-ID": "two-in-the-log"}, params=BY_ROUTE)

    found: list[dict[str, Any]] = []
    deadline = time.monotonic() + 10
    while len(found) < 2 and time.monotonic() < deadline:
        found = [json.loads(line) for line in service.log.read_text().splitlines() if "-in-the-log" in line]
    one, two = found
    assert {"request_id", "level", "logger", "method", "path", "status", "elapsed_ms", "timestamp", "message"} == set(
        one
    )
    assert list(one) == list(two)
    assert ("one-in-the-log", "POST", PATH, 200) == (one["request_id"], one["method"], one["path"], one["status"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", one["timestamp"])


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "https://evil.example"}])
def test_a_page_of_another_origin_may_not_predict_without_a_key(limited: httpx.Client, headers: dict[str, str]) -> None:
    check_problem(predict(limited, headers=headers), 403, "forbidden")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/x-nothing"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Content-Encoding": "br"}, 415),
        ({"Content-Encoding": "gzip"}, 400),
        ({"Accept": "text/html"}, 406),
    ],
)
def test_a_request_that_is_not_plain_is_told_what_is_wrong(
    http: httpx.Client, headers: dict[str, str], status: int
) -> None:
    check_problem(predict(http, headers=headers), status)


@pytest.mark.parametrize("accept", ["text/csv", "application/x-npz", "application/json;q=0.5, */*;q=0.1"])
def test_the_route_answers_in_other_formats(http: httpx.Client, accept: str) -> None:
    answer = predict(http, headers={"Accept": accept})

    assert (200, accept.partition(";")[0]) == (answer.status_code, answer.headers["content-type"].partition(";")[0])


def test_a_request_under_way_is_answered_when_the_service_stops(service: Service) -> None:
    about = ("Content-Type: application/json", f"Authorization: Bearer {KEY}", f"Content-Length: {len(BODY)}")

    # the last test of this service
    with connect(service.url) as connection:
        connection.sendall(head(service.url, "POST", PATH, *about) + BODY[:5])
        time.sleep(0.1)
        service.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        connection.sendall(BODY[5:])
        assert 200 == read_answer(connection).status_code
    assert 0 == service.process.wait(25)
