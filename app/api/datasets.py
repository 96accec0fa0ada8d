"""Routes of data sets: upload, list, look, correct, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi import Path as PathParameter

from app.api.deps import After, Limit, ServicesDep, json_body
from app.api.examples.datasets import UPLOAD
from app.api.openapi import documented, takes, takes_json
from app.api.schemas.datasets import DatasetOut, DatasetPage, DatasetPatch, RowsOut
from app.api.spool import staging
from app.api.uploads import keep, read, receive
from app.errors import Invalid
from app.learning.tables.column import ColumnKind
from app.learning.tables.table_file import load_table
from app.names import id_of
from app.records.dataset import Dataset

router = APIRouter(prefix="/api/v1/datasets", tags=["Data sets"])

Id = Annotated[
    str,
    PathParameter(
        pattern=f"^{id_of('ds')}$", description="A data set's id.", examples=["ds_0193a5c2f1b07d2c9f1e3a5b7c9d"]
    ),
]


@router.post(
    "",
    status_code=201,
    summary="Upload a data set",
    responses=documented(
        *(400, 408, 413, 415, 422, 507), ok={"model": DatasetOut, "description": "These bytes were uploaded before."}
    )
    | {202: {"model": DatasetOut, "description": "Stored; a large file is read afterwards: `status` says when."}},
    openapi_extra=takes(UPLOAD),
)
async def upload(
    request: Request,
    response: Response,
    services: ServicesDep,
    name: Annotated[
        str | None, Query(min_length=1, max_length=200, description="A name to show; it need not be unique.")
    ] = None,
) -> DatasetOut:
    """Upload a table as the body, or as the one part `file` of a form. `Content-Encoding` may be `gzip`, `deflate` or `zstd`.

    CSV has a header row, JSON has one of three forms, NPZ has the arrays `x` and `y`. The kind of each column is
    inferred; `PATCH` corrects it. If the same bytes were uploaded before, the answer is the data set that exists. A
    large file is stored and answered with 202 and the status `processing`, which becomes `ready` or `failed`.
    """
    if name is not None and not name.isprintable():
        raise Invalid.at(("query", "name"), "Expected a name of printable characters.")
    lane = services.lanes.uploads
    async with lane.place(), staging(services) as folder:
        raw = await receive(request, services, lane, folder / "raw")
        if raw.size_bytes > services.settings.max_parsed_at_once_bytes:
            dataset, is_new = await lane.run(lambda: services.rooms.datasets.add_unread(name, raw))
            services.background_parser.wake()
        else:
            table = await read(services, lane, raw)
            dataset, is_new = await keep(services, lane, table, raw, name)
    response.status_code = 202 if dataset.status == "processing" else 201 if is_new else 200
    response.headers["Location"] = f"/api/v1/datasets/{dataset.id}"
    return DatasetOut.of(dataset)


@router.get("", summary="List data sets", responses=documented(422))
def list_datasets(services: ServicesDep, limit: Limit = 50, after: After = None) -> DatasetPage:
    """List the data sets, newest first."""
    datasets, next_page = services.rooms.datasets.list(limit, after)
    return DatasetPage(items=[DatasetOut.of(dataset) for dataset in datasets], next=next_page)


@router.get("/{id}", summary="Get a data set", responses=documented(404, 422))
def get_dataset(id: Id, services: ServicesDep) -> DatasetOut:
    """Return a data set with its columns and their statistics."""
    return DatasetOut.of(services.rooms.datasets.get(id))


@router.get("/{id}/rows", summary="Get the first rows", responses=documented(404, 409, 422))
def get_rows(id: Id, services: ServicesDep, limit: Limit = 50) -> RowsOut:
    """Return the first rows as they were uploaded; missing cells are null."""
    dataset = services.rooms.datasets.get_ready(id)
    table = load_table(services.rooms.datasets.path(dataset.table_key), limit)
    cells = [column.cells(limit) for column in table.columns]
    return RowsOut(columns=table.names, rows=[list(row) for row in zip(*cells, strict=True)])


@router.patch(
    "/{id}",
    summary="Correct the kinds of columns",
    responses=documented(400, 404, 408, 409, 413, 415, 422, 507),
    openapi_extra=takes_json(DatasetPatch),
)
async def patch_dataset(
    id: Id, body: Annotated[DatasetPatch, Depends(json_body(DatasetPatch))], services: ServicesDep
) -> DatasetOut:
    """Parse the uploaded bytes again with these kinds of columns. Jobs keep the kinds that they were submitted with."""
    lane = services.lanes.uploads
    async with lane.place():
        dataset = await lane.run(lambda: services.rooms.datasets.get_ready(id))
        kinds = _corrected(dataset, body)
        raw = await lane.run(lambda: services.rooms.datasets.raw_path(dataset))
        async with staging(services) as folder:
            parsed = await services.parser_for(raw).parse(raw, dataset.format, folder / "table", kinds)
            changed = await lane.run(lambda: services.rooms.datasets.replace_table(id, parsed, dataset.table_key))
    return DatasetOut.of(changed)


def _corrected(dataset: Dataset, body: DatasetPatch) -> dict[str, ColumnKind]:
    names = {column["name"] for column in dataset.columns}
    for name, correction in body.columns.items():
        if name not in names:
            raise Invalid.at(("columns", name), f"There is no column {name[:80]!r}.")
        if correction.kind not in ("numeric", "categorical", "boolean", "text"):
            raise Invalid.at(("columns", name, "kind"), "Expected numeric, categorical, boolean or text.")
    kinds = {column["name"]: column["kind"] for column in dataset.columns if column["kind"] != "datetime"}
    return kinds | {name: correction.kind for name, correction in body.columns.items()}


@router.delete(
    "/{id}", status_code=204, response_class=Response, summary="Delete a data set", responses=documented(404, 409, 422)
)
def delete_dataset(id: Id, services: ServicesDep) -> None:
    """Delete a data set. Versions that were trained on it stay."""
    services.rooms.datasets.delete(id, services.rooms.jobs)
