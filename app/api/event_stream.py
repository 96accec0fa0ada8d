"""A job's events as a live stream of server-sent events, which takes one of the places for streams."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.sse import format_sse_event

from app.api.deps import ServicesDep, negotiate
from app.errors import Overloaded
from app.http.media_types import EVENT_STREAM, JSON
from app.records.job import Job
from app.records.job_status import ACTIVE
from app.wiring import Services

#: between two comments that keep an idle connection open
PING_SECONDS = 15.0
#: the longest life of a stream; clients reconnect with Last-Event-ID
STREAM_SECONDS = 15 * 60.0
#: events that are read from the database at once
_BATCH = 500


async def stream_place(request: Request, services: ServicesDep) -> AsyncIterator[bool]:
    """Yield whether the request asks for a stream; if so, hold one of the places for streams until the answer has ended."""
    if negotiate(request, (JSON, EVENT_STREAM)) == JSON:
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


async def stream_events(services: Services, job: Job, last_seen: int) -> AsyncIterator[bytes]:
    """Yield a job's events after the id `last_seen`, then new ones as they come, until the job has ended."""
    deadline = time.monotonic() + STREAM_SECONDS
    yield format_sse_event(retry=1000, comment="events of " + job.id)
    while time.monotonic() < deadline and not services.is_draining:
        # the job's state is read before its events: all events of a job that has ended are then among them
        states = await asyncio.to_thread(services.rooms.jobs.last_events, [job.id])
        events = await asyncio.to_thread(services.rooms.jobs.events, job.id, last_seen, _BATCH)
        for event in events:
            last_seen = event.id
            yield format_sse_event(id=str(last_seen), event=event.type, data_str=json.dumps(event.document()))
        last, status = states.get(job.id, (0, "gone"))
        if status not in ACTIVE and last_seen >= last:
            return
        if not events:
            await services.job_waiter.wait(job.id, last_seen, PING_SECONDS)
            yield format_sse_event(comment="ping")
