"""Jobs: their records, their events, and who may write them. Knows nothing of how a job is carried out.

A worker writes through a `Claim`. Its token is the fence: once a job was cancelled, or claimed again, what an
older claim reports is refused.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.errors import Conflict, NotFound, Overloaded
from app.names import new_id
from app.records.job_report import JobReport
from app.records.job_status import ACTIVE
from app.storage.database import Database
from app.storage.job_queue import JobQueue
from app.storage.rows import now, page
from app.storage.tables import datasets, events, idempotency_keys, jobs

logger = logging.getLogger(__name__)

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]
MAX_CRASHES = 3
IDEMPOTENCY_SECONDS = 24 * 3600
_LOST = "The queue could not read its own rows of this job, so that no worker took it up; resume it to queue it again."


@dataclass(frozen=True)
class NewJob:
    """What a job is made of: a model's name, the table as it was at submission, a resolved specification."""

    model: str
    dataset_id: str
    table_key: str
    validation_table_key: str | None
    spec: dict[str, Any]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Claim:
    """The right to write one job's progress and outcome, until it is cancelled or claimed again."""

    job_id: str
    token: str


@dataclass(frozen=True)
class Job:
    """A job as it was when it was read."""

    id: str
    kind: str
    model: str
    status: Status
    workflow_id: str
    queue_position: int | None
    attempt: int
    device: str | None
    loop: str | None
    dataset_id: str
    table_key: str
    validation_table_key: str | None
    spec: dict[str, Any]
    progress: dict[str, Any]
    metrics: dict[str, Any]
    version: int | None
    error: dict[str, Any] | None
    last_event: int
    created_at: str
    started_at: str | None
    finished_at: str | None

    @property
    def is_terminal(self) -> bool:
        """Whether nothing will change any more, but for a resume."""
        return self.status not in ACTIVE


