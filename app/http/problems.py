"""The status of each error, and the shape of an error's response: RFC 9457 problem+json of at most 4 KB, never an echo.

On the paths of other servers' protocols the shape is that of the protocol: `protocol_errors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import orjson
from starlette.responses import Response

from app import errors
from app.errors import FAULT_LIMIT, Fault, FitserveError
from app.http.media_types import PROBLEM
from app.http.protocol_errors import is_of_other_protocol, protocol_error

MAX_BYTES = 4096
#: longest detail; as JSON a character takes up to six bytes
DETAIL_CHARACTERS = 500
#: `Retry-After` of the errors that do not say when to come back
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
    """Return the response for an error. It lists fewer faults where it would grow beyond `MAX_BYTES`.

    Args:
        path: of the request, where that is known: the path decides the shape.
    """
    extra = {"Retry-After": str(RETRY_AFTER_SECONDS)} if status in (429, 503) else {}
    extra |= {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    extra |= headers or {}
    if is_of_other_protocol(path):
        return protocol_error(status, detail, extra)
    listed = [
        {"loc": [_short(part) for part in fault.loc], "message": fault.message[:300], "code": fault.code}
        for fault in faults[:FAULT_LIMIT]
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
