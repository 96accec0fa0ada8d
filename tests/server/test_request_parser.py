"""A request that asks for another protocol is answered as any other: once, with its body, and the next request after it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from app.settings import Settings
from app.wiring import open_rooms
from tests.hostile import publish_models
from tests.service import Service
from tests.tensors import Input, as_bytes
from tests.wire import Answer, check_problem, connect, exchange, head, read_answers

H2C = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
#: lines of a head that asks for another protocol, by a name
UPGRADES = {
    "curl": H2C,
    "a WebSocket": (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: eA==",
    ),
    "TLS": ("Upgrade: TLS/1.0", "Connection: Upgrade"),
    "no protocol": ("upgrade: foo", "connection: upgrade"),
    "several": ("UPGRADE: h2c, foo/2", "CONNECTION: keep-alive", "CONNECTION: uPgRaDe", "Upgrade: bar"),
}
JSON, CSV = "Content-Type: application/json", "Content-Type: text/csv"
BODY = b'{"x":[[1,2]]}'
TABLE = b"a,b,y\n" + b"1,2,no\n3,4,yes\n" * 6
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="t.csv"\r\nContent-Type: text/csv\r\n\r\n%b\r\n--b--\r\n'
    % TABLE
)
TRAIN = b'{"data": {"columns": {"a": [1, 2, 3, 4, 5, 6], "y": [0, 1, 0, 1, 0, 1]}}}'
TENSOR, SIZES = as_bytes([Input("m", "FP32", [1, 2], [1.0, 2.0])])


class Request(NamedTuple):
    """A request, and the status of its answer."""

    method: str
    path: str
    lines: tuple[str, ...] = ()
    body: bytes = b""
    status: int = 200


REQUESTS = {
    "predict": Request("POST", "/api/v1/models/numbers/predict", (JSON,), BODY),
    "predict by the route": Request("POST", "/api/v1/models/numbers/predict?on_error=fail", (JSON,), BODY),
    "predict from CSV": Request("POST", "/api/v1/models/numbers/predict", (CSV,), b"a,b\n1,2\n"),
    "evaluate": Request("POST", "/api/v1/models/numbers/evaluate", (CSV,), TABLE),
    "train": Request("POST", "/api/v1/models/m/train?dry_run=true", (JSON,), TRAIN),
    "upload": Request("POST", "/api/v1/datasets", (CSV,), TABLE),
    "upload a form": Request("POST", "/api/v1/datasets", ("Content-Type: multipart/form-data; boundary=b",), FORM),
    "upload what is no table": Request("POST", "/api/v1/datasets", (CSV,), b"a,b\n1\n", 422),
    "V1": Request("POST", "/v1/models/numbers:predict", (JSON,), b'{"instances":[[1,2]]}'),
    "V2": Request(
        "POST",
        "/v2/models/numbers/infer",
        (JSON,),
        b'{"inputs":[{"name":"m","datatype":"FP32","shape":[1,2],"data":[1,2]}]}',
    ),
    "V2 in bytes": Request("POST", "/v2/models/numbers/infer", tuple(f"{n}: {v}" for n, v in SIZES.items()), TENSOR),
    "PUT": Request("PUT", "/api/v1/models/numbers/aliases/a", (JSON,), b'{"version": 9}', 404),
    "PATCH": Request("PATCH", "/api/v1/datasets/ds_0", (JSON,), b'{"columns": {"a": {"kind": "text"}}}', 404),
    "nowhere": Request("POST", "/nowhere", (JSON,), BODY, 404),
    "another method": Request("POST", "/livez", (JSON,), BODY, 405),
    "GET with a body": Request("GET", "/livez", (JSON,), BODY),
}
BARE = {
    "GET": Request("GET", "/livez"),
    "DELETE": Request("DELETE", "/api/v1/models/nobody", (), b"", 404),
    "a POST without a body": Request("POST", "/api/v1/models/numbers/predict", (JSON,), b"", 400),
}
PREDICT = REQUESTS["predict"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Service]:
    """A service whose versions were published, and whose data set was uploaded, before the tests."""
    folder = tmp_path_factory.mktemp("upgrade") / "data"
    folder.mkdir()
    shutil.copy(migrated, folder / "fitserve.db")
    rooms = open_rooms(Settings(data_dir=folder))
    publish_models(rooms)
    rooms.close()
    running = Service(folder, {"workers": "0"}).start()
    # the first upload of a table is answered with 201, the later ones with 200
    exchange(running.url, write(running.url, REQUESTS["upload"]))
    yield running
    assert running.stop() == 0


def write(url: str, request: Request, upgrade: Iterable[str] = (), framing: str = "Content-Length") -> bytes:
    """Write a request."""
    body, frame = request.body, [f"Content-Length: {len(request.body)}"] if request.body else []
    if framing == "chunked":
        frame = ["Transfer-Encoding: chunked"]
        body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:5], body[5:]) if part) + b"0\r\n\r\n"
    return head(url, request.method, request.path, *request.lines, *upgrade, *frame, "X-Request-ID: same") + body


def last(url: str) -> bytes:
    """Write the last request of a connection."""
    return head(url, "GET", "/livez", "Connection: close")


def arrive(request: bytes, then: bytes, arrival: str) -> list[bytes]:
    """Cut what is sent into the pieces in which it arrives."""
    end = request.index(b"\r\n\r\n") + 4
    if arrival == "at once":
        return [request + then]
    if arrival == "the body later":
        return [request[:end], request[end:], then]
    if arrival == "a part of the body with the head":
        return [request[:40], request[40 : end + 4], request[end + 4 :] + then]
    whole = request + then
    return [whole[at : at + 29] for at in range(0, len(whole), 29)]


ARRIVALS = ("at once", "the body later", "a part of the body with the head", "small pieces")


def answers(url: str, pieces: Iterable[bytes], pause_seconds: float = 0.01) -> list[Answer]:
    """Send these pieces on one connection; return every answer that comes until its end."""
    with connect(url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause_seconds)
        return read_answers(connection)


def said(answer: Answer) -> tuple[int, bytes, dict[str, str]]:
    """Return the parts of an answer that do not change from time to time."""
    return (
        answer.status_code,
        answer.content,
        {n: v for n, v in answer.headers.items() if n not in ("date", "connection")},
    )


def check_ignored(service: Service, request: Request, upgrade: Iterable[str], framing: str, arrival: str) -> None:
    """Assert that there is one answer, that of the same request without an upgrade, and then the answer of the next request."""
    url = service.url
    expected = exchange(url, write(url, request, (), framing))
    assert request.status == expected.status_code, expected.content

    came = answers(url, arrive(write(url, request, upgrade, framing), last(url), arrival))

    assert [request.status, 200] == [answer.status_code for answer in came], came
    assert said(expected) == said(came[0])
    assert json.loads(came[1].content) == {"status": "alive"}


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
@pytest.mark.parametrize("upgrade", UPGRADES)
def test_an_upgrade_to_any_protocol_is_ignored(service: Service, upgrade: str, framing: str, arrival: str) -> None:
    check_ignored(service, PREDICT, UPGRADES[upgrade], framing, arrival)


@pytest.mark.parametrize("arrival", ARRIVALS[:2])
@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
@pytest.mark.parametrize("name", REQUESTS)
def test_an_upgrade_is_ignored_on_every_route(service: Service, name: str, framing: str, arrival: str) -> None:
    check_ignored(service, REQUESTS[name], H2C, framing, arrival)


@pytest.mark.parametrize("arrival", [ARRIVALS[0], ARRIVALS[3]])
@pytest.mark.parametrize("name", BARE)
def test_an_upgrade_without_a_body_is_ignored(service: Service, name: str, arrival: str) -> None:
    check_ignored(service, BARE[name], H2C, "Content-Length", arrival)


@pytest.mark.parametrize("framing", ["Content-Length", "chunked"])
@pytest.mark.parametrize("path", [PREDICT.path, f"{PREDICT.path}?on_error=fail", "/nowhere"])
def test_a_body_behind_an_upgrade_is_no_request(service: Service, path: str, framing: str) -> None:
    url = service.url
    hidden = Request("POST", path, (JSON,), head(url, "GET", "/livez"), 404 if path == "/nowhere" else 400)

    for upgrade in UPGRADES.values():
        request = write(url, hidden, upgrade, framing)
        came = answers(url, arrive(request, last(url), "the body later"), 0.03)
        assert [hidden.status, 200] == [answer.status_code for answer in came], came


def test_upgrades_that_come_together_are_answered_in_order(service: Service) -> None:
    url = service.url
    requests = [REQUESTS[name] for name in ("predict", "V1", "GET with a body", "nowhere", "predict by the route")] * 3
    alone = [said(exchange(url, write(url, request))) for request in requests]
    sent = [
        write(url, request, (H2C, ())[i % 4 == 3], ("Content-Length", "chunked")[i % 2])
        for i, request in enumerate(requests)
    ]

    for pieces in ([b"".join([*sent, last(url)])], [*sent, last(url)]):
        came = answers(url, pieces)
        assert alone == [said(answer) for answer in came[:-1]]
        assert 200 == came[-1].status_code


def test_thousands_of_upgrades_in_one_piece_are_answered(service: Service) -> None:
    url = service.url
    upgrade = head(url, "GET", "/livez", "Connection: Upgrade", "Upgrade: a")

    came = answers(url, [upgrade * 1500 + last(url)])

    assert [200] * 1501 == [answer.status_code for answer in came]


def test_a_known_head_with_an_upgrade_is_answered_again(service: Service) -> None:
    url = service.url
    request = head(url, "POST", PREDICT.path, JSON, *H2C, f"Content-Length: {len(BODY)}")
    alone = [exchange(url, write(url, PREDICT._replace(body=body))).content for body in (BODY, b'{"x":[[3,4]]}')]
    assert alone[0] != alone[1]

    came = answers(url, [request + BODY, request + b'{"x":[[3,4]]}', request, BODY, request + BODY, last(url)])

    assert [alone[0], alone[1], alone[0], alone[0]] == [answer.content for answer in came[:-1]]


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_a_client_with_an_upgrade_is_asked_for_its_body(service: Service, arrival: str) -> None:
    url = service.url
    with_upgrade, without = (write(url, PREDICT, (*upgrade, "Expect: 100-continue")) for upgrade in (H2C, ()))

    came, expected = (answers(url, arrive(request, last(url), arrival)) for request in (with_upgrade, without))

    assert [100, 200, 200] == [answer.status_code for answer in came]
    assert [said(answer)[:2] for answer in expected[:2]] == [said(answer)[:2] for answer in came[:2]]


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_an_upgrade_in_http_1_0_is_ignored(service: Service, upgrade: str, arrival: str) -> None:
    url = service.url
    request = write(url, PREDICT, ("Connection: Upgrade", f"Upgrade: {upgrade}")).replace(b"HTTP/1.1", b"HTTP/1.0")

    came = answers(url, arrive(request, b"", arrival))

    assert [said(exchange(url, write(url, PREDICT)))] == [said(answer) for answer in came]


@pytest.mark.parametrize("arrival", ARRIVALS)
def test_an_upgrade_on_the_last_request_of_a_connection_is_ignored(service: Service, arrival: str) -> None:
    url = service.url
    request = write(url, PREDICT, ("Connection: close, Upgrade", "Upgrade: h2c"))

    came = answers(url, arrive(request, last(url), arrival))

    assert [(200, "close")] == [(answer.status_code, answer.headers["connection"]) for answer in came]


@pytest.mark.parametrize("arrival", ARRIVALS)
@pytest.mark.parametrize("target", ["127.0.0.1:443", "/livez", "http://127.0.0.1/livez", "*"])
@pytest.mark.parametrize("upgrade", [(), H2C])
def test_connect_is_refused_and_ends_the_connection(
    service: Service, target: str, upgrade: tuple[str, ...], arrival: str
) -> None:
    url = service.url
    request = write(url, Request("CONNECT", target, (), head(url, "GET", "/livez")), upgrade)

    came = answers(url, [head(url, "GET", "/livez"), *arrive(request, last(url), arrival)])

    assert [200, 400] == [answer.status_code for answer in came]
    assert "CONNECT" in check_problem(came[1], 400, "malformed")["detail"]
    assert "close" == came[1].headers["connection"]


@pytest.mark.parametrize(
    "framing",
    [
        ("Content-Length: 3", "Transfer-Encoding: chunked"),
        ("Content-Length: 3", "Content-Length: 4"),
        ("Content-Length: -3",),
        ("Transfer-Encoding: chunked, gzip",),
        ("Content-Length : 3",),
        ("X: a", " Content-Length: 3"),
    ],
)
def test_a_wrong_length_is_refused_beside_an_upgrade(service: Service, framing: tuple[str, ...]) -> None:
    url = service.url
    for lines in ((*framing, *H2C), (*H2C, *framing)):
        came = answers(url, [head(url, "POST", PREDICT.path, JSON, *lines), b"abc", last(url)])
        assert [400] == [answer.status_code for answer in came]
        check_problem(came[0], 400, "malformed")


def test_an_upgrade_leaves_no_warning_in_the_log(service: Service) -> None:
    url, before = service.url, len(service.log.read_text())

    for upgrade in UPGRADES.values():
        answers(url, [write(url, PREDICT, upgrade), last(url)])

    assert "warning" not in service.log.read_text()[before:]


def test_curl_may_ask_for_http_2(service: Service) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    url = service.url
    command = [curl, "--http2", "--silent", "--show-error", "--max-time", "20", "--write-out", "\n%{http_code}"]

    for name in ("predict", "upload", "V1"):
        request = REQUESTS[name]
        lines = [word for line in request.lines for word in ("-H", line)]
        # curl sends both requests on one connection, and asks for HTTP/2 with each
        to = [f"{url}{request.path}"] * 2
        ended = subprocess.run(
            [*command, *lines, "--data-binary", "@-", "--output", "-", to[0], "--output", "-", to[1]],
            input=request.body,
            capture_output=True,
            check=True,
        )
        expected = exchange(url, write(url, request)).content + b"\n200"
        assert expected * 2 == ended.stdout