class Jobs:
    """The room of jobs."""

    def __init__(self, database: Database, queue: JobQueue, max_queued: int) -> None:
        self._database = database
        self._queue = queue
        self._max_queued = max_queued

    def submit(self, new: NewJob, idempotency_key: str | None, body_sha256: str) -> Job:
        """Store and enqueue a job in one transaction; durable on return.

        Raises:
            Conflict: the idempotency key came with another body before.
            Overloaded: the queue is full.
        """
        job_id = new_id("job")
        self._queue.open()
        with self._database.write() as connection:
            if idempotency_key is not None:
                kept = _keep_key(connection, idempotency_key, body_sha256, job_id)
                if kept != job_id:
                    return _get(connection, kept)
            if not _has_dataset(connection, new.dataset_id):
                raise NotFound("data set", new.dataset_id)
            self._check_queue(connection)
            row = {
                "id": job_id,
                "kind": "train",
                "model": new.model,
                "status": "queued",
                "workflow_id": f"{job_id}.1",
                "attempt": 0,
                "crashes": 0,
                "dataset_id": new.dataset_id,
                "table_key": new.table_key,
                "validation_table_key": new.validation_table_key,
                "spec": new.spec,
                "progress": {},
                "metrics": {},
                "last_event": 0,
                "created_at": now(),
            }
            connection.execute(sa.insert(jobs).values(row))
            warnings = [{"type": "warning", "message": message} for message in new.warnings]
            _append(connection, job_id, 0, [{"type": "status", "status": "queued"}, *warnings])
            self._queue.enqueue(connection, f"{job_id}.1", job_id)
            return _get(connection, job_id)

    def check_queue(self) -> None:
        """Open the queue, and raise `Overloaded` where it is full now; `submit` has the last word."""
        self._queue.open()
        with self._database.read() as connection:
            self._check_queue(connection)

    def _check_queue(self, connection: Connection) -> None:
        waiting = connection.execute(sa.select(sa.func.count()).where(jobs.c.status == "queued")).scalar_one()
        if waiting >= self._max_queued:
            raise Overloaded(f"Expected fewer than {self._max_queued} waiting jobs, got {waiting}; try again later.")

    def find_submitted(self, idempotency_key: str, body_sha256: str) -> Job | None:
        """Give the job that this key and body made within a day, or None; `Conflict` for another body."""
        with self._database.read() as connection:
            before = _find_key(connection, idempotency_key, body_sha256)
            return None if before is None else _get(connection, before)

    def get(self, job_id: str) -> Job:
        """Give a job, or raise `NotFound`."""
        with self._database.read() as connection:
            return _get(connection, job_id)

    def list(
        self, limit: int, after: str | None, status: str | None = None, model: str | None = None
    ) -> tuple[Sequence[Job], str | None]:
        """Give a page of jobs, newest first, and the next cursor."""
        query = sa.select(jobs)
        if status is not None:
            query = query.where(jobs.c.status == status)
        if model is not None:
            query = query.where(jobs.c.model == model)
        with self._database.read() as connection:
            rows, following = page(connection, query, jobs.c.id, limit, after)
            return [_job(connection, row) for row in rows], following

    def events(self, job_id: str, after: int, limit: int) -> Sequence[dict[str, Any]]:
        """Give a job's events with ids above `after`, oldest first."""
        query = (
            sa.select(events).where(events.c.job_id == job_id, events.c.id > after).order_by(events.c.id).limit(limit)
        )
        with self._database.read() as connection:
            rows = connection.execute(query).mappings().all()
        return [{"id": row["id"], "at": row["at"], "type": row["type"], **row["body"]} for row in rows]

    def last_events(self, job_ids: Iterable[str]) -> dict[str, tuple[int, Status]]:
        """Give the newest event id and the status of each of these jobs: what watchers poll."""
        query = sa.select(jobs.c.id, jobs.c.last_event, jobs.c.status).where(jobs.c.id.in_(list(job_ids)))
        with self._database.read() as connection:
            return {row.id: (row.last_event, row.status) for row in connection.execute(query)}

    def counts(self) -> dict[str, int]:
        """Count jobs by status."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(jobs.c.status, sa.func.count().label("n")).group_by(jobs.c.status))
            return {row.status: row.n for row in rows}

    def needs_dataset(self, connection: Connection, dataset_id: str, table_keys: Sequence[str]) -> bool:
        """Tell whether a queued or running job reads this data set."""
        reads = jobs.c.table_key.in_(table_keys) | jobs.c.validation_table_key.in_(table_keys)
        uses = (jobs.c.dataset_id == dataset_id) | reads
        query = sa.select(jobs.c.id).where(uses, jobs.c.status.in_(ACTIVE)).limit(1)
        return connection.execute(query).first() is not None

    def resumable(self, since: str) -> set[str]:
        """Give the ids of jobs that are queued or running, or that failed or were cancelled since a time."""
        ended = jobs.c.status.in_(("failed", "cancelled")) & (jobs.c.finished_at >= since)
        with self._database.read() as connection:
            return set(connection.execute(sa.select(jobs.c.id).where(jobs.c.status.in_(ACTIVE) | ended)).scalars())

    def table_keys(self, connection: Connection) -> set[str]:
        """Give the tables of every job that runs, or may be resumed: its data set is still there."""
        query = sa.select(jobs.c.table_key, jobs.c.validation_table_key).where(
            jobs.c.status != "succeeded", jobs.c.dataset_id.in_(sa.select(datasets.c.id))
        )
        return {key for row in connection.execute(query) for key in row if key is not None}

    def cancel(self, job_id: str) -> Job:
        """End a queued or running job; from here on no claim can publish.

        Raises:
            NotFound, Conflict: it has ended already.
        """
        with self._database.write() as connection:
            job = _get(connection, job_id)
            if job.is_terminal:
                raise Conflict(f"Job {job_id} is {job.status}; only a queued or running job can be cancelled.")
            _change(
                connection, job_id, [{"type": "status", "status": "cancelled"}], status="cancelled", finished_at=now()
            )
            job = _get(connection, job_id)
        # where this is not reached the worker still notices: its claim is refused
        with _told():
            self._queue.cancel(job.workflow_id)
        return job

    def resume(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again.

        Raises:
            NotFound, Conflict: it is queued or running, or it succeeded.
        """
        self._queue.open()
        with self._database.write() as connection:
            job = _get(connection, job_id)
            if job.status not in ("failed", "cancelled"):
                raise Conflict(f"Job {job_id} is {job.status}; only a failed or cancelled job can be resumed.")
            if not _has_dataset(connection, job.dataset_id):
                raise Conflict(f"The data set of job {job_id} was deleted; upload it and train again.")
            workflow_id = f"{job_id}.{_resumes(job) + 2}"
            fresh: dict[str, Any] = {
                "status": "queued",
                "workflow_id": workflow_id,
                "crashes": 0,
                "claim": None,
                "error": sa.null(),
            }
            _change(
                connection, job_id, [{"type": "status", "status": "queued"}], finished_at=None, progress={}, **fresh
            )
            self._queue.enqueue(connection, workflow_id, job_id)
            return _get(connection, job_id)

    def delete(self, job_id: str) -> None:
        """Remove a terminal job's record and events; its version stays.

        Raises:
            NotFound, Conflict: it is queued or running.
        """
        with self._database.write() as connection:
            job = _get(connection, job_id)
            if not job.is_terminal:
                raise Conflict(f"Job {job_id} is {job.status}; cancel it first.")
            _remove(connection, [job_id])
        with _told():
            self._queue.delete(_workflows(job))

    def forget(self, moment: str, limit: int) -> int:
        """Remove the records and events of at most `limit` jobs that ended before a time; their versions stay."""
        query = sa.select(jobs).where(jobs.c.status.not_in(ACTIVE), jobs.c.finished_at < moment).order_by(jobs.c.id)
        with self._database.write() as connection:
            old = [_job(connection, row) for row in connection.execute(query.limit(limit)).mappings().all()]
            _remove(connection, [job.id for job in old])
        self._queue.delete([workflow_id for job in old for workflow_id in _workflows(job)])
        return len(old)

    def forget_events(self, moment: str, limit: int) -> int:
        """Remove the events of at most `limit` jobs that ended before a time, but for each one's last."""
        has_more = sa.select(events.c.id).where(events.c.job_id == jobs.c.id, events.c.id < jobs.c.last_event).exists()
        old = sa.select(jobs.c.id, jobs.c.last_event).where(
            jobs.c.status.not_in(ACTIVE), jobs.c.finished_at < moment, has_more
        )
        removed = 0
        with self._database.write() as connection:
            for job in connection.execute(old.limit(limit)).all():
                gone = sa.delete(events).where(events.c.job_id == job.id, events.c.id < job.last_event)
                removed += connection.execute(gone).rowcount
        return removed

    def forget_engine_rows(self, moment: datetime, limit: int) -> int:
        """Remove the engine's own rows of at most `limit` pieces of work that were enqueued before a time.

        Only those go that have ended and whose job has ended, too.
        """
        with self._database.read() as connection:
            old = self._queue.ended(connection, moment, limit)
            names = {workflow_id: workflow_id.rpartition(".")[0] for workflow_id in old}
            query = sa.select(jobs.c.id).where(jobs.c.id.in_(set(names.values())), jobs.c.status.in_(ACTIVE))
            active = set(connection.execute(query).scalars())
        ended = [workflow_id for workflow_id, job_id in names.items() if job_id not in active]
        self._queue.delete(ended)
        return len(ended)

    def claim(self, job_id: str, workflow_id: str) -> Claim | None:
        """Take a job for this worker, or give None where it is no longer to be done."""
        claim = Claim(job_id, uuid.uuid4().hex)
        with self._database.write() as connection:
            is_claimed = _change(
                connection,
                job_id,
                [{"type": "status", "status": "running"}],
                _is_due(workflow_id),
                status="running",
                claim=claim.token,
                attempt=jobs.c.attempt + 1,
                progress={},
                started_at=sa.func.coalesce(jobs.c.started_at, now()),
            )
        return claim if is_claimed else None

    def report(self, claim: Claim, report: JobReport) -> bool:
        """Append a report's events and note the rest of it in the job; False, and nothing done, where the claim is void."""
        noted = {name: getattr(report, name) for name in ("progress", "metrics", "device", "loop")}
        values: dict[str, Any] = {name: value for name, value in noted.items() if value is not None}
        with self._database.write() as connection:
            if report.learning_rate is not None:
                values["spec"] = _with_rate(_get(connection, claim.job_id).spec, report.learning_rate)
            return _change(connection, claim.job_id, report.events, _holds(claim), **values)

    def is_held(self, claim: Claim) -> bool:
        """Tell whether the claim may still write."""
        with self._database.read() as connection:
            return (
                connection.execute(sa.select(jobs.c.id).where(jobs.c.id == claim.job_id, _holds(claim))).first()
                is not None
            )

    def hold(self, connection: Connection, claim: Claim) -> bool:
        """Keep a claim from being voided until the caller's transaction ends; False where it is void already."""
        query = sa.select(jobs.c.id).where(jobs.c.id == claim.job_id, _holds(claim)).with_for_update()
        return connection.execute(query).first() is not None

    def succeed(self, connection: Connection, claim: Claim, version: int, metrics: Mapping[str, Any]) -> None:
        """End a job with its version, in the transaction that holds the claim and adds the version."""
        news = [{"type": "status", "status": "succeeded", "version": version}]
        values: dict[str, Any] = {"status": "succeeded", "version": version, "metrics": dict(metrics)}
        _change(connection, claim.job_id, news, _holds(claim), finished_at=now(), **values)

    def fail(self, claim: Claim, code: str, message: str, param: str | None = None) -> bool:
        """End a job with an error; False where the claim is void."""
        with self._database.write() as connection:
            return _fail(connection, claim.job_id, _holds(claim), code, message, param)

    def fail_lost(self) -> Sequence[str]:
        """Fail the queued and running jobs whose work the engine has ended by itself, and return their ids.

        The engine does so where it cannot read the rows of the work. No worker would take such a job up again.
        """
        query = sa.select(jobs.c.workflow_id, jobs.c.id).where(jobs.c.status.in_(ACTIVE))
        with self._database.read() as connection:
            active = {row.workflow_id: row.id for row in connection.execute(query)}
            ended = self._queue.ended_of(connection, list(active))
        failed = []
        for workflow_id in ended:
            job_id = active[workflow_id]
            with self._database.write() as connection:
                if _fail(connection, job_id, _is_due(workflow_id), "internal", _LOST):
                    failed.append(job_id)
                    logger.warning("job lost by the queue", extra={"job_id": job_id})
        return failed

    def charge_crash(self, claim: Claim) -> int:
        """Count a child that died while its worker lived; gives the count so far."""
        with self._database.write() as connection:
            news = [{"type": "warning", "message": "the training process died"}]
            _change(connection, claim.job_id, news, _holds(claim), crashes=jobs.c.crashes + 1)
            return int(connection.execute(sa.select(jobs.c.crashes).where(jobs.c.id == claim.job_id)).scalar() or 0)

    def release(self, claim: Claim) -> None:
        """Put a running job back to queued: its worker is stopping, another start takes it up."""
        with self._database.write() as connection:
            news = [{"type": "status", "status": "queued"}]
            _change(connection, claim.job_id, news, _holds(claim), status="queued", claim=None, progress={})


