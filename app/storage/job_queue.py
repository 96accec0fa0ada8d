"""The durable queue, as the API sees it: DBOS behind four verbs. Knows job ids and nothing else of jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NoReturn

from dbos import DBOSClient, DBOSPortableJSONSerializer, WorkflowSerializationFormat
from dbos._serialization import DefaultSerializer
from sqlalchemy.engine import Connection

QUEUE = "train"
WORKFLOW = "train"
#: recovery only takes work of its own version, so this changes when the workflow's steps do
ENGINE_VERSION = "1"
APPLICATION = "fitserve"
#: the one form in which the engine's rows are written and read, by API and worker
PORTABLE = DBOSPortableJSONSerializer()
#: the engine's own words for work that nobody will take up
_ENDED = ["SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"]


def _refuse(*_: object, **__: object) -> NoReturn:
    """Raise `ValueError` where DBOS would unpickle a value."""
    raise ValueError("Expected portable JSON in the job engine's tables, got a pickle; it was not loaded.")


# DBOS reads each row in the format that the row itself names, and unpickles "py_pickle" whatever serializer it was given.
# No setting turns that off, and whoever can write a row could run code. So its one call of `pickle.loads` is replaced.
DefaultSerializer.deserialize = _refuse  # type: ignore[method-assign]


class JobQueue:
    """Enqueue and cancel work.

    Args:
        url: the database that holds the rooms' tables too, so that a row and its work commit together.
    """

    def __init__(self, url: str) -> None:
        self._client = DBOSClient(system_database_url=url, serializer=PORTABLE)

    def enqueue(self, connection: Connection, workflow_id: str, job_id: str) -> None:
        """Enqueue a job's work in the caller's transaction: both happen or neither."""
        self._client.enqueue_in_transaction(
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
        self._client.cancel_workflow(workflow_id)

    def ended_of(self, workflow_ids: Sequence[str]) -> list[str]:
        """Return which of these ids are of work that has ended."""
        if not workflow_ids:
            # an empty list would be no condition
            return []
        found = self._client.list_workflows(
            workflow_ids=list(workflow_ids), status=_ENDED, load_input=False, load_output=False
        )
        return [each.workflow_id for each in found]

    def ended(self, enqueued_before: datetime, limit: int) -> list[str]:
        """Give the ids of work that has ended, of what was enqueued before a time; oldest first."""
        found = self._client.list_workflows(
            status=_ENDED, end_time=enqueued_before.isoformat(), limit=limit, load_input=False, load_output=False
        )
        return [each.workflow_id for each in found]

    def delete(self, workflow_ids: Sequence[str]) -> None:
        """Forget work that has ended."""
        self._client.delete_workflows(list(workflow_ids))

    def close(self) -> None:
        """Close the connections."""
        self._client.destroy()
