"""How a prediction is spoken: the contract's own way, TensorFlow Serving's and the Open Inference Protocol's.

Each reads short bodies without a Python object for each number, or a few rows of any kind, and writes the bytes that
its route would give. What it does not read gives None, or an error: the route decides then. Knows no sockets and no loop.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import orjson

from app.fast_path.batcher import Answered
from app.fast_path.encode import Encoded
from app.fast_path.open_inference import read_matrix
from app.fast_path.parse import Matrix, MatrixReader
from app.fast_path.version import FastVersion
from app.http import media_types
from app.http.answers import to_json
from app.http.protocol_errors import OPEN_INFERENCE, TENSORFLOW_SERVING
from app.learning.requests.json_with_nan import parse_json_with_nan
from app.learning.requests.open_inference import RequestedOutput, read_infer_request
from app.learning.requests.open_inference_response import InferResponse, write_infer_response
from app.learning.requests.read_rows import read_rows
from app.learning.requests.tensorflow_serving import read_predict_request
from app.metrics.version_usage import Stopwatch
from app.names import ALIAS, DEFAULT, MODEL
from app.records.registry import Ref
from app.serving.predictor import LoadedVersion

#: media types, as they come, and how such a body is read
FORMS = {
    media_types.JSON.encode(): "json",
    f"{media_types.JSON}; charset=utf-8".encode(): "json",
    media_types.BINARY.encode(): "float32",
    media_types.NPY.encode(): "npy",
}
#: bytes of JSON that is no matrix of numbers, up to which it is read on the event loop: a millisecond at most
LOOP_ROWS_BYTES = 8 * 1024
JSON, BINARY = media_types.JSON.encode(), media_types.BINARY.encode()
_ACCEPTED = frozenset({b"*/*", JSON})
_JSON_LENGTH = b"inference-header-content-length"

#: for who reads cells in Python beside the loop: two threads take its lock from each other thousands of times a second,
#: which took a quarter of their time
_READING = threading.Lock()

Headers = Mapping[bytes, bytes]


class Read(NamedTuple):
    """Rows, and what the answer needs to know of the request."""

    rows: Matrix | Encoded
    about: Any = None


class Written(NamedTuple):
    """An answer: its own lines of the head, its media type, its body."""

    lines: bytes
    media_type: bytes
    body: bytes


class WireFormat(Protocol):
    """One way to ask and to answer."""

    #: as FastAPI's telemetry calls it
    route: str

    @property
    def long(self) -> Callable[[FastVersion, LoadedVersion, bytes, Stopwatch], Written | None] | None:
        """What answers a long body in a thread, and tells a watch the rows, and the ends of input and infer; or None."""

    def read(self, served: FastVersion, body: bytes, reader: MatrixReader, /) -> Read | None:
        """Read a short body."""

    def write(self, served: FastVersion, found: Answered, about: Any, /) -> Written:
        """Write an answer."""


class Native:
    """The contract's own way.

    Args:
        form: "json", "float32" or "npy".
    """

    route = "/api/v1/models/{ref}/predict"

    def __init__(self, form: str) -> None:
        self.form = form

    def read(self, served: FastVersion, body: bytes, reader: MatrixReader) -> Read | None:
        """Read a matrix, or a few rows of any kind in JSON."""
        rows: Matrix | Encoded | None = None
        if served.takes_matrices:
            rows = reader.read(self.form, body, served.width)
        if rows is None and self.form == "json" and len(body) <= LOOP_ROWS_BYTES:
            rows = served.encode(read_rows(self.form, body, served.names, 0))
        return None if rows is None else Read(rows)

    def write(self, served: FastVersion, found: Answered, _about: Any) -> Written:
        """Write the contract's JSON object."""
        return Written(served.line, JSON, served.answers.write(found.probabilities, found.best, found.warnings))

    def long(self, served: FastVersion, loaded: LoadedVersion, body: bytes, watch: Stopwatch) -> Written | None:
        """Answer a long body.

        Raises:
            FitserveError: there is something wrong with it, which the route says better.
        """
        rows = MatrixReader().read(self.form, body, served.width) if served.takes_matrices else None
        if rows is not None:
            watch.rows = len(rows)
            watch.end("input")
            found = served.compute(rows)
            watch.end("infer")
            answer = None if found is None else served.answers.write(*found)
        elif self.form == "json":
            with _READING:
                cells = read_rows(self.form, body, served.names, 0)
            watch.rows = cells.count
            watch.end("input")
            prediction = loaded.predict(cells)
            watch.end("infer")
            answer = to_json(prediction, None)
        else:
            answer = None
        return None if answer is None else Written(served.line, JSON, answer)


