"""What the tests of the HTTP surface share: the shape of an error, and sockets that say what no client would."""

from __future__ import annotations

import http.client
import json
import re
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

PROBLEM_FIELDS = {"type", "title", "status", "code", "detail", "request_id", "errors"}
JSON = {"Content-Type": "application/json"}
CSV = {"Content-Type": "text/csv"}


@dataclass(frozen=True)
class Answer:
    """What came back over a plain socket."""

    status_code: int
    headers: dict[str, str]
    content: bytes


def check_problem(answer: httpx.Response | Answer, status: int, code: str | None = None) -> dict[str, Any]:
    """Assert that an answer is an error of the contract's shape; gives its document."""
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


def exchange(url: str, request: bytes) -> Answer:
    """Send these very bytes, and read the answer; the service may stop listening meanwhile."""
    with connect(url) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        return read_answer(connection)
