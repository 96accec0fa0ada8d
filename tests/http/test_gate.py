"""Checks of every request before its route: wrong heads, bodies and paths, and attacks by web pages."""

from __future__ import annotations

import http.client
import socket
import time
from urllib.parse import urlsplit

import httpx
import pytest

from app.fast_path.buffered_transport import BUFFER_BYTES
from tests.service import Service
from tests.shared_services import listed
from tests.wire import CSV, JSON, check_problem, connect, exchange, head, read_answer

UPLOAD = "/api/v1/datasets"
#: every path that takes a name, an id or a number from its caller
PATHS = [
    ("GET", "/api/v1/datasets/{}"),
    ("PATCH", "/api/v1/datasets/{}"),
    ("DELETE", "/api/v1/datasets/{}"),
    ("GET", "/api/v1/datasets/{}/rows"),
    ("POST", "/api/v1/models/{}/train"),
    ("POST", "/api/v1/models/{}/predict"),
    ("POST", "/api/v1/models/{}/evaluate"),
    ("GET", "/api/v1/models/{}"),
    ("DELETE", "/api/v1/models/{}"),
    ("GET", "/api/v1/models/{}/versions/1"),
    ("GET", "/api/v1/models/m/versions/{}"),
    ("DELETE", "/api/v1/models/m/versions/{}"),
    ("GET", "/api/v1/models/m/versions/{}/export?format=weights"),
    ("PUT", "/api/v1/models/m/aliases/{}"),
    ("DELETE", "/api/v1/models/m/aliases/{}"),
    ("GET", "/api/v1/jobs/{}"),
    ("GET", "/api/v1/jobs/{}/events"),
    ("POST", "/api/v1/jobs/{}/cancel"),
    ("POST", "/api/v1/jobs/{}/resume"),
    ("DELETE", "/api/v1/jobs/{}"),
    ("GET", "/docs/{}"),
]
NAMES = {
    "nothing": "",
    "a slash": "a/b",
    "a quoted slash": "a%2Fb",
    "dots": "..",
    "quoted dots": "%2e%2e",
    "a way up": "..%2f..%2f..%2fetc%2fpasswd",
    "NUL": "%00",
    "a name and NUL": "iris%00.csv",
    "a blank": "a%20b",
    "a line": "a%0d%0aX-Evil:%201",
    "broken UTF-8": "%ff%fe",
    "another script": "%D9%85",
    "65 letters": "a" * 65,
    "8000 letters": "a" * 8000,
    "a quote": "'%20OR%201=1--",
    "two at signs": "iris@1@2",
    "a large number": "9" * 30,
    "below nothing": "-1",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_name_is_answered_by_400_404_405_or_422(http: httpx.Client, service: Service, name: str) -> None:
    before = listed(http)
    connection = http_connection(service)

    for method, path in PATHS:
        body = b'{"version": 1}' if method in ("PUT", "PATCH", "POST") else None
        # http.client sends the path as it is; httpx would normalise it
        connection.request(method, path.format(NAMES[name]), body, JSON if body else {})
        response = connection.getresponse()
        document = response.read()
        assert response.status in (400, 404, 405, 415, 422), (method, path, response.status, document)
        assert response.headers["Content-Type"] == "application/problem+json"
        assert len(document) <= 4096
        assert "X-Evil" not in response.headers
    connection.close()
    assert before == listed(http)


def http_connection(service: Service) -> http.client.HTTPConnection:
    """Return a connection that sends paths as they are."""
    return http.client.HTTPConnection(urlsplit(service.url).netloc, timeout=30)


def test_a_head_beyond_the_limit_is_431(service: Service) -> None:
    heads = {
        "one header of 20 MB": head(service.url, "GET", "/livez", "X-Large: " + "a" * 20_000_000),
        "100,000 headers": head(service.url, "GET", "/livez", *[f"X-{i}: a" for i in range(100_000)]),
        "17 KB in one piece": head(service.url, "GET", "/livez", "X-Large: " + "a" * 17_000),
        "a path of 17 KB in one piece": head(service.url, "GET", "/" + "a" * 17_000),
    }

    for name, request in heads.items():
        document = check_problem(exchange(service.url, request), 431, "too_large")
        assert "16384 bytes" in document["detail"], name
    assert httpx.get(f"{service.url}/livez").is_success


def test_a_head_within_the_limit_may_come_in_pieces(service: Service) -> None:
    request = head(service.url, "GET", "/livez", *[f"X-{i}: {'a' * 100}" for i in range(120)])

    with connect(service.url) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(request), 1000):
            connection.sendall(request[start : start + 1000])
            time.sleep(0.002)
        answer = read_answer(connection)

    assert 200 == answer.status_code


