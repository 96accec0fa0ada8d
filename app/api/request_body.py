"""Request bodies, read chunk by chunk within a limit and decompressed. Knows no route."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request

from app.api.content_encoding import Decompressor, decompressor, read_pieces
from app.errors import Malformed, TooLarge


def media_type(request: Request) -> str:
    """Return the request's Content-Type without parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def chunks(request: Request, limit: int) -> AsyncIterator[bytes]:
    """Yield the chunks of a body as they arrive, decompressed.

    Raises:
        TooLarge: the body is larger than `limit` bytes, compressed or decompressed.
        UnsupportedMedia: the Content-Encoding is unknown.
        Malformed: the compressed stream is broken or cut off.
    """
    stream = decompressor(",".join(request.headers.getlist("content-encoding")))
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"Expected a body of at most {limit} bytes, got {int(declared)}.")
    received = decompressed = 0
    async for chunk in request.stream():
        # both sizes are limited: an endless compressed stream may decompress to nothing
        received += len(chunk)
        async for piece in _pieces(chunk, stream):
            decompressed += len(piece)
            if decompressed > limit:
                raise TooLarge(
                    f"Expected a body of at most {limit} bytes{' when decompressed' if stream else ''}, got more."
                )
            yield piece
        if received > limit:
            raise TooLarge(f"Expected a body of at most {limit} bytes, got more.")
    if stream is not None and not stream.is_whole:
        raise Malformed("Expected a whole compressed stream; it is cut off.")


async def _pieces(chunk: bytes, stream: Decompressor | None) -> AsyncIterator[bytes]:
    if stream is None:
        yield chunk
        return
    stream.feed(chunk)
    is_read = False
    while not is_read:
        pieces, is_read = await asyncio.to_thread(read_pieces, stream)
        for piece in pieces:
            yield piece


async def read_body(request: Request, limit: int) -> bytes:
    """Read a body into memory.

    Raises:
        TooLarge, Malformed: as `chunks`.
    """
    return b"".join([chunk async for chunk in chunks(request, limit)])
