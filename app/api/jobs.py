"""Routes of jobs: list, watch, cancel, resume, delete. `training` submits them."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response
from fastapi import Path as PathParameter
from fastapi.sse import EventSourceResponse

from app.api.deps import After, Limit, ServicesDep
from app.api.event_stream import stream_events, stream_place
from app.api.examples.media import TEXT, media
from app.api.openapi import documented
from app.api.schemas.jobs import EventOut, EventPage, JobOut, JobPage, Status
from app.http.media_types import EVENT_STREAM
from app.names import id_of

router = APIRouter(prefix="/api/v1", tags=["Jobs"])

MAX_WAIT_SECONDS = 60

Id = Annotated[
    str,
    PathParameter(
        pattern=f"^{id_of('job')}$", description="A job's id.", examples=["job_0193a5c2f1b07d2c9f1e3a5b7c9d"]
    ),
]


@router.get("/jobs", summary="List jobs", responses=documented(422))
def list_jobs(
    services: ServicesDep,
    status: Annotated[Status | None, Query(description="Only jobs in this state.")] = None,
    model: Annotated[str | None, Query(max_length=64, description="Only jobs of this model.")] = None,
    limit: Limit = 50,
    after: After = None,
) -> JobPage:
    """List the jobs, newest first."""
    jobs, next_page = services.rooms.jobs.list(limit, after, status, model)
    return JobPage(items=[JobOut.of(job) for job in jobs], next=next_page)


@router.get("/jobs/{id}", summary="Get a job", responses=documented(404, 422))
async def get_job(
    id: Id,
    services: ServicesDep,
    wait_seconds: Annotated[
        float,
        Query(ge=0, le=MAX_WAIT_SECONDS, allow_inf_nan=False, description="Wait at most this long for the job to end."),
    ] = 0,
) -> JobOut:
    """Return a job. With `wait_seconds` the answer comes when the job has ended, or after that time."""
    deadline = time.monotonic() + wait_seconds
    job = await asyncio.to_thread(services.rooms.jobs.get, id)
    while not job.is_terminal and (left := deadline - time.monotonic()) > 0 and not services.is_draining:
        await services.job_waiter.wait(id, job.last_event, left)
        job = await asyncio.to_thread(services.rooms.jobs.get, id)
    return JobOut.of(job)


@router.get(
    "/jobs/{id}/events",
    response_model=EventPage,
    summary="Follow a job",
    responses=documented(
        *(404, 406, 422, 429),
        ok={
            "description": "A page of events, or with `Accept: text/event-stream` a live stream of them.",
            "content": {EVENT_STREAM: media(TEXT)},
        },
    ),
)
async def get_events(
    id: Id,
    services: ServicesDep,
    is_stream: Annotated[bool, Depends(stream_place)],
    limit: Limit = 50,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only events after this id.")] = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=2**31 - 1, description="A stream begins after this id.")
    ] = None,
) -> EventPage | Response:
    """Return a job's events, oldest first: a page of them, or a stream of all events, those to come included.

    The stream ends after the event that ends the job.
    """
    job = await asyncio.to_thread(services.rooms.jobs.get, id)
    if is_stream:
        last_seen = after if last_event_id is None else last_event_id
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        return EventSourceResponse(stream_events(services, job, last_seen), headers=headers)
    events = await asyncio.to_thread(services.rooms.jobs.events, id, after, limit + 1)
    next_page = str(events[limit - 1].id) if len(events) > limit else None
    return EventPage(items=[EventOut.model_validate(event.document()) for event in events[:limit]], next=next_page)


@router.post(
    "/jobs/{id}/cancel",
    status_code=202,
    summary="Cancel a job",
    responses=documented(404, 409, 422),
)
def cancel_job(id: Id, services: ServicesDep) -> JobOut:
    """Cancel a queued or running job. Nothing that the job does after this is stored."""
    return JobOut.of(services.rooms.jobs.cancel(id))


@router.post(
    "/jobs/{id}/resume",
    status_code=202,
    summary="Resume a job",
    responses=documented(404, 409, 422),
)
def resume_job(id: Id, services: ServicesDep) -> JobOut:
    """Queue a failed or cancelled job again. Training continues after the job's last checkpoint."""
    return JobOut.of(services.rooms.jobs.resume(id))


@router.delete(
    "/jobs/{id}", status_code=204, response_class=Response, summary="Delete a job", responses=documented(404, 409, 422)
)
def delete_job(id: Id, services: ServicesDep) -> None:
    """Delete the record and the events of a job that has ended. Its version stays."""
    services.rooms.jobs.delete(id)