@contextmanager
def _told() -> Iterator[None]:
    """Log that the engine could not be told of what has been committed already; a sweep makes up for it."""
    try:
        yield
    except sa.exc.SQLAlchemyError:
        logger.warning("engine not told", exc_info=True)


def _remove(connection: Connection, job_ids: Sequence[str]) -> None:
    """Remove jobs, with their events and what would find them again."""
    connection.execute(sa.delete(idempotency_keys).where(idempotency_keys.c.job_id.in_(job_ids)))
    connection.execute(sa.delete(jobs).where(jobs.c.id.in_(job_ids)))


def _workflows(job: Job) -> list[str]:
    """Give the ids of all that a job ever was to the engine."""
    return [f"{job.id}.{n}" for n in range(1, _resumes(job) + 2)]


def _resumes(job: Job) -> int:
    """Count how often a job was resumed: each time it is new work to the engine, `job_….1`, `job_….2` and so on."""
    return int(job.workflow_id.rpartition(".")[2]) - 1


def _with_rate(spec: Mapping[str, Any], rate: float) -> dict[str, Any]:
    return {**spec, "optimizer": {**spec.get("optimizer", {}), "learning_rate": rate}}


def _holds(claim: Claim) -> sa.ColumnElement[bool]:
    return (jobs.c.claim == claim.token) & (jobs.c.status == "running")


