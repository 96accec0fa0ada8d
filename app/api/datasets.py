"""Routes of data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as PathParameter

from app.api.deps import After, Limit, ServicesDep, json_body, json_request
from app.api.openapi import documented
from app.api.request_body import MULTIPART, media_type, spool, staging
from app.api.schemas import DatasetOut, DatasetPage, DatasetPatch, RowsOut
from app.errors import Invalid, TooLarge, UnsupportedMedia
from app.learning.tables.table_file import load_table
from app.names import id_of
from app.records.datasets import Dataset, Parsed
from app.serving.admission import Lane
from app.storage.blobs import sha256_of
from app.wiring import Services

router = APIRouter(prefix="/api/v1/datasets", tags=["Data sets"])

FORMATS = {
    "text/csv": "csv",
    "text/tab-separated-values": "tsv",
    "application/json": "json",
    "application/x-ndjson": "ndjson",
    "application/x-npz": "npz",
    "application/vnd.apache.parquet": "parquet",
    "application/vnd.apache.arrow.stream": "arrow_stream",
    "application/vnd.apache.arrow.file": "arrow_file",
}
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
Id = Annotated[
    str,
    PathParameter(
        pattern=f"^{id_of('ds')}$", description="A data set's id.", examples=["ds_0193a5c2f1b07d2c9f1e3a5b7c9d"]
    ),
]

_CSV = "species,length,weight\nAdelie,181,3750\nGentoo,217,5200\nAdelie,186,3800\n"
_JSON = {"columns": {"length": [181, 217, 186], "species": ["Adelie", "Gentoo", "Adelie"]}}
UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "text/csv": {"schema": {"type": "string"}, "examples": {"table": {"value": _CSV}}},
        "text/tab-separated-values": {
            "schema": {"type": "string"},
            "examples": {"table": {"value": _CSV.replace(",", "\t")}},
        },
        "application/json": {
            "schema": {"type": "object"},
            "examples": {
                "columns": {"value": _JSON},
                "records": {
                    "value": {"records": [{"length": 181, "species": "Adelie"}, {"length": 217, "species": "Gentoo"}]}
                },
                "matrix": {"value": {"x": [[0.1, 2.0], [1.5, 0.3]], "y": [0, 1]}},
            },
        },
        "application/x-ndjson": {
            "schema": {"type": "string"},
            "examples": {"lines": {"value": '{"length":181,"species":"Adelie"}\n{"length":217,"species":"Gentoo"}\n'}},
        },
        "application/x-npz": _BINARY,
        "application/vnd.apache.parquet": _BINARY,
        "application/vnd.apache.arrow.stream": _BINARY,
        "application/vnd.apache.arrow.file": _BINARY,
        MULTIPART: {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "string", "format": "binary"}},
            }
        },
    },
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
        UnsupportedMedia, TooLarge, Malformed, Invalid, StorageFull: as `bodies.spool`.
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


@router.post(
    "",
    status_code=201,
    response_model=DatasetOut,
    summary="Upload a data set",
    responses=documented(
        *(400, 408, 413, 415, 422, 507), ok={"model": DatasetOut, "description": "These bytes were uploaded before."}
    )
    | {202: {"model": DatasetOut, "description": "Stored; a large file is read afterwards: `status` says when."}},
    openapi_extra={"requestBody": UPLOAD_BODY},
)
async def upload(
    request: Request,
    response: Response,
    services: ServicesDep,
    name: Annotated[str | None, Query(min_length=1, max_length=200, description="A name for people.")] = None,
) -> Any:
    """Send a table as the body, or as the one part `file` of a form; `Content-Encoding: gzip`, `deflate` and `zstd` are read.

    CSV has a header row; JSON one of three forms; NPZ the arrays `x` and `y`. The kind of each column is inferred;
    `PATCH` corrects it. Equal bytes give the data set that is there. A large file is stored and answered 202 with the
    status `processing`; it becomes `ready` or `failed`.
    """
    if name is not None and not name.isprintable():
        raise Invalid.at(("query", "name"), "Expected a name of printable characters.")
    lane = services.lanes.uploads
    async with lane.place():
        with staging(services) as folder:
            raw = folder / "raw"
            form, size = await receive(request, services, raw)
            if size > services.settings.max_parsed_at_once_bytes:
                dataset, is_new = await lane.run(lambda: services.rooms.datasets.add_unread(name, form, raw))
                services.background_parser.wake()
            else:
                table = await read(services, lane, raw, form)
                dataset, is_new = await keep(services, lane, table, raw, form, name)
    response.status_code = 202 if dataset.status == "processing" else 201 if is_new else 200
    response.headers["Location"] = f"/api/v1/datasets/{dataset.id}"
    return DatasetOut.of(dataset)


@router.get("", response_model=DatasetPage, summary="List data sets", responses=documented(422))
def list_datasets(services: ServicesDep, limit: Limit = 50, after: After = None) -> Any:
    """Give the data sets, newest first."""
    found, following = services.rooms.datasets.list(limit, after)
    return {"items": [DatasetOut.of(dataset) for dataset in found], "next": following}


@router.get("/{id}", response_model=DatasetOut, summary="Get a data set", responses=documented(404, 422))
def get_dataset(id: Id, services: ServicesDep) -> Any:
    """Give a data set with its columns and their statistics."""
    return DatasetOut.of(services.rooms.datasets.get(id))


@router.get("/{id}/rows", response_model=RowsOut, summary="Get the first rows", responses=documented(404, 409, 422))
def get_rows(id: Id, services: ServicesDep, limit: Limit = 50) -> Any:
    """Give the first rows as they were posted; missing cells are null."""
    dataset = services.rooms.datasets.get_ready(id)
    table = load_table(services.rooms.datasets.path(dataset.table_key), limit)
    cells = [column.cells(limit) for column in table.columns]
    return {"columns": table.names, "rows": [list(row) for row in zip(*cells, strict=True)]}


@router.patch(
    "/{id}",
    response_model=DatasetOut,
    summary="Correct the kinds of columns",
    responses=documented(400, 404, 408, 409, 413, 415, 422, 507),
    openapi_extra=json_request(DatasetPatch),
)
async def patch_dataset(
    id: Id, body: Annotated[DatasetPatch, Depends(json_body(DatasetPatch))], services: ServicesDep
) -> Any:
    """Read the uploaded bytes again with these kinds; jobs keep the kinds they were submitted with."""
    lane = services.lanes.uploads
    async with lane.place():
        dataset = await lane.run(lambda: services.rooms.datasets.get_ready(id))
        kinds = _corrected(dataset, body)
        raw = services.rooms.datasets.raw_path(dataset)
        with staging(services) as folder:
            parsed = await services.parser_for(raw).parse(raw, dataset.format, folder / "table", kinds)
            changed = await lane.run(lambda: services.rooms.datasets.replace_table(id, parsed, dataset.table_key))
    return DatasetOut.of(changed)


def _corrected(dataset: Dataset, body: DatasetPatch) -> dict[str, str]:
    known = {column["name"] for column in dataset.columns}
    for name, correction in body.columns.items():
        if name not in known:
            raise Invalid.at(("columns", name), f"There is no column {name[:80]!r}.")
        if correction.kind not in ("numeric", "categorical", "boolean", "text"):
            raise Invalid.at(("columns", name, "kind"), "Expected numeric, categorical, boolean or text.")
    kinds = {column["name"]: column["kind"] for column in dataset.columns if column["kind"] != "datetime"}
    return kinds | {name: correction.kind for name, correction in body.columns.items()}


@router.delete(
    "/{id}", status_code=204, response_class=Response, summary="Delete a data set", responses=documented(404, 409, 422)
)
def delete_dataset(id: Id, services: ServicesDep) -> None:
    """Remove a data set; versions trained on it stay."""
    services.rooms.datasets.delete(id, services.rooms.jobs)
