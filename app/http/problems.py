"""Statuses for facts, and the shape of an error: RFC 9457 problem+json of at most 4 KB, never an echo.

On the paths of other servers' protocols it is theirs: `plain_errors`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app import errors
from app.errors import FAULT_LIMIT, Busy, Fault, FitserveError, Invalid, Malformed, Unavailable
from app.http.protocol_errors import is_plain, nowhere, plain_error

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
MAX_BYTES = 4096
#: as JSON a character takes up to six bytes
DETAIL_CHARACTERS = 500
RETRY_AFTER_SECONDS = 2

STATUSES: dict[type[FitserveError], int] = {
    errors.Malformed: 400,
    errors.Invalid: 422,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.NotAcceptable: 406,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.NotReady: 503,
    errors.Overloaded: 429,
    errors.Busy: 503,
    errors.Unavailable: 503,
    errors.StorageFull: 507,
    errors.Corrupt: 503,
}
_CODES = {400: "malformed", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}
_CODES |= {408: "timeout", 411: "length_required", 413: "too_large", 415: "unsupported_media_type", 503: "unavailable"}
#: parts of a pydantic location that name a type of a union and no field of the body
_UNION_PART = re.compile(r"^(literal\[.*|constrained-.*|list\[.*|dict\[.*|int|float|str|bool|none|[A-Z]\w+)$")


class ProblemFault(BaseModel):
    """One thing that is wrong, and where."""

    loc: list[str | int]
    message: str
    code: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    request_id: str
    errors: list[ProblemFault]


def documented(
    *statuses: int, ok: dict[str, Any] | None = None, is_public: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Describe the answers of a route for its OpenAPI page: its errors, and 200 where it needs more words.

    Every route may answer 403 and 503, and 401 where it is not public; none answers 500 by contract.
    """
    answers: dict[int | str, dict[str, Any]] = {} if ok is None else {200: ok}
    return answers | _told({*statuses, 403, 503} | (set() if is_public else {401}))


def _told(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": HTTPStatus(status).phrase, "content": content} for status in sorted(statuses)}


#: what every route may answer that is more than a look
DISK_FULL = _told([507])


def problem(
    status: int,
    code: str,
    detail: str,
    request_id: str,
    faults: Sequence[Fault] = (),
    headers: dict[str, str] | None = None,
    *,
    path: str = "",
) -> Response:
    """Make an error answer; lists fewer faults where it would grow beyond 4 KB.

    Args:
        path: what was asked, where that is known: it decides the shape.
    """
    extra = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
    extra |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    extra |= headers or {}
    if is_plain(path):
        return plain_error(status, detail, extra)
    listed = [
        {"loc": [_short(p) for p in f.loc], "message": f.message[:300], "code": f.code} for f in faults[:FAULT_LIMIT]
    ]
    document = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "code": code,
        "detail": detail[:DETAIL_CHARACTERS],
        "request_id": request_id,
        "errors": listed,
    }
    while len(body := orjson.dumps(document)) > MAX_BYTES and listed:
        listed.pop()
    return Response(body, status, extra, MEDIA_TYPE)


def _short(part: str | int) -> str | int:
    return part[:100] if isinstance(part, str) else part


def faults_of(error: ValidationError | RequestValidationError) -> list[Fault]:
    """Turn pydantic's errors into faults: one for each place, without what came in."""
    at: dict[tuple[str | int, ...], list[str]] = {}
    for each in error.errors():
        loc = tuple(p for p in each["loc"] if not (isinstance(p, str) and _UNION_PART.match(p)))
        at.setdefault(loc, []).append(each["msg"])
    return [Fault(loc, "; or ".join(dict.fromkeys(messages))[:300]) for loc, messages in at.items()]


def invalid(error: ValidationError) -> FitserveError:
    """Make the fact of a pydantic error."""
    faults = faults_of(error)
    if any(each["type"] == "json_invalid" for each in error.errors(include_url=False)):
        return Malformed(f"Expected JSON: {faults[0].message}.")
    where = ".".join(str(part) for part in faults[0].loc)
    return Invalid(f"{where}: {faults[0].message}" if where else faults[0].message, faults)


def install(app: FastAPI) -> None:
    """Give the application its error handlers."""

    async def fact(request: Request, error: Exception) -> Response:
        assert isinstance(error, FitserveError)
        if isinstance(error, Unavailable):
            logger.error("database unavailable", exc_info=error)
        headers = {"Retry-After": str(error.retry_seconds)} if isinstance(error, Busy) else {}
        return _problem(request, STATUSES[type(error)], error.code, error.message, error.faults, headers)

    async def request_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = faults_of(error)
        where = ".".join(str(part) for part in faults[0].loc)
        return _problem(request, 422, "invalid", f"{where}: {faults[0].message}", faults)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _allowed(request)
        status, detail = error.status_code, _DETAILS.get(error.status_code, str(error.detail))
        if status == 404 and is_plain(request.scope["path"]):
            status, detail = nowhere(request.method, request.scope["path"])
        return _problem(request, status, _CODES.get(status, "invalid"), detail, (), headers)

    async def slow(request: Request, _error: Exception) -> Response:
        return _problem(request, 408, "timeout", "The request's body did not arrive in time.")

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)

    async def unexpected(request: Request, _error: Exception) -> Response:
        logger.exception("request failed")
        return _problem(request, 500, "internal", "The service failed; its log says why.")

    for kind in STATUSES:
        app.add_exception_handler(kind, fact)
    app.add_exception_handler(RequestValidationError, request_invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(TimeoutError, slow)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unexpected)


_DETAILS = {404: "There is no such path.", 405: "This path does not answer that method.", 413: "The body is too large."}


def _allowed(request: Request) -> str:
    # the router names the methods of the first route on this path alone
    at_path = [r for r in iter_route_contexts(request.app.routes) if r.path_regex.match(request.scope["path"])]
    return ", ".join(sorted({method for route in at_path for method in route.methods or ()}))


def _problem(
    request: Request,
    status: int,
    code: str,
    detail: str,
    faults: Sequence[Fault] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    request_id = str(request.scope.get("request_id", ""))
    return problem(status, code, detail, request_id, faults, headers, path=request.scope["path"])