def _is_due(workflow_id: str) -> sa.ColumnElement[bool]:
    return (jobs.c.workflow_id == workflow_id) & jobs.c.status.in_(ACTIVE)


def _fail(
    connection: Connection,
    job_id: str,
    where: sa.ColumnElement[bool],
    code: str,
    message: str,
    param: str | None = None,
) -> bool:
    """End a job with an error; False, and nothing done, where the condition does not hold."""
    error = {"code": code, "message": message[:2000], "param": param}
    news = [{"type": "status", "status": "failed", "error": error}]
    return _change(connection, job_id, news, where, status="failed", error=error, finished_at=now())


def _change(
    connection: Connection,
    job_id: str,
    news: Sequence[Mapping[str, Any]],
    where: sa.ColumnElement[bool] | None = None,
    **values: Any,
) -> bool:
    """Update a job and append its events; False, and nothing done, where the condition does not hold."""
    query = sa.update(jobs).where(jobs.c.id == job_id).values(last_event=jobs.c.last_event + len(news), **values)
    if where is not None:
        query = query.where(where)
    last = connection.execute(query.returning(jobs.c.last_event)).scalar()
    if last is None:
        return False
    _insert_events(connection, job_id, last - len(news), news)
    return True


def _append(connection: Connection, job_id: str, after: int, news: Sequence[Mapping[str, Any]]) -> None:
    connection.execute(sa.update(jobs).where(jobs.c.id == job_id).values(last_event=after + len(news)))
    _insert_events(connection, job_id, after, news)


