"""Statuses for facts, and the shape of an error: RFC 9457 problem+json of at most 4 KB, never an echo.

On the paths of other servers' protocols it is theirs: `plain_errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import orjson
from starlette.responses import Response

from app import errors
from app.errors import FAULT_LIMIT, Fault, FitserveError
from app.http.media_types import PROBLEM
from app.http.protocol_errors import is_plain, plain_error

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
CODES = {400: "malformed", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed"}
CODES |= {408: "timeout", 411: "length_required", 413: "too_large", 415: "unsupported_media_type", 503: "unavailable"}


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
    return Response(body, status, extra, PROBLEM)


def _short(part: str | int) -> str | int:
    return part[:100] if isinstance(part, str) else part
