"""What a worker writes to a job. Knows nothing of how the job is carried out.

A worker writes through a `Claim`, whose token is the fence: once the job was cancelled, or was claimed again, the
database refuses what an older claim reports.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.records.job import JobError, JobSpec
from app.records.job_report import JobReport
from app.records.job_rows import change, fail, get_job, is_due
from app.records.job_status import JobStatus
from app.storage.database import Database
from app.storage.rows import now
from app.storage.tables import jobs

#: a job whose training process died this often has failed
MAX_CRASHES = 3


@dataclass(frozen=True)
class Claim:
    """The right to write one job's progress and outcome, until the job is cancelled or claimed again."""

    job_id: str
    token: str


class Claims:
    """The room of claims."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, job_id: str, workflow_id: str) -> Claim | None:
        """Claim a job for this worker; return None where the job is no longer to be done."""
        claim = Claim(job_id, uuid.uuid4().hex)
        with self._database.write() as connection:
            is_claimed = change(
                connection,
                job_id,
                [{"type": "status", "status": JobStatus.RUNNING}],
                is_due(workflow_id),
                status=JobStatus.RUNNING,
                claim=claim.token,
                attempt=jobs.c.attempt + 1,
                progress={},
                started_at=sa.func.coalesce(jobs.c.started_at, now()),
            )
        return claim if is_claimed else None

    def is_held(self, claim: Claim) -> bool:
        """Return whether the claim may still write."""
        query = sa.select(jobs.c.id).where(jobs.c.id == claim.job_id, _is_holder(claim))
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def hold(self, connection: Connection, claim: Claim) -> bool:
        """Keep a claim from being voided until the caller's transaction ends; return False where it is void already."""
        query = sa.select(jobs.c.id).where(jobs.c.id == claim.job_id, _is_holder(claim)).with_for_update()
        return connection.execute(query).first() is not None

    def report(self, claim: Claim, report: JobReport) -> bool:
        """Append a report's events and write the rest of it to the job; return False, and do nothing, for a void claim."""
        values = {name: getattr(report, name) for name in ("progress", "metrics", "device", "loop")}
        values = {name: value for name, value in values.items() if value is not None}
        with self._database.write() as connection:
            if report.learning_rate is not None:
                values["spec"] = _with_rate(get_job(connection, claim.job_id).spec, report.learning_rate)
            return change(connection, claim.job_id, report.events, _is_holder(claim), **values)

    def succeed(self, connection: Connection, claim: Claim, version: int, metrics: Mapping[str, float | None]) -> None:
        """End a job with its version, in the transaction that holds the claim and adds the version."""
        status = JobStatus.SUCCEEDED
        news = [{"type": "status", "status": status, "version": version}]
        values = {"status": status, "version": version, "metrics": dict(metrics), "finished_at": now()}
        change(connection, claim.job_id, news, _is_holder(claim), **values)

    def fail(self, claim: Claim, code: str, message: str, param: str | None = None) -> bool:
        """End a job with an error; return False, and do nothing, where the claim is void.

        Args:
            code: a word of the contract's `error.code`.
            param: the part of the specification that is wrong.
        """
        error: JobError = {"code": code, "message": message, "param": param}
        with self._database.write() as connection:
            return fail(connection, claim.job_id, _is_holder(claim), error)

    def charge_crash(self, claim: Claim) -> int:
        """Count a training process that died while its worker lived; return the count so far."""
        with self._database.write() as connection:
            news = [{"type": "warning", "message": "the training process died"}]
            change(connection, claim.job_id, news, _is_holder(claim), crashes=jobs.c.crashes + 1)
            return int(connection.execute(sa.select(jobs.c.crashes).where(jobs.c.id == claim.job_id)).scalar() or 0)

    def release(self, claim: Claim) -> None:
        """Put a running job back to queued: its worker stops, and another start takes the job up."""
        status = JobStatus.QUEUED
        with self._database.write() as connection:
            news = [{"type": "status", "status": status}]
            change(connection, claim.job_id, news, _is_holder(claim), status=status, claim=None, progress={})


def _is_holder(claim: Claim) -> sa.ColumnElement[bool]:
    return (jobs.c.claim == claim.token) & (jobs.c.status == JobStatus.RUNNING)


def _with_rate(spec: JobSpec, rate: float) -> JobSpec:
    return {**spec, "optimizer": {**spec.get("optimizer", {}), "learning_rate": rate}}