def _insert_events(connection: Connection, job_id: str, after: int, news: Sequence[Mapping[str, Any]]) -> None:
    at = now()
    rows = [
        {
            "job_id": job_id,
            "id": after + i,
            "at": at,
            "type": event["type"],
            "body": {k: v for k, v in event.items() if k != "type"},
        }
        for i, event in enumerate(news, 1)
    ]
    if rows:
        connection.execute(sa.insert(events), rows)


def _has_dataset(connection: Connection, dataset_id: str) -> bool:
    return connection.execute(sa.select(datasets.c.id).where(datasets.c.id == dataset_id)).first() is not None


def _get(connection: Connection, job_id: str) -> Job:
    row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).mappings().first()
    if row is None:
        raise NotFound("job", job_id)
    return _job(connection, row)


def _job(connection: Connection, row: Mapping[Any, Any]) -> Job:
    position = None
    if row["status"] == "queued":
        ahead = sa.select(sa.func.count()).where(jobs.c.status == "queued", jobs.c.id < row["id"])
        position = int(connection.execute(ahead).scalar_one()) + 1
    left_out = ("claim", "crashes")
    return Job(queue_position=position, **{k: v for k, v in row.items() if k not in left_out})


def _find_key(connection: Connection, key: str, body_sha256: str) -> str | None:
    query = sa.select(idempotency_keys).where(idempotency_keys.c.key_sha256 == _sha256(key))
    row = connection.execute(query).first()
    if row is None or row.created < time.time() - IDEMPOTENCY_SECONDS:
        return None
    if row.body_sha256 != body_sha256:
        raise Conflict("This Idempotency-Key was used with another request before; use a new one.")
    return str(row.job_id)


def _keep_key(connection: Connection, key: str, body_sha256: str, job_id: str) -> str:
    """Keep a key for a job; gives the job that has it, which is another one where the key came before."""
    stale = idempotency_keys.c.created < time.time() - IDEMPOTENCY_SECONDS
    connection.execute(sa.delete(idempotency_keys).where(stale))
    row = {"key_sha256": _sha256(key), "body_sha256": body_sha256, "job_id": job_id, "created": int(time.time())}
    try:
        with connection.begin_nested():
            connection.execute(sa.insert(idempotency_keys).values(row))
    except sa.exc.IntegrityError:
        return str(_find_key(connection, key, body_sha256))
    return job_id


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
