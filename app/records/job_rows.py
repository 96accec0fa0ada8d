"""The rows of jobs and of their events: read, and changed where a condition still holds. Knows no rules of a job's life."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection, RowMapping

from app.errors import NotFound
from app.records.job import Job, JobError, JobEvent
from app.records.job_status import ACTIVE, JobStatus
from app.storage.rows import now
from app.storage.tables import events, idempotency_keys, jobs

#: columns of a row that a `Job` leaves out
_INTERNAL = ("claim", "crashes")


def get_job(connection: Connection, job_id: str) -> Job:
    """Return a job, or raise `NotFound`."""
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
    if row is None:
        raise NotFound("job", job_id)
    return read_job(connection, row)


def read_job(connection: Connection, row: RowMapping) -> Job:
    """Return the job of a row."""
    status = JobStatus(row["status"])
    position = None
    if status == JobStatus.QUEUED:
        ahead = sa.select(sa.func.count()).where(jobs.c.status == JobStatus.QUEUED, jobs.c.id < row["id"])
        position = int(connection.execute(ahead).scalar_one()) + 1
    fields = {name: value for name, value in row.items() if name not in _INTERNAL}
    return Job(**{**fields, "status": status}, queue_position=position)


def list_events(connection: Connection, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
    """Return at most `limit` of a job's events with ids above `after`, oldest first."""
    query = sa.select(events).where(events.c.job_id == job_id, events.c.id > after).order_by(events.c.id).limit(limit)
    return [JobEvent(row.id, row.at, row.type, row.body) for row in connection.execute(query)]


def is_due(workflow_id: str) -> sa.ColumnElement[bool]:
    """Return the condition that a job is queued or running, and that this work is its present one."""
    return (jobs.c.workflow_id == workflow_id) & jobs.c.status.in_(ACTIVE)


def change(
    connection: Connection,
    job_id: str,
    news: Sequence[Mapping[str, object]],
    where: sa.ColumnElement[bool] | None = None,
    **values: object,
) -> bool:
    """Update a job and append events; return False, and do nothing, where the condition does not hold.

    Args:
        news: the events, each with its `type`.
        where: the condition; None is always true.
        values: by column.
    """
    query = sa.update(jobs).where(jobs.c.id == job_id).values(last_event=jobs.c.last_event + len(news), **values)
    if where is not None:
        query = query.where(where)
    last = connection.execute(query.returning(jobs.c.last_event)).scalar()
    if last is None:
        return False
    add_events(connection, job_id, last - len(news), news)
    return True


def add_events(connection: Connection, job_id: str, after: int, news: Sequence[Mapping[str, object]]) -> None:
    """Insert events behind the one with the id `after`."""
    at = now()
    rows = [
        {
            "job_id": job_id,
            "id": number,
            "at": at,
            "type": event["type"],
            "body": {name: value for name, value in event.items() if name != "type"},
        }
        for number, event in enumerate(news, after + 1)
    ]
    if rows:
        connection.execute(sa.insert(events), rows)


def delete_jobs(connection: Connection, job_ids: Sequence[str]) -> None:
    """Delete jobs, their events and their idempotency keys."""
    connection.execute(sa.delete(idempotency_keys).where(idempotency_keys.c.job_id.in_(job_ids)))
    connection.execute(sa.delete(jobs).where(jobs.c.id.in_(job_ids)))


def fail(connection: Connection, job_id: str, where: sa.ColumnElement[bool], error: JobError) -> bool:
    """End a job with an error; return False, and do nothing, where the condition does not hold."""
    error = {**error, "message": error["message"][:2000]}
    news = [{"type": "status", "status": JobStatus.FAILED, "error": error}]
    return change(connection, job_id, news, where, status=JobStatus.FAILED, error=error, finished_at=now())
