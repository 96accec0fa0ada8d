"""Jobs as their clients see them: submitted, listed, cancelled, resumed, deleted. Knows nothing of how a job is run.

`claims` has what a worker writes, `job_sweep` what a sweep does, and `job` the values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict, NotFound, Overloaded
from app.names import new_id
from app.records import idempotency_keys
from app.records.job import Job, JobEvent, NewJob, workflow_id_of
from app.records.job_rows import add_events, change, delete_jobs, get_job, list_events, read_job
from app.records.job_status import ACTIVE, RESUMABLE, JobStatus
from app.storage.database import Database
from app.storage.job_queue import JobQueue
from app.storage.rows import now, page
from app.storage.tables import datasets, jobs

logger = logging.getLogger(__name__)


class Jobs:
    """The room of jobs.

    Args:
        max_queued: how many jobs may wait at once.
    """

    def __init__(self, database: Database, queue: JobQueue, max_queued: int) -> None:
        self._database, self._queue, self._max_queued = database, queue, max_queued

    def check_queue(self) -> None:
        """Open the queue, and raise `Overloaded` where it is full now; `submit` has the last word."""
        self._queue.open()
        with self._database.read() as connection:
            self._check_queue(connection)

    def find_submitted(self, idempotency_key: str, body_sha256: str) -> Job | None:
        """Return the job that this key and body made within a day, or None; raise `Conflict` for another body."""
        with self._database.read() as connection:
            job_id = idempotency_keys.find_job_id(connection, idempotency_key, body_sha256)
            return None if job_id is None else get_job(connection, job_id)

    def submit(self, new: NewJob, idempotency_key: str | None, body_sha256: str) -> Job:
        """Store and enqueue a job in one transaction; durable on return.

        Returns:
            The new job, or the one that this key and body made within a day.

        Raises:
            Conflict: the idempotency key came with another body before.
            NotFound: the data set was deleted meanwhile.
            Overloaded: the queue is full.
        """
        job_id = new_id("job")
        workflow_id = workflow_id_of(job_id, 1)
        self._queue.open()
        with self._database.write() as connection:
            if idempotency_key is not None:
                kept = idempotency_keys.keep(connection, idempotency_key, body_sha256, job_id)
                if kept != job_id:
                    return get_job(connection, kept)
            if not _has_dataset(connection, new.dataset_id):
                raise NotFound("data set", new.dataset_id)
            self._check_queue(connection)
            news = [
                {"type": "status", "status": JobStatus.QUEUED},
                *({"type": "warning", "message": message} for message in new.warnings),
            ]
            row = {
                "id": job_id,
                "kind": "train",
                "model": new.model,
                "status": JobStatus.QUEUED,
                "workflow_id": workflow_id,
                "attempt": 0,
                "crashes": 0,
                "dataset_id": new.dataset_id,
                "table_key": new.table_key,
                "validation_table_key": new.validation_table_key,
                "spec": new.spec,
                "progress": {},
                "metrics": {},
                "last_event": len(news),
                "created_at": now(),
            }
            connection.execute(sa.insert(jobs).values(row))
            add_events(connection, job_id, 0, news)
            self._queue.enqueue(connection, workflow_id, job_id)
            return get_job(connection, job_id)

    def get(self, job_id: str) -> Job:
        """Return a job, or raise `NotFound`."""
        with self._database.read() as connection:
            return get_job(connection, job_id)

    def list(
        self, limit: int, after: str | None, status: str | None = None, model: str | None = None
    ) -> tuple[Sequence[Job], str | None]:
        """Return a page of jobs, newest first, and the next cursor.

        Args:
            status, model: only jobs in this state, or of this model.
        """
        query = sa.select(jobs)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if model is not None:
            query = query.where(jobs.c.model == model)
        with self._database.read() as connection:
            rows, following = page(connection, query, jobs.c.id, limit, after)
            return [read_job(connection, row) for row in rows], following

    def events(self, job_id: str, after: int, limit: int) -> Sequence[JobEvent]:
        """Return at most `limit` of a job's events with ids above `after`, oldest first."""
        with self._database.read() as connection:
            return list_events(connection, job_id, after, limit)

    def last_events(self, job_ids: Iterable[str]) -> dict[str, tuple[int, JobStatus]]:
        """Return the newest event's id and the status of each of these jobs, by the job's id; for polling."""
        query = sa.select(jobs.c.id, jobs.c.last_event, jobs.c.status).where(jobs.c.id.in_(list(job_ids)))
        with self._database.read() as connection:
            return {row.id: (row.last_event, JobStatus(row.status)) for row in connection.execute(query)}

    def counts(self) -> dict[JobStatus, int]:
        """Return how many jobs are in each state; a state without jobs is left out."""
        query = sa.select(jobs.c.status, sa.func.count().label("n")).group_by(jobs.c.status)
        with self._database.read() as connection:
            return {JobStatus(row.status): row.n for row in connection.execute(query)}

    def cancel(self, job_id: str) -> Job:
        """End a queued or running job. From here on no claim can publish.

        Raises:
            NotFound: there is no such job.
            Conflict: it has ended already.
        """
        with self._database.write() as connection:
            job = get_job(connection, job_id)
            if job.is_terminal:
                raise Conflict(f"Job {job_id} is {job.status}; only a queued or running job can be cancelled.")
            status = JobStatus.CANCELLED
            change(connection, job_id, [{"type": "status", "status": status}], status=status, finished_at=now())
            job = get_job(connection, job_id)
        try:
            self._queue.cancel(job.workflow_id)
        except sa.exc.SQLAlchemyError:
            # the worker still notices: the database refuses its claim
            logger.warning("work not cancelled in the queue", exc_info=True)
        return job

    def resume(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again.

        Raises:
            NotFound: there is no such job.
            Conflict: it is queued or running, or it succeeded, or its data set was deleted.
        """
        self._queue.open()
        with self._database.write() as connection:
            job = get_job(connection, job_id)
            if job.status not in RESUMABLE:
                raise Conflict(f"Job {job_id} is {job.status}; only a failed or cancelled job can be resumed.")
            if not _has_dataset(connection, job.dataset_id):
                raise Conflict(f"The data set of job {job_id} was deleted; upload it and train again.")
            workflow_id = workflow_id_of(job_id, len(job.workflow_ids) + 1)
            news = [{"type": "status", "status": JobStatus.QUEUED}]
            change(
                connection,
                job_id,
                news,
                status=JobStatus.QUEUED,
                workflow_id=workflow_id,
                crashes=0,
                claim=None,
                error=sa.null(),
                finished_at=None,
                progress={},
            )
            self._queue.enqueue(connection, workflow_id, job_id)
            return get_job(connection, job_id)

    def delete(self, job_id: str) -> None:
        """Delete the record and the events of a job that has ended; its version stays.

        Raises:
            NotFound: there is no such job.
            Conflict: it is queued or running.
        """
        with self._database.write() as connection:
            job = get_job(connection, job_id)
            if not job.is_terminal:
                raise Conflict(f"Job {job_id} is {job.status}; cancel it first.")
            delete_jobs(connection, [job_id])
        try:
            self._queue.delete(job.workflow_ids)
        except sa.exc.SQLAlchemyError:
            logger.warning("rows not deleted from the queue; a sweep deletes them", exc_info=True)

    def needs_dataset(self, connection: Connection, dataset_id: str, table_keys: Sequence[str]) -> bool:
        """Return whether a queued or running job reads this data set, or one of these tables."""
        reads = jobs.c.table_key.in_(table_keys) | jobs.c.validation_table_key.in_(table_keys)
        uses = (jobs.c.dataset_id == dataset_id) | reads
        query = sa.select(jobs.c.id).where(uses, jobs.c.status.in_(ACTIVE)).limit(1)
        return connection.execute(query).first() is not None

    def table_keys(self, connection: Connection) -> set[str]:
        """Return the tables of every job that is queued or running, or may be resumed: its data set is still there."""
        query = sa.select(jobs.c.table_key, jobs.c.validation_table_key).where(
            jobs.c.status != JobStatus.SUCCEEDED, jobs.c.dataset_id.in_(sa.select(datasets.c.id))
        )
        return {key for row in connection.execute(query) for key in row if key is not None}

    def _check_queue(self, connection: Connection) -> None:
        query = sa.select(sa.func.count()).where(jobs.c.status == JobStatus.QUEUED)
        waiting = connection.execute(query).scalar_one()
        if waiting >= self._max_queued:
            raise Overloaded(f"Expected fewer than {self._max_queued} waiting jobs, got {waiting}; try again later.")


def _has_dataset(connection: Connection, dataset_id: str) -> bool:
    return connection.execute(sa.select(datasets.c.id).where(datasets.c.id == dataset_id)).first() is not None