def test_requests_that_come_in_one_piece_are_answered_in_order(service: Service) -> None:
    paths = ["/livez", "/nowhere", "/docs", "/openapi.json", "/livez"]

    with connect(service.url) as connection:
        connection.sendall(b"".join(head(service.url, "GET", path) for path in paths))
        answers = []
        file = connection.makefile("rb")
        for _ in paths:
            status = int(file.readline().split()[1])
            headers = dict(line.rstrip().split(b": ", 1) for line in iter(file.readline, b"\r\n"))
            answers.append((status, len(file.read(int(headers[b"content-length"])))))

    assert [200, 404, 200, 200, 200] == [status for status, _ in answers]
    # the largest response does not fit into the buffer
    assert max(size for _, size in answers) > BUFFER_BYTES


@pytest.mark.parametrize("request_", [b"\x16\x03\x01\x02\x00\x01\x00", b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_wrong_http_is_400(service: Service, request_: bytes) -> None:
    check_problem(exchange(service.url, request_), 400, "malformed")


def test_a_connection_that_says_nothing_is_closed(limited: httpx.Client) -> None:
    url = str(limited.base_url)
    silent, half = connect(url), connect(url)
    half.sendall(b"GET /livez HTTP/1.1\r\nHost: 127")

    with silent, half:
        for connection in (silent, half):
            connection.settimeout(10)
            assert b"" == connection.recv(100)
    assert limited.get("/livez").is_success


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        (UPLOAD, "text/csv"),
        ("/api/v1/models/m/train", "application/json"),
        ("/api/v1/models/m/predict", "application/json"),
    ],
)
def test_a_body_that_stops_is_408_and_stores_nothing(limited: httpx.Client, path: str, content_type: str) -> None:
    before, url = listed(limited), str(limited.base_url)
    request = head(url, "POST", path, f"Content-Type: {content_type}", "Content-Length: 100") + b"a,b\n1,x\n2,y\n"

    check_problem(exchange(url, request), 408, "timeout")

    assert before == listed(limited)


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_an_upload_that_is_cut_off_stores_nothing(http: httpx.Client, service: Service, framing: str) -> None:
    before = listed(http)
    piece = b"c\r\na,b\n1,x\n2,y\n\r\n" if "chunked" in framing else b"a,b\n1,x\n2,y\n"

    with connect(service.url) as connection:
        connection.sendall(head(service.url, "POST", UPLOAD, "Content-Type: text/csv", framing) + piece)

    time.sleep(0.3)
    assert before == listed(http)
    assert not list((service.data_dir / "staging").glob("request*"))


def test_a_body_over_the_limit_is_413_whether_it_says_so_or_not(limited: httpx.Client) -> None:
    before, body = listed(limited), b"a,b\n" + b"1,x\n" * 2000
    json_body = b'{"x": [' + b" " * 4000 + b"]}"

    answers = [
        limited.post(UPLOAD, content=body, headers=CSV),
        limited.post(UPLOAD, content=iter([body[:4000], body[4000:]]), headers=CSV),
        limited.post(UPLOAD, content=json_body, headers=JSON),
        limited.post("/api/v1/models/m/train", content=json_body, headers=JSON),
        limited.post("/api/v1/models/m/train", content=iter([json_body]), headers=JSON),
        limited.patch("/api/v1/datasets/ds_0", content=b" " * 1024**2 + b"{}", headers=JSON),
        limited.put("/api/v1/models/m/aliases/a", content=b" " * 1024**2 + b"{}", headers=JSON),
    ]

    for answer in answers:
        assert "at most" in check_problem(answer, 413, "too_large")["detail"]
    assert before == listed(limited)


