"""The route that scores a version on labelled rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request

from app.api.auth import require_scope
from app.api.deps import ModelRef, ServicesDep
from app.api.examples.predictions import EVALUATE
from app.api.openapi import documented, takes
from app.api.request_body import media_type
from app.api.schemas.predictions import Evaluation
from app.api.spool import staging
from app.api.uploads import receive
from app.errors import Invalid
from app.http.media_types import MULTIPART
from app.learning.tables.table_file import TableFile
from app.records.ref import Ref
from app.serving.evaluator import score
from app.wiring import Services

router = APIRouter(prefix="/api/v1/models", tags=["Predictions"])


@router.post(
    "/{ref}/evaluate",
    response_model_by_alias=True,
    response_model_exclude_unset=True,
    summary="Evaluate",
    responses=documented(400, 404, 408, 409, 413, 415, 422, 507),
    openapi_extra=takes(EVALUATE),
)
async def evaluate(
    ref: ModelRef,
    request: Request,
    services: ServicesDep,
    by: Annotated[str | None, Query(max_length=200, description="Score the rows of each value of this column.")] = None,
) -> Evaluation:
    """Score a version on labelled rows: a data set, data in the body, or a raw file. Nothing is stored.

    `by` adds `slices`: the main figures of the rows that have the same value in a column, for each value. A stored data
    set requires a key with the scope `train`, which may read data sets.
    """
    lane = services.lanes.evaluations
    async with lane.place():
        loaded = await lane.run(lambda: services.version_cache.get(Ref.parse(ref)))
        async with staging(services) as folder:
            path = await _labelled_table(request, services, folder)
            return await lane.run(lambda: Evaluation.of(loaded, score(loaded, TableFile(path), by), by))


async def _labelled_table(request: Request, services: Services, folder: Path) -> Path:
    """Return the file of the table to evaluate: a stored one, or the table in `folder` that the body is parsed into."""
    lane = services.lanes.evaluations
    body = await receive(request, services, lane, folder / "body")
    raw = body.path
    parser = services.parser_for(raw)
    dataset_id = None
    if body.form == "json" and media_type(request) != MULTIPART:
        parts = await parser.split(raw, folder / "data")
        dataset_id = parts.rest.pop("dataset", None)
        if (dataset_id is not None) == parts.has_data or parts.rest:
            raise Invalid('Expected an object with one of "dataset" and "data".')
        raw = folder / "data"
    if dataset_id is None:
        await parser.parse(raw, body.form, folder / "table")
        return folder / "table"
    if not isinstance(dataset_id, str):
        raise Invalid.at(("dataset",), "Expected dataset to be an id.")
    # scores and slices reveal what is in the data set
    require_scope(request, "train")
    datasets = services.rooms.datasets
    return await lane.run(lambda: datasets.path(datasets.get_ready(dataset_id).table_key))
