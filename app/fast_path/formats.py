"""The formats of predictions: the native one, TensorFlow Serving's and the Open Inference Protocol's.

Each format reads short bodies without a Python object for each number, or a few rows of any kind, and writes the bytes that
its route would write. Where it returns None or raises an error, the route decides. Knows no sockets and no event loop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import orjson

from app.fast_path.batcher import Result
from app.fast_path.encode import Encoded
from app.fast_path.open_inference import read_matrix
from app.fast_path.parse import MatrixReader
from app.fast_path.version import FastVersion
from app.http import media_types
from app.http.answers import to_json
from app.learning.encoding.numeric_inputs import Matrix
from app.learning.requests.json_with_nan import parse_json_with_nan
from app.learning.requests.open_inference import RequestedOutput, read_infer_request
from app.learning.requests.open_inference_response import InferResponse, write_infer_response
from app.learning.requests.read_rows import read_rows
from app.learning.requests.tensorflow_serving import read_predict_request
from app.metrics.version_usage import Stopwatch
from app.serving.predictor import LoadedVersion

#: bytes of JSON that is no matrix of numbers, up to which it is read on the event loop: a millisecond at most
LOOP_ROWS_BYTES = 8 * 1024
JSON, BINARY = media_types.JSON.encode(), media_types.BINARY.encode()
JSON_LENGTH = media_types.JSON_LENGTH.lower().encode()

#: held while a thread reads cells in Python: two such threads take Python's lock from each other thousands of times a
#: second, which took a quarter of their time
_READING = threading.Lock()


class Response(NamedTuple):
    """A response with status 200.

    Args:
        lines: the lines of the head that the format adds, each with its end.
    """

    lines: bytes
    media_type: bytes
    body: bytes


class WireFormat(Protocol):
    """One way to write a prediction's request and response."""

    #: the path of the route, as FastAPI's telemetry names it
    route: str

    @property
    def answer_long(self) -> Callable[[FastVersion, LoadedVersion, bytes, Stopwatch], Response | None] | None:
        """Answers a long body in a thread, and notes its rows, and the ends of input and infer; None where no long body is read."""

    def read(self, version: FastVersion, body: bytes, reader: MatrixReader, /) -> tuple[Matrix | Encoded, Any] | None:
        """Read a short body: its rows, and the details that the response needs."""

    def write(self, version: FastVersion, result: Result, details: Any, /) -> Response:
        """Write the response."""


class Native:
    """The service's own format.

    Args:
        form: of the body: "json", "float32" or "npy".
    """

    route = "/api/v1/models/{ref}/predict"

    def __init__(self, form: str) -> None:
        self.form = form

    def read(self, version: FastVersion, body: bytes, reader: MatrixReader) -> tuple[Matrix | Encoded, None] | None:
        """Read a matrix, or a few rows of any kind in JSON."""
        rows: Matrix | Encoded | None = None
        if version.takes_matrices:
            rows = reader.read(self.form, body, version.width)
        if rows is None and self.form == "json" and len(body) <= LOOP_ROWS_BYTES:
            rows = version.encode(read_rows(self.form, body, version.names, 0))
        return None if rows is None else (rows, None)

    def write(self, version: FastVersion, result: Result, _details: None) -> Response:
        """Write the native JSON object."""
        return Response(version.line, JSON, version.writer.write(result.probabilities, result.best, result.warnings))

    def answer_long(
        self, version: FastVersion, loaded: LoadedVersion, body: bytes, watch: Stopwatch
    ) -> Response | None:
        """Answer a long body.

        Raises:
            FitserveError: the body has a fault, which the route describes.
        """
        rows = MatrixReader().read(self.form, body, version.width) if version.takes_matrices else None
        if rows is not None:
            watch.rows = len(rows)
            watch.end("input")
            found = version.compute(rows)
            watch.end("infer")
            text = None if found is None else version.writer.write(*found)
        elif self.form == "json":
            with _READING:
                cells = read_rows(self.form, body, version.names, 0)
            watch.rows = cells.count
            watch.end("input")
            prediction = loaded.predict(cells)
            watch.end("infer")
            text = to_json(prediction, None)
        else:
            text = None
        return None if text is None else Response(version.line, JSON, text)


class TensorFlowServing:
    """TensorFlow Serving's format.

    Args:
        route: one of the paths that name a version.
    """

    answer_long = None

    def __init__(self, route: str) -> None:
        self.route = route

    def read(self, version: FastVersion, body: bytes, reader: MatrixReader) -> tuple[Matrix | Encoded, bytes] | None:
        """Read instances, or inputs, that are rows of numbers, or a few of any kind; the detail is the key of the response."""
        if version.takes_matrices:
            for key, response_key in ((b"instances", b"predictions"), (b"inputs", b"outputs")):
                rows = reader.read_json(body, key.decode(), version.width) if key in body[:32] else None
                if rows is not None:
                    return rows, response_key
        if len(body) > LOOP_ROWS_BYTES:
            return None
        cells, word = read_predict_request(parse_json_with_nan(body), version.names)
        encoded = version.encode_known(cells)
        return None if encoded is None else (encoded, word.encode())

    def write(self, _version: FastVersion, result: Result, response_key: bytes) -> Response:
        """Write a list of probabilities for each row."""
        rows = orjson.dumps(result.probabilities, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(b"", JSON, b'{"%b":%b}' % (response_key, rows))


#: a request's id, and the outputs that it asks for
InferDetails = tuple[str | None, tuple[RequestedOutput, ...]]


class OpenInference:
    """The Open Inference Protocol's format.

    Args:
        route: one of the paths that name a version.
        json_bytes: the length of a body's JSON where tensors follow, else None.
    """

    answer_long = None

    def __init__(self, route: str, json_bytes: int | None) -> None:
        self.route = route
        self._json_bytes = json_bytes

    def read(
        self, version: FastVersion, body: bytes, reader: MatrixReader
    ) -> tuple[Matrix | Encoded, InferDetails] | None:
        """Read one tensor of all columns, or a few rows of any kind."""
        if version.takes_matrices:
            found = read_matrix(body, self._json_bytes, version.names, reader)
            if found is not None:
                return found
        if len(body) > LOOP_ROWS_BYTES:
            return None
        request = read_infer_request(body, self._json_bytes, version.names)
        encoded = version.encode_known(request.rows)
        return None if encoded is None else (encoded, (request.id, request.outputs))

    def write(self, version: FastVersion, result: Result, details: InferDetails) -> Response:
        """Write the outputs that were asked for, as JSON or as bytes after it."""
        request_id, outputs = details
        head = version.head if request_id is None else {**version.head, "id": request_id}
        response = InferResponse([version.classes[i] for i in result.best], result.probabilities, version.classes)
        body, length = write_infer_response(response, outputs, head)
        if length is None:
            return Response(b"", JSON, body)
        return Response(b"%b: %d\r\n" % (JSON_LENGTH, length), BINARY, body)
