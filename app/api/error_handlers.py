"""Errors as answers: in the contract's shape, or on the paths of another protocol in that protocol's shape."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from app.errors import Busy, Fault, FitserveError, Invalid, Malformed, Unavailable
from app.http.problems import CODES, STATUSES, problem
from app.http.protocol_errors import describe_unknown_path, is_of_other_protocol

logger = logging.getLogger(__name__)


#: parts of a pydantic location that name a type of a union, and not a field of the body
_UNION_PART = re.compile(r"^(literal\[.*|constrained-.*|list\[.*|dict\[.*|int|float|str|bool|none|[A-Z]\w+)$")


def faults_of(error: ValidationError | RequestValidationError) -> list[Fault]:
    """Return pydantic's errors as faults, one for each place; a fault does not repeat the value that was sent."""
    messages: dict[tuple[str | int, ...], list[str]] = {}
    for detail in error.errors():
        loc = tuple(part for part in detail["loc"] if not (isinstance(part, str) and _UNION_PART.match(part)))
        messages.setdefault(loc, []).append(detail["msg"])
    return [Fault(loc, "; or ".join(dict.fromkeys(texts))[:300]) for loc, texts in messages.items()]


def invalid_body(error: ValidationError) -> FitserveError:
    """Return the error to raise for a body that pydantic refused."""
    faults = faults_of(error)
    if any(detail["type"] == "json_invalid" for detail in error.errors(include_url=False)):
        return Malformed(f"Expected JSON: {faults[0].message}.")
    where = ".".join(str(part) for part in faults[0].loc)
    return Invalid(f"{where}: {faults[0].message}" if where else faults[0].message, faults)


def add_error_handlers(app: FastAPI) -> None:
    """Add a handler to the application for each kind of error."""

    async def expected(request: Request, error: Exception) -> Response:
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
        if status == 404 and is_of_other_protocol(request.scope["path"]):
            status, detail = describe_unknown_path(request.method, request.scope["path"])
        return _problem(request, status, CODES.get(status, "invalid"), detail, (), headers)

    async def slow(request: Request, _error: Exception) -> Response:
        return _problem(request, 408, "timeout", "The request's body did not arrive in time.")

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)

    async def unexpected(request: Request, _error: Exception) -> Response:
        logger.exception("request failed")
        return _problem(request, 500, "internal", "The service failed; its log says why.")

    for kind in STATUSES:
        app.add_exception_handler(kind, expected)
    app.add_exception_handler(RequestValidationError, request_invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(TimeoutError, slow)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unexpected)


_DETAILS = {404: "There is no such path.", 405: "This path does not answer that method.", 413: "The body is too large."}


def _allowed(request: Request) -> str:
    # the router itself names only the methods of the first route on this path
    path = request.scope["path"]
    routes = [route for route in iter_route_contexts(request.app.routes) if route.path_regex.match(path)]
    return ", ".join(sorted({method for route in routes for method in route.methods or ()}))


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