@pytest.mark.parametrize("declared", ["-1", "1e3", "9" * 30, "12, 12"])
def test_a_wrong_content_length_is_refused(service: Service, declared: str) -> None:
    request = head(service.url, "POST", UPLOAD, "Content-Type: text/csv", f"Content-Length: {declared}")

    assert exchange(service.url, request).status_code in (400, 413)


def test_length_and_chunks_together_are_refused(service: Service) -> None:
    framing = ("Content-Length: 3", "Transfer-Encoding: chunked")
    request = (
        head(service.url, "POST", UPLOAD, "Content-Type: text/csv", *framing) + b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"
    )

    check_problem(exchange(service.url, request), 400, "malformed")


def test_every_answer_has_an_id_which_the_client_may_choose(http: httpx.Client) -> None:
    own = http.get("/livez", headers={"X-Request-ID": "my-id.7"})
    made = [http.get("/livez"), http.get("/nowhere"), http.get("/livez", headers={"X-Request-ID": "a b\x7f"})]

    assert "my-id.7" == own.headers["x-request-id"]
    assert 3 == len({answer.headers["x-request-id"] for answer in made})
    assert "a b" not in made[2].headers["x-request-id"]


def test_every_answer_has_the_security_headers_once(http: httpx.Client) -> None:
    expected = {
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }

    for path in ("/livez", "/docs", "/docs/docs.js", "/openapi.json", "/api/v1/models", "/nowhere"):
        answer = http.get(path)
        assert {name: [value] for name, value in expected.items()} == {
            name: answer.headers.get_list(name) for name in expected
        }, path
        assert "server" not in answer.headers


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000", "", "[::2]"])
def test_a_name_that_was_rebound_to_loopback_is_refused(http: httpx.Client, host: str) -> None:
    for path in ("/api/v1/models", "/livez", "/docs", "/openapi.json"):
        check_problem(http.get(path, headers={"Host": host}), 403, "forbidden")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:9"])
def test_loopback_is_answered_by_its_names(http: httpx.Client, host: str) -> None:
    assert http.get("/livez", headers={"Host": host}).is_success


def test_more_names_can_be_allowed(limited: httpx.Client) -> None:
    assert limited.get("/livez", headers={"Host": "Data.lan:80"}).is_success
    check_problem(limited.get("/livez", headers={"Host": "evil.lan"}), 403, "forbidden")


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_can_change_nothing(http: httpx.Client, origin: str) -> None:
    before = listed(http)
    headers = {**CSV, "Origin": origin}

    for method, path in (("POST", UPLOAD), ("DELETE", "/api/v1/models/m"), ("PUT", "/api/v1/models/m/aliases/a")):
        answer = http.request(method, path, content=b"a,b\n1,x\n2,y\n", headers=headers)
        check_problem(answer, 403, "forbidden")
    assert before == listed(http)


def test_a_page_of_our_own_origin_may_send_requests(http: httpx.Client) -> None:
    own = str(http.base_url).rstrip("/")

    answer = http.delete("/api/v1/models/nobody", headers={"Origin": own})

    check_problem(answer, 404, "not_found")


def test_a_method_that_a_path_does_not_answer_is_405(http: httpx.Client) -> None:
    answer = http.put("/api/v1/datasets")

    check_problem(answer, 405, "method_not_allowed")
    assert {"GET", "POST"} == set(answer.headers["allow"].replace(" ", "").split(","))


def test_an_unknown_path_is_404(http: httpx.Client) -> None:
    for path in ("/", "/api", "/api/v1", "/api/v1/datasets/", "/API/V1/datasets", "//livez"):
        check_problem(http.get(path), 404, "not_found")
