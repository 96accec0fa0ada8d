"""What a sweep does about jobs: fail those that the queue has lost, and delete what is older than it is to be kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from app.records.job import JobError, job_id_of
from app.records.job_rows import delete_jobs, fail, is_due, read_job
from app.records.job_status import ACTIVE, RESUMABLE
from app.storage.database import Database
from app.storage.job_queue import JobQueue
from app.storage.tables import events, jobs

logger = logging.getLogger(__name__)

_LOST: JobError = {
    "code": "internal",
    "message": "The queue could not read its own rows of this job, so that no worker took it up; "
    "resume it to queue it again.",
    "param": None,
}


class JobSweep:
    """Looks after jobs on the one database and queue of a service.

    Each method that deletes takes a bound, so that none of them holds the database for long.
    """

    def __init__(self, database: Database, queue: JobQueue) -> None:
        self._database, self._queue = database, queue

    def fail_lost(self) -> Sequence[str]:
        """Fail the queued and running jobs whose work the queue has ended by itself, and return their ids.

        The queue does so where it cannot read the rows of the work. No worker would take such a job up again.
        """
        query = sa.select(jobs.c.workflow_id, jobs.c.id).where(jobs.c.status.in_(ACTIVE))
        with self._database.read() as connection:
            active = {row.workflow_id: row.id for row in connection.execute(query)}
            ended = self._queue.ended_of(connection, list(active))
        failed = []
        for workflow_id in ended:
            job_id = active[workflow_id]
            with self._database.write() as connection:
                if fail(connection, job_id, is_due(workflow_id), _LOST):
                    failed.append(job_id)
                    logger.warning("job lost by the queue", extra={"job_id": job_id})
        return failed

    def delete_jobs(self, ended_before: str, limit: int) -> int:
        """Delete the records, events and queue rows of at most `limit` jobs; return how many. Their versions stay."""
        query = sa.select(jobs).where(jobs.c.status.not_in(ACTIVE), jobs.c.finished_at < ended_before)
        with self._database.write() as connection:
            rows = connection.execute(query.order_by(jobs.c.id).limit(limit)).mappings().all()
            old = [read_job(connection, row) for row in rows]
            delete_jobs(connection, [job.id for job in old])
        self._queue.delete([workflow_id for job in old for workflow_id in job.workflow_ids])
        return len(old)

    def delete_events(self, ended_before: str, limit: int) -> int:
        """Delete the events, except the last one, of at most `limit` jobs; return how many events."""
        has_more = sa.select(events.c.id).where(events.c.job_id == jobs.c.id, events.c.id < jobs.c.last_event).exists()
        old = sa.select(jobs.c.id, jobs.c.last_event).where(
            jobs.c.status.not_in(ACTIVE), jobs.c.finished_at < ended_before, has_more
        )
        deleted = 0
        with self._database.write() as connection:
            for job in connection.execute(old.limit(limit)).all():
                earlier = sa.delete(events).where(events.c.job_id == job.id, events.c.id < job.last_event)
                deleted += connection.execute(earlier).rowcount
        return deleted

    def delete_queue_rows(self, enqueued_before: datetime, limit: int) -> int:
        """Delete the queue's rows of at most `limit` pieces of work that have ended; return how many.

        The rows of a job that is queued or running stay.
        """
        with self._database.read() as connection:
            old = self._queue.ended(connection, enqueued_before, limit)
            job_ids = {workflow_id: job_id_of(workflow_id) for workflow_id in old}
            query = sa.select(jobs.c.id).where(jobs.c.id.in_(set(job_ids.values())), jobs.c.status.in_(ACTIVE))
            active = set(connection.execute(query).scalars())
        ended = [workflow_id for workflow_id, job_id in job_ids.items() if job_id not in active]
        self._queue.delete(ended)
        return len(ended)

    def unfinished(self, since: str) -> set[str]:
        """Return the ids of jobs that are queued or running, or that failed or were cancelled since a time."""
        may_be_resumed = jobs.c.status.in_(RESUMABLE) & (jobs.c.finished_at >= since)
        query = sa.select(jobs.c.id).where(jobs.c.status.in_(ACTIVE) | may_be_resumed)
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())
