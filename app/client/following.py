"""Following a job to its end, through lost connections and restarts of the service."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from .connection import Connection, path_of
from .errors import ConnectionFailed, JobCancelled, JobFailed, Overloaded, TimedOut
from .records import Document, Job

#: pause between two questions about a state
POLL_SECONDS = 0.5
#: without a time limit, the longest time without the service
UNREACHABLE_SECONDS = 300.0


def follow(
    connection: Connection, job_id: str, on_event: Callable[[Document], object] | None, timeout: float | None
) -> Job:
    """Call `on_event` with each event of a job, once and in order, and return the job when it has succeeded.

    Raises:
        JobFailed, JobCancelled: the job ended so.
        TimedOut: the job did not end within `timeout` seconds.
        ConnectionFailed, Overloaded: without `timeout`, the service did not answer for `UNREACHABLE_SECONDS`.
    """
    path, last_id, reached = path_of("jobs", job_id, "events"), 0, time.monotonic()
    deadline = reached + (math.inf if timeout is None else timeout)

    def pass_on(events: Iterable[Document]) -> None:
        nonlocal last_id
        for event in events:
            last_id = event["id"]
            if on_event is not None:
                on_event(event)

    while True:
        try:
            # where too many streams are open, the job's own state still says whether it has ended
            with suppress(Overloaded):
                pass_on(connection.events(path, last_id, deadline))
            job, reached = Job.from_document(connection.call("GET", path_of("jobs", job_id))), time.monotonic()
            if job.is_terminal:
                # events that came after the stream had broken off
                pass_on(connection.pages(path, after=last_id))
                return _succeeded(job)
        except (ConnectionFailed, Overloaded):
            if timeout is None and time.monotonic() - reached > UNREACHABLE_SECONDS:
                raise
        if time.monotonic() >= deadline:
            raise TimedOut(f"job {job_id} did not end within {timeout:g} seconds; it goes on")
        time.sleep(min(POLL_SECONDS, max(deadline - time.monotonic(), 0.0)))


def _succeeded(job: Job) -> Job:
    if job.status == "failed":
        raise JobFailed(job)
    if job.status == "cancelled":
        raise JobCancelled(job)
    return job
