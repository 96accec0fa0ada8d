"""Request bodies: read within their limits, decompressed, taken out of multipart forms. Knows no route."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.errors import Invalid, Malformed, TooLarge, UnsupportedMedia, disk_full_is_a_fact
from app.wiring import REQUEST, Services

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MULTIPART = "multipart/form-data"
#: what is decompressed at once, however little it came from
PIECE_BYTES = 1024**2
#: a frame that wants a larger window is refused: 128 MB, what the `zstd` command takes without being asked
_ZSTD_WINDOW_LOG = 27
#: what the headers and boundaries of a form may add to its file
_ENVELOPE_BYTES = 64 * 1024


def media_type(request: Request) -> str:
    """Give the request's Content-Type without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


class Decompressor(Protocol):
    """A compressed stream, taken in as it comes and given out in pieces."""

    @property
    def is_whole(self) -> bool:
        """Whether the stream has ended where a stream may end."""

    def feed(self, data: bytes) -> None:
        """Take in the next bytes."""

    def read(self) -> bytes:
        """Give at most `PIECE_BYTES` more, or nothing where more must be fed; raises `Malformed`."""


class Gzip:
    """One or several gzip members (RFC 1952, section 2.2)."""

    #: zlib's number for the header that it expects
    _window_bits = 31

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(self._window_bits)
        self._left = b""
        self.is_whole = False

    def feed(self, data: bytes) -> None:
        """Take in the next bytes."""
        self._left += data
        self.is_whole = self.is_whole and not data

    def read(self) -> bytes:
        """Give at most `PIECE_BYTES` more, or nothing where more must be fed; raises `Malformed`."""
        while True:
            try:
                piece = self._stream.decompress(self._left, PIECE_BYTES)
            except zlib.error as error:
                raise Malformed(f"Expected a {type(self).__name__.lower()} stream, got bytes that are none.") from error
            self._left = self._stream.unconsumed_tail
            if self._stream.eof:
                self._left = self._stream.unused_data
                self._stream = zlib.decompressobj(self._window_bits)
                self.is_whole = not self._left
            if piece or not self._left:
                return piece


class Deflate(Gzip):
    """A zlib stream (RFC 1950), which HTTP calls deflate (RFC 9110, section 8.4.1.2)."""

    _window_bits = 15


class Zstd:
    """One or several Zstandard frames (RFC 8878, section 3.1)."""

    def __init__(self) -> None:
        self._frame = self._begin()
        self._left = b""
        self.is_whole = False

    @staticmethod
    def _begin() -> ZstdDecompressor:
        return ZstdDecompressor(options={DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})

    def feed(self, data: bytes) -> None:
        """Take in the next bytes."""
        self._left += data
        self.is_whole = self.is_whole and not data

    def read(self) -> bytes:
        """Give at most `PIECE_BYTES` more, or nothing where more must be fed; raises `Malformed`."""
        while True:
            try:
                piece = self._frame.decompress(self._left, PIECE_BYTES)
            except ZstdError as error:
                raise Malformed("Expected a Zstandard stream, got bytes that are none.") from error
            self._left = b""
            if self._frame.eof:
                self._left = self._frame.unused_data
                self._frame = self._begin()
                self.is_whole = not self._left
            if piece or not self._left:
                return bytes(piece)


_ENCODINGS: dict[str, type[Gzip] | type[Zstd]] = {"gzip": Gzip, "x-gzip": Gzip, "deflate": Deflate, "zstd": Zstd}


def _decompressor(request: Request) -> Decompressor | None:
    encoding = ",".join(request.headers.getlist("content-encoding")).strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _ENCODINGS:
        raise UnsupportedMedia(f"Expected Content-Encoding gzip, deflate, zstd or none, got {encoding[:80]!r}.")
    return _ENCODINGS[encoding]()


