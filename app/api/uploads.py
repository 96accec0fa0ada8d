"""Uploaded tables: received into a file, parsed by a parser process, stored as a data set. Knows no route."""

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

#: media types of a raw file → the format's name
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
    """Return the name of the format that a media type means, or raise `UnsupportedMedia`."""
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
    declared = media_type(request)
    is_json = declared != MULTIPART and form_of(declared) == "json"
    body = await spool(request, path, settings.json_bytes if is_json else settings.max_upload_bytes, lane)
    form = form_of(body.media_type)
    if form == "json" and body.size_bytes > settings.json_bytes:
        raise TooLarge(f"Expected JSON of at most {settings.json_bytes} bytes, got {body.size_bytes}.")
    return RawFile(path, form, body.size_bytes, body.sha256)


async def read(services: Services, lane: Lane, raw: RawFile) -> Dataset | ParsedTable:
    """Return the data set that has the same bytes; or parse the file. Nothing is stored."""
    dataset = await lane.run(lambda: services.rooms.datasets.find(raw.sha256, raw.form))
    if dataset is not None and dataset.status == "ready":
        return dataset
    return await services.parser_for(raw.path).parse(raw.path, raw.form, raw.path.with_name("table"))


async def keep(
    services: Services, lane: Lane, table: Dataset | ParsedTable, raw: RawFile | None, name: str | None = None
) -> tuple[Dataset, bool]:
    """Store a table that `read` returned; return the data set, and whether it is new.

    Args:
        raw: the file that the table was parsed from.
    """
    if isinstance(table, Dataset):
        return table, False
    assert raw is not None
    return await lane.run(lambda: services.rooms.datasets.add(name, raw, table))
