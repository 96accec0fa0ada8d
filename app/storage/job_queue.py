"""The durable queue, as the API sees it: DBOS behind a few verbs. Knows job ids and nothing else of jobs."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.engine import Connection

if TYPE_CHECKING:
    from app.storage.job_engine import DBOSClient

#: DBOS's states of work that no worker will take up
_ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")


class JobQueue:
    """Enqueues and cancels the work of jobs, and looks for work that has ended.

    Work has an id, which DBOS calls a workflow's. DBOS is imported by the first call that writes to its tables.

    Args:
        url: the address of the database that holds the records, too: a job's row and its work commit together.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        schema = None if url.startswith("sqlite") else "dbos"
        #: https://docs.dbos.dev/explanations/system-tables
        self._work = sa.table(
            "workflow_status",
            sa.column("workflow_uuid", sa.Text),
            sa.column("status", sa.Text),
            sa.column("created_at", sa.BigInteger),
            schema=schema,
        )
        self._opened: DBOSClient | None = None
        self._opening = threading.Lock()

    def open(self) -> DBOSClient:
        """Return the client of DBOS. The first call imports DBOS: make it outside of a transaction and off the event loop."""
        with self._opening:
            if self._opened is None:
                from app.storage.job_engine import PORTABLE, DBOSClient

                # lazy: the caller has just spoken to the database, or is about to
                self._opened = DBOSClient(system_database_url=self._url, serializer=PORTABLE, lazy=True)
                # the 36,000 objects of the import stay; each search for garbage among them would keep requests waiting
                gc.freeze()
            return self._opened

    def enqueue(self, connection: Connection, workflow_id: str, job_id: str) -> None:
        """Enqueue a job's work in the caller's transaction: the work is there if the transaction commits."""
        from app.storage.job_engine import ENGINE_VERSION, QUEUE, WORKFLOW, WorkflowSerializationFormat

        self.open().enqueue_in_transaction(
            connection,
            {
                "workflow_name": WORKFLOW,
                "queue_name": QUEUE,
                "workflow_id": workflow_id,
                "app_version": ENGINE_VERSION,
                "serialization_type": WorkflowSerializationFormat.PORTABLE,
            },
            job_id,
            workflow_id,
        )

    def cancel(self, workflow_id: str) -> None:
        """Take work off the queue, or have its worker drop it."""
        self.open().cancel_workflow(workflow_id)

    def delete(self, workflow_ids: Sequence[str]) -> None:
        """Delete the rows of work that has ended."""
        if workflow_ids:
            self.open().delete_workflows(list(workflow_ids))

    def ended_of(self, connection: Connection, workflow_ids: Sequence[str]) -> Sequence[str]:
        """Return those of these ids whose work has ended."""
        work = self._work.c
        query = sa.select(work.workflow_uuid).where(work.workflow_uuid.in_(workflow_ids), work.status.in_(_ENDED))
        return connection.execute(query).scalars().all()

    def ended(self, connection: Connection, enqueued_before: datetime, limit: int) -> Sequence[str]:
        """Return the ids of at most `limit` pieces of work that were enqueued before a time and have ended, oldest first."""
        work = self._work.c
        milliseconds = int(enqueued_before.timestamp() * 1000)
        query = sa.select(work.workflow_uuid).where(work.created_at <= milliseconds, work.status.in_(_ENDED))
        return connection.execute(query.order_by(work.created_at).limit(limit)).scalars().all()

    def close(self) -> None:
        """Close the connections."""
        with self._opening:
            if self._opened is not None:
                self._opened.destroy()
