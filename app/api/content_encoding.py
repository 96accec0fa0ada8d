"""Decompression of bodies, by the Content-Encoding that a request names: gzip, deflate or Zstandard. Knows no request."""

from __future__ import annotations

import zlib
from typing import Protocol

from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

from app.errors import Malformed, UnsupportedMedia

#: bytes that are decompressed at once: a few compressed bytes may become gigabytes
PIECE_BYTES = 1024**2
#: the largest window of a frame is 2**27 bytes (128 MB), the default limit of the `zstd` command
_ZSTD_WINDOW_LOG = 27


class Decompressor(Protocol):
    """A compressed stream, which is fed as it arrives and decompressed in pieces."""

    @property
    def is_whole(self) -> bool:
        """Whether the stream may end here, behind what was decompressed."""

    def feed(self, data: bytes) -> None:
        """Append the next compressed bytes."""

    def read(self) -> bytes:
        """Return at most `PIECE_BYTES` bytes, or none if more must be fed first; raise `Malformed`."""


class Gzip:
    """One or several gzip members (RFC 1952, section 2.2)."""

    #: zlib's `wbits`, which also names the format of the header
    _window_bits = 31

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(self._window_bits)
        self._left = b""
        self.is_whole = False

    def feed(self, data: bytes) -> None:
        """Append the next compressed bytes."""
        self._left += data
        self.is_whole = self.is_whole and not data

    def read(self) -> bytes:
        """Return at most `PIECE_BYTES` bytes, or none if more must be fed first; raise `Malformed`."""
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
        """Append the next compressed bytes."""
        self._left += data
        self.is_whole = self.is_whole and not data

    def read(self) -> bytes:
        """Return at most `PIECE_BYTES` bytes, or none if more must be fed first; raise `Malformed`."""
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


def read_pieces(stream: Decompressor) -> tuple[list[bytes], bool]:
    """Decompress about `PIECE_BYTES`; return the pieces, and whether more must be fed before the next piece."""
    pieces: list[bytes] = []
    size = 0
    while size < PIECE_BYTES:
        piece = stream.read()
        if not piece:
            return pieces, True
        pieces.append(piece)
        size += len(piece)
    return pieces, False


_ENCODINGS: dict[str, type[Gzip] | type[Zstd]] = {"gzip": Gzip, "x-gzip": Gzip, "deflate": Deflate, "zstd": Zstd}


def decompressor(encoding: str) -> Decompressor | None:
    """Return a decompressor for this Content-Encoding, or None for a body that is not compressed.

    Raises:
        UnsupportedMedia: the encoding is unknown, or there are several.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return None
    if encoding not in _ENCODINGS:
        raise UnsupportedMedia(f"Expected Content-Encoding gzip, deflate, zstd or none, got {encoding[:80]!r}.")
    return _ENCODINGS[encoding]()
