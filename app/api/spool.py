"""Request bodies as files on the store's disk. Knows no route."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from fastapi import Request

from app.api.multipart import ENVELOPE_BYTES, FormFile
from app.api.request_body import chunks, media_type
from app.errors import disk_full_is_a_fact
from app.http.media_types import MULTIPART
from app.wiring import REQUEST, Services


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
        if media_type(request) != MULTIPART:
            async for chunk in chunks(request, limit):
                file.write(chunk)
            return Spooled(media_type(request), file.tell())
        form = FormFile(request.headers.get("content-type", ""), limit)
        async for chunk in chunks(request, limit + ENVELOPE_BYTES):
            file.writelines(form.feed(chunk))
        return Spooled(form.finish(), file.tell())


@contextmanager
def staging(services: Services) -> Iterator[Path]:
    """Give a request a folder on the store's disk, removed at the end."""
    with disk_full_is_a_fact(), services.rooms.blobs.staging(REQUEST) as folder:
        yield folder
