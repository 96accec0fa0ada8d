"""Errors of other servers' protocols, `{"error": "…"}`, on the paths of those protocols. Knows no route."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

from app.http.media_types import JSON

#: first part of the paths of TensorFlow Serving's REST API, and of the Open Inference Protocol
TENSORFLOW_SERVING, OPEN_INFERENCE = "/v1", "/v2"
#: statuses that these protocols do not have, and those that they have for the same errors
_STATUSES = {422: 400}
#: longest message, in characters
_CHARACTERS = 500


def is_of_other_protocol(path: str) -> bool:
    """Return whether a path belongs to one of these protocols."""
    return f"{path}/".startswith((f"{TENSORFLOW_SERVING}/", f"{OPEN_INFERENCE}/"))


def protocol_error(status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """Return the response for an error, of at most 4 KB: as JSON a character takes up to six bytes."""
    body = orjson.dumps({"error": detail[:_CHARACTERS]})
    return Response(body, _STATUSES.get(status, status), headers, JSON)


def describe_unknown_path(method: str, path: str) -> tuple[int, str]:
    """Return the status and the message for a path that no route has; TensorFlow Serving has its own."""
    if f"{path}/".startswith(f"{TENSORFLOW_SERVING}/"):
        return 400, f"Malformed request: {method} {path[:200]}"
    return 404, "There is no such path."
