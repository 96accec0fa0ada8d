"""Routes of jobs: submit, watch, cancel, resume."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.sse import EventSourceResponse, format_sse_event
from pydantic import ValidationError

from app.api.datasets import keep, read
from app.api.deps import After, Limit, ModelName, ServicesDep, negotiate, require_json
from app.api.error_handlers import invalid
from app.api.openapi import documented
from app.api.request_body import spool, staging
from app.api.schemas import DryRun, EventPage, JobOut, JobPage
from app.errors import Invalid, Overloaded
from app.jobs.submit import describe_dry_run, prepare
from app.learning.spec import TrainSpec
from app.names import id_of
from app.records.datasets import Dataset, Parsed
from app.records.jobs import Job
from app.wiring import Services, job_limits

router = APIRouter(prefix="/api/v1", tags=["Jobs"])

JSON = "application/json"
MAX_WAIT_SECONDS = 60
PING_SECONDS = 15.0
#: a stream ends after this long; clients come back with Last-Event-ID
STREAM_SECONDS = 15 * 60.0
_BATCH = 500

Id = Annotated[
    str,
    PathParameter(
        pattern=f"^{id_of('job')}$", description="A job's id.", examples=["job_0193a5c2f1b07d2c9f1e3a5b7c9d"]
    ),
]
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]

_SPEC = {"$ref": "#/components/schemas/TrainSpec"}
TRAIN_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "allOf": [
                    _SPEC,
                    {
                        "type": "object",
                        "properties": {
                            "dataset": {"type": "string", "description": "Id of a data set."},
                            "data": {"type": "object", "description": "Or the data itself, in a JSON form."},
                        },
                    },
                ]
            },
            "examples": {
                "automatic": {
                    "summary": "Inline data, everything automatic",
                    "value": {
                        "data": {
                            "columns": {
                                "length": [181, 186, 195, 217, 215, 222, 193, 210, 190, 219],
                                "weight": [3750, 3800, 3250, 5200, 5700, 5400, 3450, 4500, 3650, 5850],
                                "species": [*("Adelie",) * 3, *("Gentoo",) * 3, *("Adelie", "Gentoo") * 2],
                            }
                        },
                        "target": "species",
                    },
                },
                "tutorial": {
                    "summary": "The tutorial's network on a matrix, nothing in between",
                    "value": {
                        "data": {"x": [[0.0, 0.1], [1.0, 0.9], [0.1, 0.0], [0.9, 1.0]], "y": [0, 1, 0, 1]},
                        "features": {"scaling": "none", "encoding": "plain"},
                        "validation": None,
                        "network": {"layers": [{"units": 64, "activation": "relu"}]},
                        "optimizer": {"learning_rate": 0.01, "momentum": 0.0},
                        "fit": {"epochs": 10, "batch_size": 32},
                    },
                },
            },
        }
    },
}


@router.post(
    "/models/{name}/train",
    status_code=202,
    response_model=JobOut,
    summary="Train a model",
    tags=["Models"],
    responses=documented(
        *(400, 404, 408, 409, 413, 415, 422, 429, 507),
        ok={"model": DryRun, "description": "With `dry_run`: what the job would be."},
    ),
    openapi_extra={"requestBody": TRAIN_BODY},
)
async def train(
    name: ModelName,
    request: Request,
    response: Response,
    services: ServicesDep,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=255, description="The same key and body give the same job for 24 hours."),
    ] = None,
    dry_run: Annotated[bool, Query(description="Only tell what the job would be; nothing is stored.")] = False,
) -> Any:
    """Queue a training job on a data set, or on data in the body; it becomes the model's next version.

    Every hyper-parameter is a value or `"auto"`; the job shows the resolved one. `dry_run` answers 200 with the
    resolved specification, the columns and classes, what looks odd, and an estimate of time and memory.
    """
    require_json(request)
    lane = services.lanes.submissions
    async with lane.place():
        with staging(services) as folder:
            body = folder / "body"
            await spool(request, body, services.settings.json_bytes)
            digest = await lane.run(lambda: _digest(name, body))
            job = None
            if idempotency_key is not None and not dry_run:
                job = await lane.run(lambda: services.rooms.jobs.find_submitted(idempotency_key, digest))
            if job is None or dry_run:
                data = folder / "data"
                spec, table = await _read(services, body, data)
                prepared = await lane.run(lambda: prepare(services.rooms, table, spec, job_limits(services.settings)))
                if dry_run:
                    told = await lane.run(lambda: describe_dry_run(services.rooms, table, prepared))
                    return Response(DryRun.model_validate(told).model_dump_json(by_alias=True), media_type=JSON)
                await lane.run(services.rooms.jobs.check_queue)
                dataset, _ = await keep(services, lane, table, data, "json", None)
                new = prepared.job(name, dataset)
                job = await lane.run(lambda: services.rooms.jobs.submit(new, idempotency_key, digest))
    response.headers["Location"] = f"/api/v1/jobs/{job.id}"
    return JobOut.of(job)


def _digest(name: str, body: Path) -> str:
    return hashlib.sha256(name.encode() + b"\n" + body.read_bytes()).hexdigest()


async def _read(services: Services, body: Path, data: Path) -> tuple[TrainSpec, Dataset | Parsed]:
    reply = await services.parser_for(body).split(body, data)
    document: dict[str, Any] = reply["rest"]
    dataset_id = document.pop("dataset", None)
    if (dataset_id is None) == (not reply["has_data"]):
        raise Invalid("Expected dataset or data, got " + ("both." if reply["has_data"] else "neither."))
    try:
        spec = TrainSpec.model_validate(document)
    except ValidationError as error:
        raise invalid(error) from error
    if dataset_id is None:
        return spec, await read(services, services.lanes.submissions, data, "json")
    if not isinstance(dataset_id, str):
        raise Invalid.at(("dataset",), "Expected dataset to be an id.")
    return spec, await services.lanes.submissions.run(lambda: services.rooms.datasets.get_ready(dataset_id))


@router.get("/jobs", response_model=JobPage, summary="List jobs", responses=documented(422))
def list_jobs(
    services: ServicesDep,
    status: Annotated[Status | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str | None, Query(max_length=64, description="Only jobs of this model.")] = None,
    limit: Limit = 50,
    after: After = None,
) -> Any:
    """Give the jobs, newest first."""
    found, following = services.rooms.jobs.list(limit, after, status, model)
    return {"items": [JobOut.of(job) for job in found], "next": following}


@router.get("/jobs/{id}", response_model=JobOut, summary="Get a job", responses=documented(404, 422))
async def get_job(
    id: Id,
    services: ServicesDep,
    wait_seconds: Annotated[
        float, Query(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False, description="Wait so long for the job to end.")
    ] = 0,
) -> Any:
    """Give a job; with `wait_seconds`, when it has ended or the time is over."""
    deadline = time.monotonic() + wait_seconds
    job = await asyncio.to_thread(services.rooms.jobs.get, id)
    while not job.is_terminal and (left := deadline - time.monotonic()) > 0 and not services.is_draining:
        await services.job_waiter.wait(id, job.last_event, left)
        job = await asyncio.to_thread(services.rooms.jobs.get, id)
    return JobOut.of(job)


async def _place(request: Request, services: ServicesDep) -> AsyncIterator[bool]:
    """Take one of the places for streams if the request asks for one, until its answer has ended."""
    if negotiate(request, (JSON, "text/event-stream")) == JSON:
        yield False
        return
    if services.open_streams >= services.settings.max_streams:
        raise Overloaded(
            f"Expected at most {services.settings.max_streams} event streams, got one more; try again later."
        )
    services.open_streams += 1
    try:
        yield True
    finally:
        services.open_streams -= 1


@router.get(
    "/jobs/{id}/events",
    response_model=EventPage,
    summary="Follow a job",
    responses=documented(
        *(404, 406, 422, 429),
        ok={
            "description": "A page of events, or with `Accept: text/event-stream` a live stream of them.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
    ),
)
async def get_events(
    id: Id,
    services: ServicesDep,
    is_stream: Annotated[bool, Depends(_place)],
    limit: Limit = 50,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only events after this id.")] = 0,
    last_event_id: Annotated[int | None, Header(ge=0, le=2**31 - 1, description="Where a stream goes on.")] = None,
) -> Any:
    """Give a job's events, oldest first: as a page, or as a stream that replays and then follows them.

    The stream closes after the event that ends the job.
    """
    job = await asyncio.to_thread(services.rooms.jobs.get, id)
    if is_stream:
        seen = after if last_event_id is None else last_event_id
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return EventSourceResponse(_stream(services, job, seen), headers=headers)
    found = await asyncio.to_thread(services.rooms.jobs.events, id, after, limit + 1)
    following = str(found[limit - 1]["id"]) if len(found) > limit else None
    return {"items": found[:limit], "next": following}


async def _stream(services: Services, job: Job, seen: int) -> AsyncIterator[bytes]:
    deadline = time.monotonic() + STREAM_SECONDS
    yield format_sse_event(retry=1000, comment="events of " + job.id)
    while time.monotonic() < deadline and not services.is_draining:
        # the job first: what it has said by its end is then among the events
        states = await asyncio.to_thread(services.rooms.jobs.last_events, [job.id])
        events = await asyncio.to_thread(services.rooms.jobs.events, job.id, seen, _BATCH)
        for event in events:
            seen = event["id"]
            yield format_sse_event(id=str(seen), event=event["type"], data_str=json.dumps(event))
        last, status = states.get(job.id, (0, "gone"))
        if status not in ("queued", "running") and seen >= last:
            return
        if not events:
            await services.job_waiter.wait(job.id, seen, PING_SECONDS)
            yield format_sse_event(comment="ping")


@router.post(
    "/jobs/{id}/cancel",
    status_code=202,
    response_model=JobOut,
    summary="Cancel a job",
    responses=documented(404, 409, 422),
)
def cancel_job(id: Id, services: ServicesDep) -> Any:
    """End a queued or running job. Nothing that it does after this is kept."""
    return JobOut.of(services.rooms.jobs.cancel(id))


@router.post(
    "/jobs/{id}/resume",
    status_code=202,
    response_model=JobOut,
    summary="Resume a job",
    responses=documented(404, 409, 422),
)
def resume_job(id: Id, services: ServicesDep) -> Any:
    """Queue a failed or cancelled job again."""
    return JobOut.of(services.rooms.jobs.resume(id))


@router.delete(
    "/jobs/{id}", status_code=204, response_class=Response, summary="Delete a job", responses=documented(404, 409, 422)
)
def delete_job(id: Id, services: ServicesDep) -> None:
    """Remove an ended job's record and events; its version stays."""
    services.rooms.jobs.delete(id)