async def chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Give a body as it comes, decompressed.

    Raises:
        TooLarge: it is larger than `limit` bytes, compressed or not.
        Malformed: the compressed stream is broken or cut off.
    """
    decompressor = _decompressor(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"Expected a body of at most {limit} bytes, got {int(declared)}.")
    came = decompressed = 0
    async for chunk in request.stream():
        # a compressed stream may be of any length and hold nothing
        came += len(chunk)
        async for piece in _pieces(chunk, decompressor):
            decompressed += len(piece)
            if decompressed > limit:
                raise TooLarge(
                    f"Expected a body of at most {limit} bytes{' when decompressed' if decompressor else ''}, got more."
                )
            yield piece
        if came > limit:
            raise TooLarge(f"Expected a body of at most {limit} bytes, got more.")
    if decompressor is not None and not decompressor.is_whole:
        raise Malformed("Expected a whole compressed stream; it is cut off.")


async def _pieces(chunk: bytes, decompressor: Decompressor | None) -> AsyncIterator[bytes]:
    if decompressor is None:
        yield chunk
        return
    decompressor.feed(chunk)
    while piece := await asyncio.to_thread(decompressor.read):
        yield piece


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body into memory.

    Raises:
        TooLarge, Malformed: as `chunks`.
    """
    return b"".join([chunk async for chunk in chunks(request, limit)])


class Spooled(NamedTuple):
    """What was streamed into a file; a form's file that names no type has the one that its extension means."""

    media_type: str
    size_bytes: int


async def spool(request: Request, path: Path, limit: int) -> Spooled:
    """Stream a body, or the one file of a multipart form, into a file.

    Raises:
        TooLarge, Malformed: as `chunks`; or the form is broken.
        Invalid: the form has another part than one `file`.
        StorageFull: the disk is.
    """
    with disk_full_is_a_fact(), path.open("wb") as file:
        if media_type(request) == MULTIPART:
            return await _spool_form(request, file, limit)
        async for chunk in chunks(request, limit):
            file.write(chunk)
        return Spooled(media_type(request), file.tell())


@contextmanager
def staging(services: Services) -> Iterator[Path]:
    """Give a request a folder on the store's disk, removed at the end."""
    with disk_full_is_a_fact(), services.rooms.blobs.staging(REQUEST) as folder:
        yield folder


#: media types by the extension of a file's name
EXTENSIONS = {
    "csv": "text/csv",
    "tsv": "text/tab-separated-values",
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "jsonl": "application/x-ndjson",
    "npz": "application/x-npz",
    "npy": "application/x-npy",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.file",
    "feather": "application/vnd.apache.arrow.file",
}


class _Form:
    """What a multipart parser found: the one part `file`, written as it comes."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._limit = file, limit
        self._name = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._size = 0
        self.parts = 0
        self.is_ended = False
        self.media_type = ""

    def callbacks(self) -> MultipartCallbacks:
        """Give what the parser is to call, by the names of its events."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self.parts += 1
        self._headers = {}
        if self.parts > 1:
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
        said = self._headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        extension = options.get(b"filename", b"").rpartition(b".")[2].decode("latin-1").lower()
        self.media_type = EXTENSIONS.get(extension, said) if said in ("", "application/octet-stream") else said

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size > self._limit:
            raise TooLarge(f"Expected a file of at most {self._limit} bytes, got more.")
        self._file.write(data[start:end])

    def _end(self) -> None:
        self.is_ended = True


async def _spool_form(request: Request, file: BinaryIO, limit: int) -> Spooled:
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise Malformed("Expected multipart/form-data with a boundary of 1 to 70 characters.")
    form = _Form(file, limit)
    parser = MultipartParser(boundary, form.callbacks())
    try:
        async for chunk in chunks(request, limit + _ENVELOPE_BYTES):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise Malformed("Expected a multipart form with one part, file; it is broken.") from error
    if not form.is_ended or not form.parts:
        raise Malformed("Expected a multipart form with one part, file; it is cut off or empty.")
    return Spooled(form.media_type, file.tell())
