"""Helpers of the tests of HTTP: the shape of an error, and plain sockets that send bytes as they are."""

from __future__ import annotations

import http.client
import json
import re
import socket
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import httpx

#: first parts of the paths of other servers' protocols, whose errors have a shape of their own
OTHER_PROTOCOLS = ("/v1", "/v2")
PROBLEM_FIELDS = {"type", "title", "status", "code", "detail", "request_id", "errors"}
JSON = {"Content-Type": "application/json"}
CSV = {"Content-Type": "text/csv"}


@dataclass(frozen=True)
class Answer:
    """An answer over a plain socket."""

    status_code: int
    headers: dict[str, str]
    content: bytes
    path: str = ""


def is_of_other_protocol(path: str) -> bool:
    """Return whether a path belongs to another server's protocol."""
    return path.startswith(OTHER_PROTOCOLS) and path[3:4] in ("", "/")


def check_problem(answer: httpx.Response | Answer, status: int, code: str | None = None) -> dict[str, Any]:
    """Assert that an answer is an error in the native shape, or in that of its protocol; return its document."""
    if is_of_other_protocol(answer.path if isinstance(answer, Answer) else answer.url.path):
        return {"detail": check_protocol_error(answer, status), "errors": []}
    assert status == answer.status_code, answer.content[:500]
    assert "application/problem+json" == answer.headers["content-type"]
    assert len(answer.content) <= 4096
    document: dict[str, Any] = json.loads(answer.content, parse_constant=_refuse)
    assert PROBLEM_FIELDS == set(document)
    assert ("about:blank", status) == (document["type"], document["status"])
    assert document["title"]
    assert document["detail"]
    assert code is None or code == document["code"], document
    assert re.fullmatch(r"[a-z_]+", document["code"])
    assert document["request_id"] == answer.headers["x-request-id"]
    assert len(document["errors"]) <= 20
    for fault in document["errors"]:
        assert {"loc", "message", "code"} == set(fault)
    assert (status in (429, 503)) == ("retry-after" in answer.headers)
    return document


def check_protocol_error(answer: httpx.Response | Answer, status: int) -> str:
    """Assert that an answer is an error of TensorFlow Serving or of the Open Inference Protocol; return its message."""
    # these protocols do not have the status 422
    assert (400 if status == 422 else status) == answer.status_code, answer.content[:500]
    assert "application/json" == answer.headers["content-type"]
    assert len(answer.content) <= 4096
    document = json.loads(answer.content, parse_constant=_refuse)
    assert {"error"} == set(document)
    assert isinstance(document["error"], str)
    assert document["error"]
    assert answer.headers["x-request-id"]
    assert (status in (429, 503)) == ("retry-after" in answer.headers)
    return document["error"]


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def connect(url: str) -> socket.socket:
    """Open a connection to a service."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=30)


def head(url: str, method: str, path: str, *headers: str) -> bytes:
    """Write a request's head."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {urlsplit(url).netloc}", *headers, "", ""]).encode()


def read_answer(connection: socket.socket) -> Answer:
    """Read one answer."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


def read_answers(connection: socket.socket) -> list[Answer]:
    """Read answers until the service closes the connection."""
    answers = []
    with connection.makefile("rb") as came, suppress(ConnectionResetError):
        for line in iter(came.readline, b""):
            headers = {name.lower(): value for name, value in http.client.parse_headers(came).items()}
            answers.append(Answer(int(line.split()[1]), headers, came.read(int(headers.get("content-length", 0)))))
    return answers


def exchange(url: str, request: bytes) -> Answer:
    """Send these very bytes, and read the answer; the service may stop listening meanwhile."""
    with connect(url) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        answer = read_answer(connection)
    return replace(answer, path=request[:200].decode("latin-1").partition(" ")[2].partition(" ")[0])
