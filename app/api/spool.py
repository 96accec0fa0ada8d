"""Request bodies as files on the store's disk: written and hashed in threads, block by block. Knows no route."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from fastapi import Request

from app.api.multipart import ENVELOPE_BYTES, FormFile
from app.api.request_body import chunks, media_type
from app.errors import disk_full_is_a_fact
from app.http.media_types import MULTIPART
from app.serving.admission import Lane
from app.wiring import REQUEST, Services

T = TypeVar("T")

#: bytes that are gathered before a thread writes them; to hand over each chunk of 64 KB would take longer than to write it
BLOCK_BYTES = 1024**2


class Spooled(NamedTuple):
    """A body that was streamed into a file.

    Args:
        media_type: of the body, or of the file in a form; a file without a type has the one that its extension means.
        sha256: of the salt and the file, in hexadecimal.
    """

    media_type: str
    size_bytes: int
    sha256: str


class _FileWriter:
    """Writes a body, or the file of a form, to the disk and hashes it. For any thread, one call at a time."""

    def __init__(self, path: Path, form: FormFile | None, salt: bytes) -> None:
        self._path, self._form = path, form
        self.digest = hashlib.sha256(salt)
        self.size_bytes = 0

    def write(self, block: list[bytes]) -> None:
        """Append the next chunks of the body."""
        if self._form is not None:
            block = [piece for chunk in block for piece in self._form.feed(chunk)]
        # the file is opened for each block: none is left open by a client that disconnects
        with disk_full_is_a_fact(), self._path.open("ab") as file:
            for chunk in block:
                self.digest.update(chunk)
                self.size_bytes += file.write(chunk)


async def spool(request: Request, path: Path, limit: int, lane: Lane, salt: bytes = b"") -> Spooled:
    """Stream a body, or the one file of a multipart form, into a file, on the threads of a lane.

    Args:
        path: a file that does not exist yet.
        limit: the largest body or file, in bytes.
        salt: bytes that are hashed before the file.

    Raises:
        TooLarge, Malformed: as `chunks`; or the form is broken.
        Invalid: the form has another part than one `file`.
        StorageFull: the disk is full.
    """
    is_form = media_type(request) == MULTIPART
    form = FormFile(request.headers.get("content-type", ""), limit) if is_form else None
    writer = _FileWriter(path, form, salt)
    block: list[bytes] = []
    size = 0
    async for chunk in chunks(request, limit + ENVELOPE_BYTES if is_form else limit):
        block.append(chunk)
        size += len(chunk)
        if size >= BLOCK_BYTES:
            await settled(lane.run(partial(writer.write, block)))
            block, size = [], 0
    await settled(lane.run(partial(writer.write, block)))
    file_type = media_type(request) if form is None else form.finish()
    return Spooled(file_type, writer.size_bytes, writer.digest.hexdigest())


@asynccontextmanager
async def staging(services: Services) -> AsyncIterator[Path]:
    """Yield a folder on the store's disk for the files of one request, removed at the end."""
    folder = services.rooms.blobs.staging(REQUEST)
    with disk_full_is_a_fact():
        try:
            yield await settled(asyncio.to_thread(folder.__enter__))
        finally:
            await settled(asyncio.to_thread(folder.__exit__, None, None, None))


async def settled(work: Awaitable[T]) -> T:
    """Await work in a thread; when cancelled, wait for the end of the work first.

    A thread cannot be stopped: without the wait it might write to a staging folder that is being removed.
    """
    future = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        await asyncio.wait([future])
        raise
