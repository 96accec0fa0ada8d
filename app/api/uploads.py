"""Uploaded tables: received into a file, read by the parser process, stored as a data set. Knows no route."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request

from app.api.request_body import media_type
from app.api.spool import spool
from app.errors import TooLarge, UnsupportedMedia
from app.http.media_types import ARROW_FILE, ARROW_STREAM, CSV, JSON, MULTIPART, NDJSON, NPZ, PARQUET, TSV
from app.records.datasets import Dataset, Parsed
from app.serving.admission import Lane
from app.storage.blobs import sha256_of
from app.wiring import Services

FORMATS = {
    CSV: "csv",
    TSV: "tsv",
    JSON: "json",
    NDJSON: "ndjson",
    NPZ: "npz",
    PARQUET: "parquet",
    ARROW_STREAM: "arrow_stream",
    ARROW_FILE: "arrow_file",
}


def form_of(media: str) -> str:
    """Give the form that a media type names, or raise `UnsupportedMedia`."""
    form = FORMATS.get(media)
    if form is None:
        raise UnsupportedMedia(
            f"Expected Content-Type {', '.join(FORMATS)} or {MULTIPART}; got {media[:80] or 'none'!r}."
        )
    return form


async def receive(request: Request, services: Services, path: Path) -> tuple[str, int]:
    """Stream an uploaded table into a file; gives its form and its size in bytes.

    Raises:
        UnsupportedMedia, TooLarge, Malformed, Invalid, StorageFull: as `spool`.
    """
    settings = services.settings
    said = media_type(request)
    is_json = said != MULTIPART and form_of(said) == "json"
    found = await spool(request, path, settings.json_bytes if is_json else settings.max_upload_bytes)
    form = form_of(found.media_type)
    if form == "json" and found.size_bytes > settings.json_bytes:
        raise TooLarge(f"Expected JSON of at most {settings.json_bytes} bytes, got {found.size_bytes}.")
    return form, found.size_bytes


async def read(services: Services, lane: Lane, raw: Path, form: str) -> Dataset | Parsed:
    """Parse a file, or give the data set of these very bytes. Stores nothing."""
    before = await lane.run(lambda: services.rooms.datasets.find(sha256_of(raw), form))
    if before is not None and before.status == "ready":
        return before
    return await services.parser_for(raw).parse(raw, form, raw.with_name("table"))


async def keep(
    services: Services, lane: Lane, table: Dataset | Parsed, raw: Path, form: str, name: str | None
) -> tuple[Dataset, bool]:
    """Store what was read; gives the data set and whether it is new."""
    if isinstance(table, Dataset):
        return table, False
    return await lane.run(lambda: services.rooms.datasets.add(name, form, raw, table))