class Instances:
    """TensorFlow Serving's way.

    Args:
        route: that of one of its ways to name a version.
    """

    long = None

    def __init__(self, route: str) -> None:
        self.route = route

    def read(self, served: FastVersion, body: bytes, reader: MatrixReader) -> Read | None:
        """Read instances, or inputs, that are rows of numbers, or a few of any kind."""
        if served.takes_matrices:
            for key, answer in ((b"instances", b"predictions"), (b"inputs", b"outputs")):
                rows = reader.read_json(body, key.decode(), served.width) if key in body[:32] else None
                if rows is not None:
                    return Read(rows, answer)
        if len(body) > LOOP_ROWS_BYTES:
            return None
        cells, word = read_predict_request(parse_json_with_nan(body), served.names)
        encoded = served.encode_known(cells)
        return None if encoded is None else Read(encoded, word.encode())

    def write(self, _served: FastVersion, found: Answered, about: Any) -> Written:
        """Write a list of probabilities for each row."""
        rows = orjson.dumps(found.probabilities, option=orjson.OPT_SERIALIZE_NUMPY)
        return Written(b"", JSON, b'{"%b":%b}' % (about, rows))


class Infer:
    """The Open Inference Protocol's way.

    Args:
        route: that of one of its ways to name a version.
        json_bytes: how long a body's JSON is, where tensors follow.
    """

    long = None

    def __init__(self, route: str, json_bytes: int | None) -> None:
        self.route = route
        self._json_bytes = json_bytes

    def read(self, served: FastVersion, body: bytes, reader: MatrixReader) -> Read | None:
        """Read one tensor of all columns, or a few rows of any kind."""
        if served.takes_matrices:
            found = read_matrix(body, self._json_bytes, served.names, reader)
            if found is not None:
                return Read(*found)
        if len(body) > LOOP_ROWS_BYTES:
            return None
        asked = read_infer_request(body, self._json_bytes, served.names)
        encoded = served.encode_known(asked.rows)
        return None if encoded is None else Read(encoded, (asked.id, asked.outputs))

    def write(
        self, served: FastVersion, found: Answered, about: tuple[str | None, tuple[RequestedOutput, ...]]
    ) -> Written:
        """Write the outputs that were asked for, as JSON or as bytes after it."""
        request_id, outputs = about
        head = served.head if request_id is None else {**served.head, "id": request_id}
        answer = InferResponse([served.classes[i] for i in found.best], found.probabilities, served.classes)
        body, length = write_infer_response(answer, outputs, head)
        if length is None:
            return Written(b"", JSON, body)
        return Written(b"%b: %d\r\n" % (_JSON_LENGTH, length), BINARY, body)


_NATIVE = {form: Native(form) for form in ("json", "float32", "npy")}
_PLACES = {
    "ref": f"(?P<name>{MODEL})(?:@(?P<rest>{MODEL}))?".encode(),
    "name": f"(?P<name>{MODEL})".encode(),
    "n": rb"(?P<n>[1-9][0-9]{0,8})",
    "alias": f"(?P<alias>{ALIAS})".encode(),
}
_MODEL, _NUMBER, _LABEL = "/models/{name}", "/models/{name}/versions/{n}", "/models/{name}/labels/{alias}"
#: of all dialects
ROUTES = (
    Native.route,
    *(f"{TENSORFLOW_SERVING}{way}:predict" for way in (_MODEL, _NUMBER, _LABEL)),
    *(f"{OPEN_INFERENCE}{way}/infer" for way in (_MODEL, _NUMBER)),
)
_INSTANCES = {route: Instances(route) for route in ROUTES if route.startswith(TENSORFLOW_SERVING)}
_PATTERNS = [
    (route, re.compile(re.sub(rb"\\{(\w+)\\}", lambda place: _PLACES[place[1].decode()], re.escape(route.encode()))))
    for route in ROUTES
]


@lru_cache(maxsize=4096)
def _place(path: bytes) -> tuple[str, Ref] | None:
    """Give the route and the reference of a path that predicts; None for another, and for one with a query."""
    for route, pattern in _PATTERNS:
        found = pattern.fullmatch(path)
        if found:
            named = {key: value.decode() for key, value in found.groupdict().items() if value is not None}
            if route == Native.route:
                return route, Ref.parse(path.decode().split("/")[4])
            if "n" in named:
                return route, Ref(named["name"], int(named["n"]), "")
            return route, Ref(named["name"], None, named.get("alias", DEFAULT))
    return None


def dialect_of(path: bytes, headers: Headers) -> tuple[WireFormat, Ref] | None:
    """Give how a POST speaks, and of what; None where its route has to look at it.

    Args:
        path: as it came, with its query.
    """
    place = _place(path)
    if place is None:
        return None
    route, ref = place
    if route == Native.route:
        form = FORMS.get(headers.get(b"content-type", b""))
        is_plain = form is not None and headers.get(b"accept", b"*/*") in _ACCEPTED
        return (_NATIVE[form], ref) if form is not None and is_plain else None
    if route.startswith(TENSORFLOW_SERVING):
        return _INSTANCES[route], ref
    length = headers.get(_JSON_LENGTH)
    if length is not None and not (length.isdigit() and len(length) < 16):
        return None
    return Infer(route, None if length is None else int(length)), ref
