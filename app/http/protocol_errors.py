"""Errors as other servers' protocols have them, `{"error": "…"}`, on the paths that are theirs. Knows no route."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

from app.http.media_types import JSON

#: where TensorFlow Serving's REST API and the Open Inference Protocol live
TENSORFLOW_SERVING, OPEN_INFERENCE = "/v1", "/v2"
#: these protocols know no other status for what is wrong in a request
_STATUSES = {422: 400}
_CHARACTERS = 500


def is_plain(path: str) -> bool:
    """Tell whether a path belongs to one of these protocols."""
    return f"{path}/".startswith((f"{TENSORFLOW_SERVING}/", f"{OPEN_INFERENCE}/"))


def plain_error(status: int, detail: str, headers: Mapping[str, str]) -> Response:
    """Make an error answer, of at most 4 KB: as JSON a character takes up to six bytes."""
    body = orjson.dumps({"error": detail[:_CHARACTERS]})
    return Response(body, _STATUSES.get(status, status), headers, JSON)


def nowhere(method: str, path: str) -> tuple[int, str]:
    """Give the status and the words for a path that leads nowhere; TensorFlow Serving's are its own."""
    if f"{path}/".startswith(f"{TENSORFLOW_SERVING}/"):
        return 400, f"Malformed request: {method} {path[:200]}"
    return 404, "There is no such path."
