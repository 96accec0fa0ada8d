"""Multipart forms (RFC 7578) with one part, `file`, parsed as they arrive. Knows no route, and writes nothing to disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import Invalid, Malformed, TooLarge
from app.http.media_types import ARROW_FILE, BINARY, CSV, JSON, NDJSON, NPY, NPZ, PARQUET, TSV

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

#: bytes that the headers and boundaries of a form may add to its file
ENVELOPE_BYTES = 64 * 1024
#: media types by the extension of a file's name
EXTENSIONS = {
    "csv": CSV,
    "tsv": TSV,
    "json": JSON,
    "ndjson": NDJSON,
    "jsonl": NDJSON,
    "npz": NPZ,
    "npy": NPY,
    "parquet": PARQUET,
    "arrow": ARROW_FILE,
    "feather": ARROW_FILE,
}


class FormFile:
    """Takes the file out of a form, chunk by chunk.

    Args:
        content_type: the request's Content-Type, which names the boundary.
        limit: the largest file, in bytes.

    Raises:
        Malformed: the boundary is absent or too long.
    """

    def __init__(self, content_type: str, limit: int) -> None:
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 0 < len(boundary) <= 70:
            raise Malformed("Expected multipart/form-data with a boundary of 1 to 70 characters.")
        self._parser = MultipartParser(boundary, self._callbacks())
        self._limit = limit
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._pieces: list[bytes] = []
        self._size = 0
        self._parts = 0
        self._is_ended = False
        self._media_type = ""

    def feed(self, data: bytes) -> list[bytes]:
        """Parse the next bytes of the form; return the pieces of the file that they contain.

        Raises:
            Malformed: the form is broken.
            Invalid: the form has another part than one `file`.
            TooLarge: the file is larger than the limit.
        """
        self._pieces = []
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise Malformed("Expected a multipart form with one part, file; it is broken.") from error
        return self._pieces

    def finish(self) -> str:
        """Return the file's media type: the one that its part names, or else the one that its extension means.

        Raises:
            Malformed: the form is cut off, or has no part.
        """
        try:
            self._parser.finalize()
        except FormParserError as error:
            raise Malformed("Expected a multipart form with one part, file; it is broken.") from error
        if not self._is_ended or not self._parts:
            raise Malformed("Expected a multipart form with one part, file; it is cut off or empty.")
        return self._media_type

    def _callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._part_data,
            "on_end": self._end,
        }

    def _part_begin(self) -> None:
        self._parts += 1
        self._headers = {}
        if self._parts > 1:
            raise Invalid.at(("body",), "Expected a form of one part, file; got more parts.")

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if options.get(b"name") != b"file":
            raise Invalid.at(("body",), "Expected a form of one part, file; got a part of another name.")
        declared = self._headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        extension = options.get(b"filename", b"").rpartition(b".")[2].decode("latin-1").lower()
        self._media_type = EXTENSIONS.get(extension, declared) if declared in ("", BINARY) else declared

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self._limit:
            raise TooLarge(f"Expected a file of at most {self._limit} bytes, got more.")
        self._pieces.append(data[start:end])

    def _end(self) -> None:
        self._is_ended = True
