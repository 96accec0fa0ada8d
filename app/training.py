"""Where rooms and learning meet: submitting a training job, and publishing what it made."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.datasets import Dataset, Datasets, Parsed
from app.errors import Invalid, StorageFull
from app.jobs import Claim, Job, Jobs, NewJob
from app.learning.spec import Limits, Resolved, TrainSpec, resolve
from app.registry import Registry
from app.storage.blobs import Blobs
from app.storage.db import Database
from app.workers import Workers

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rooms:
    """The rooms of one process, on one database and one store."""

    database: Database
    blobs: Blobs
    datasets: Datasets
    jobs: Jobs
    registry: Registry
    workers: Workers


@dataclass(frozen=True)
class Prepared:
    """A specification settled for a table, and the table to validate on."""

    resolved: Resolved
    validation_table_key: str | None

    def job(self, model: str, dataset: Dataset) -> NewJob:
        """Give what a job is made of, once the table is a data set."""
        own = {"dataset": dataset.id, **self.resolved.document(), "columns": list(self.resolved.columns)}
        return NewJob(model, dataset.id, dataset.table_key, self.validation_table_key, own, self.resolved.warnings)


def prepare(rooms: Rooms, table: Dataset | Parsed, spec: TrainSpec, limits: Limits) -> Prepared:
    """Settle a specification for a table; what cannot train is refused here, before anything is stored.

    Raises:
        Invalid, TooLarge: the specification or the data cannot be used; says which and why.
        NotFound: there is no such validation data set.
    """
    resolved = resolve(spec, table.columns, table.rows, table.default_target, limits)
    validation_key = None
    if resolved.spec.validation is not None and resolved.spec.validation.dataset is not None:
        other = rooms.datasets.get(resolved.spec.validation.dataset)
        names = {column["name"] for column in other.columns}
        missing = [name for name in (str(resolved.spec.target), *resolved.columns) if name not in names]
        if missing:
            raise Invalid.at(("validation", "dataset"), f"Data set {other.id} has no column {missing[0]!r}.")
        validation_key = other.table_key
    return Prepared(resolved, validation_key)


def publish(rooms: Rooms, job: Job, claim: Claim, folder: Path, done: dict[str, Any]) -> None:
    """Store a version's files, then add the version and end its job in one transaction.

    Where the claim is void by then nothing is added, and the files go.

    Raises:
        StorageFull: the disk is; nothing was added.
    """
    dataset = rooms.datasets.get(job.dataset_id)
    source = {"id": dataset.id, "sha256": dataset.sha256, "rows": dataset.rows}
    document = {**done["document"], "dataset": source, "tags": job.spec["tags"]}
    key = rooms.registry.store(folder)
    try:
        with rooms.database.write() as connection:
            is_held = rooms.jobs.hold(connection, claim)
            if is_held:
                version = rooms.registry.add(connection, job.model, job.id, key, done["sha256"], document)
                rooms.jobs.succeed(connection, claim, version, done["metrics"])
    except StorageFull:
        # the row was rolled back; what the files take is needed to say so
        rooms.registry.discard(key)
        raise
    if not is_held:
        rooms.registry.discard(key)
        logger.info("publish refused", extra={"job_id": job.id})
        return
    logger.info("version published", extra={"job_id": job.id, "model": job.model, "version": version})
