"""The states of a job, as the database, the API and the metrics spell them."""

from __future__ import annotations

from enum import StrEnum


class JobStatus(StrEnum):
    """The state of a job."""

    #: waits for a worker: the job was submitted or resumed, or its worker stopped
    QUEUED = "queued"
    #: claimed by a worker, which trains it
    RUNNING = "running"
    #: ended with a version; final
    SUCCEEDED = "succeeded"
    #: ended with an error; a client may resume the job
    FAILED = "failed"
    #: ended by a client, who may resume the job
    CANCELLED = "cancelled"


#: a worker will write to a job in one of these states; in the others the job has ended
ACTIVE = (JobStatus.QUEUED, JobStatus.RUNNING)
#: a client may queue a job in one of these states again
RESUMABLE = (JobStatus.FAILED, JobStatus.CANCELLED)
