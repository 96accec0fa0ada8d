"""The routes that the fast path answers: which format and which version a request's path and headers name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from app.fast_path.formats import JSON, JSON_LENGTH, Native, OpenInference, TensorFlowServing, WireFormat
from app.http import media_types
from app.http.protocol_errors import OPEN_INFERENCE, TENSORFLOW_SERVING
from app.names import ALIAS, DEFAULT, MODEL
from app.records.ref import Ref

#: how a native body is read, by its Content-Type
_FORMS = {
    media_types.JSON.encode(): "json",
    f"{media_types.JSON}; charset=utf-8".encode(): "json",
    media_types.BINARY.encode(): "float32",
    media_types.NPY.encode(): "npy",
}
_ACCEPTED = frozenset({b"*/*", JSON})
_MODEL, _NUMBER, _LABEL = "/models/{name}", "/models/{name}/versions/{n}", "/models/{name}/labels/{alias}"
#: of all formats
ROUTES = (
    Native.route,
    *(f"{TENSORFLOW_SERVING}{path}:predict" for path in (_MODEL, _NUMBER, _LABEL)),
    *(f"{OPEN_INFERENCE}{path}/infer" for path in (_MODEL, _NUMBER)),
)
_NATIVE = {form: Native(form) for form in ("json", "float32", "npy")}
_TENSORFLOW_SERVING = {route: TensorFlowServing(route) for route in ROUTES if route.startswith(TENSORFLOW_SERVING)}
_PARAMETERS = {
    "ref": f"(?P<ref>{MODEL}(?:@{MODEL})?)",
    "name": f"(?P<name>{MODEL})",
    "n": "(?P<n>[1-9][0-9]{0,8})",
    "alias": f"(?P<alias>{ALIAS})",
}
_PATTERNS = [
    (route, re.compile(re.sub(r"\\{(\w+)\\}", lambda parameter: _PARAMETERS[parameter[1]], re.escape(route)).encode()))
    for route in ROUTES
]


@lru_cache(maxsize=4096)
def _find_route(path: bytes) -> tuple[str, Ref] | None:
    """Return the route and the reference of a path that predicts; None for another path, and for one with a query."""
    for route, pattern in _PATTERNS:
        match = pattern.fullmatch(path)
        if match:
            named = {name: value.decode() for name, value in match.groupdict().items() if value is not None}
            if "ref" in named:
                return route, Ref.parse(named["ref"])
            if "n" in named:
                return route, Ref(named["name"], int(named["n"]), "")
            return route, Ref(named["name"], None, named.get("alias", DEFAULT))
    return None


def find_format(path: bytes, headers: Mapping[bytes, bytes]) -> tuple[WireFormat, Ref] | None:
    """Return the format of a POST, and the version that it is about; None where the route has to look at the request.

    Args:
        path: as it came, with its query.
    """
    found = _find_route(path)
    if found is None:
        return None
    route, ref = found
    if route == Native.route:
        form = _FORMS.get(headers.get(b"content-type", b""))
        is_accepted = headers.get(b"accept", b"*/*") in _ACCEPTED
        return (_NATIVE[form], ref) if form is not None and is_accepted else None
    if route.startswith(TENSORFLOW_SERVING):
        return _TENSORFLOW_SERVING[route], ref
    length = headers.get(JSON_LENGTH)
    if length is not None and not (length.isdigit() and len(length) < 16):
        return None
    return OpenInference(route, None if length is None else int(length)), ref
