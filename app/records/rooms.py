"""All rooms of one process."""

from __future__ import annotations

from dataclasses import dataclass

from app.records.aliases import Aliases
from app.records.checkpoints import Checkpoints
from app.records.claims import Claims
from app.records.datasets import Datasets
from app.records.job_sweep import JobSweep
from app.records.jobs import Jobs
from app.records.registry import Registry
from app.records.workers import Workers
from app.storage.blobs import Blobs
from app.storage.database import Database
from app.storage.job_queue import JobQueue


@dataclass(frozen=True)
class Rooms:
    """The rooms of one process, on one database and one store."""

    database: Database
    blobs: Blobs
    queue: JobQueue
    datasets: Datasets
    jobs: Jobs
    claims: Claims
    job_sweep: JobSweep
    registry: Registry
    aliases: Aliases
    workers: Workers
    checkpoints: Checkpoints

    def close(self) -> None:
        """Close the connections of the queue and of the database."""
        self.queue.close()
        self.database.close()
