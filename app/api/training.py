"""The route that trains a model: it queues a job, or describes the job in a dry run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NamedTuple

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import ValidationError

from app.api.deps import ModelName, ServicesDep, require_json
from app.api.error_handlers import invalid_body
from app.api.examples.jobs import TRAIN
from app.api.openapi import documented, takes
from app.api.schemas.jobs import DryRun, JobOut
from app.api.spool import spool, staging
from app.api.uploads import keep, read
from app.errors import Invalid
from app.http.media_types import JSON
from app.jobs.submit import describe_dry_run, settle
from app.learning.spec import TrainSpec
from app.records.dataset import Dataset, ParsedTable, RawFile
from app.wiring import Services, job_limits

router = APIRouter(prefix="/api/v1", tags=["Jobs"])


@router.post(
    "/models/{name}/train",
    status_code=202,
    response_model=JobOut,
    summary="Train a model",
    tags=["Models"],
    responses=documented(
        *(400, 404, 408, 409, 413, 415, 422, 429, 507),
        ok={"model": DryRun, "description": "With `dry_run`: a description of the job."},
    ),
    openapi_extra=takes(TRAIN),
)
async def train(
    name: ModelName,
    request: Request,
    response: Response,
    services: ServicesDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="For 24 hours the same key with the same body returns the same job.",
        ),
    ] = None,
    dry_run: Annotated[bool, Query(description="Only describe the job; nothing is stored.")] = False,
) -> JobOut | Response:
    """Queue a job that trains a model on a data set, or on data in the body. The result is the model's next version.

    Every hyper-parameter is a value or `"auto"`; the job shows the value that was chosen. `dry_run` answers 200 with
    the resolved specification, the columns and classes, warnings about the data, and an estimate of time and memory.
    """
    require_json(request)
    lane = services.lanes.submissions
    async with lane.place(), staging(services) as folder:
        path = folder / "body"
        body = await spool(request, path, services.settings.json_bytes, lane, salt=name.encode() + b"\n")
        job = None
        if idempotency_key is not None and not dry_run:
            job = await lane.run(lambda: services.rooms.jobs.find_submitted(idempotency_key, body.sha256))
        if job is None or dry_run:
            spec, table, data = await _read(services, path, folder / "data")
            submission = await lane.run(lambda: settle(services.rooms, table, spec, job_limits(services.settings)))
            if dry_run:
                description = await lane.run(lambda: describe_dry_run(services.rooms, table, submission))
                answer = DryRun.model_validate(description)
                return Response(answer.model_dump_json(by_alias=True), media_type=JSON)
            await lane.run(services.rooms.jobs.check_queue)
            dataset, _ = await keep(services, lane, table, data)
            new = submission.new_job(name, dataset)
            job = await lane.run(lambda: services.rooms.jobs.submit(new, idempotency_key, body.sha256))
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.of(job)


class _Training(NamedTuple):
    """The body of a training request: a specification and a table. `data` is the file of inline data."""

    spec: TrainSpec
    table: Dataset | ParsedTable
    data: RawFile | None


async def _read(services: Services, body: Path, data: Path) -> _Training:
    lane = services.lanes.submissions
    parts = await services.parser_for(body).split(body, data)
    dataset_id = parts.rest.pop("dataset", None)
    if (dataset_id is None) == (not parts.has_data):
        raise Invalid("Expected dataset or data, got " + ("both." if parts.has_data else "neither."))
    try:
        spec = TrainSpec.model_validate(parts.rest)
    except ValidationError as error:
        raise invalid_body(error) from error
    if dataset_id is None:
        raw = await lane.run(lambda: RawFile.of(data, "json"))
        return _Training(spec, await read(services, lane, raw), raw)
    if not isinstance(dataset_id, str):
        raise Invalid.at(("dataset",), "Expected dataset to be an id.")
    return _Training(spec, await lane.run(lambda: services.rooms.datasets.get_ready(dataset_id)), None)
