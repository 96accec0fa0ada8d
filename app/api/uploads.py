"""Uploaded tables: received into a file, read by the parser process, stored as a data set. Knows no route."""

from __future__ import annotations

from pathlib import Path

from fastapi import Request

from app.api.request_body import media_type
from app.api.spool import spool
from app.errors import TooLarge, UnsupportedMedia
from app.http.media_types import ARROW_FILE, ARROW_STREAM, CSV, JSON, MULTIPART, NDJSON, NPZ, PARQUET, TSV
from app.records.dataset import Dataset, ParsedTable, RawFile
from app.serving.admission import Lane
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


async def receive(request: Request, services: Services, lane: Lane, path: Path) -> RawFile:
    """Stream an uploaded table into a file.

    Raises:
        UnsupportedMedia, TooLarge, Malformed, Invalid, StorageFull: as `spool`.
    """
    settings = services.settings
    said = media_type(request)
    is_json = said != MULTIPART and form_of(said) == "json"
    body = await spool(request, path, settings.json_bytes if is_json else settings.max_upload_bytes, lane)
    form = form_of(body.media_type)
    if form == "json" and body.size_bytes > settings.json_bytes:
        raise TooLarge(f"Expected JSON of at most {settings.json_bytes} bytes, got {body.size_bytes}.")
    return RawFile(path, form, body.size_bytes, body.sha256)


async def read(services: Services, lane: Lane, raw: RawFile) -> Dataset | ParsedTable:
    """Parse a file, or return the data set of these very bytes. Nothing is stored."""
    same = await lane.run(lambda: services.rooms.datasets.find(raw.sha256, raw.form))
    if same is not None and same.status == "ready":
        return same
    return await services.parser_for(raw.path).parse(raw.path, raw.form, raw.path.with_name("table"))


async def keep(
    services: Services, lane: Lane, table: Dataset | ParsedTable, raw: RawFile | None, name: str | None = None
) -> tuple[Dataset, bool]:
    """Store a table that `read` returned, unless it is a data set; return the data set, and whether it is new."""
    if isinstance(table, Dataset):
        return table, False
    assert raw is not None
    return await lane.run(lambda: services.rooms.datasets.add(name, raw, table))
