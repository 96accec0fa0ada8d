"""Where rooms and learning meet: submitting a training job, and publishing what it made."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.datasets import Dataset, Datasets
from app.errors import Invalid
from app.jobs import Claim, Job, Jobs, NewJob
from app.learning.spec import Limits, TrainSpec, resolve
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


def prepare(rooms: Rooms, model: str, dataset: Dataset, spec: TrainSpec, limits: Limits) -> NewJob:
    """Settle a specification for a data set; what cannot train is refused here, before there is a job.

    Raises:
        Invalid, TooLarge: the specification or the data cannot be used; says which and why.
        NotFound: there is no such validation data set.
    """
    resolved = resolve(spec, dataset.columns, dataset.rows, dataset.default_target, limits)
    validation_key = None
    if resolved.spec.validation is not None and resolved.spec.validation.dataset is not None:
        other = rooms.datasets.get(resolved.spec.validation.dataset)
        names = {column["name"] for column in other.columns}
        missing = [name for name in (str(resolved.spec.target), *resolved.columns) if name not in names]
        if missing:
            raise Invalid.at(("validation", "dataset"), f"Data set {other.id} has no column {missing[0]!r}.")
        validation_key = other.table_key
    document = {"dataset": dataset.id, **resolved.document(), "columns": list(resolved.columns)}
    return NewJob(model, dataset.id, dataset.table_key, validation_key, document, resolved.warnings)


def publish(rooms: Rooms, job: Job, claim: Claim, folder: Path, done: dict[str, Any]) -> None:
    """Store a version's files, then add the version and end its job in one transaction.

    Where the claim is void by then nothing is added, and the files go.
    """
    dataset = rooms.datasets.get(job.dataset_id)
    source = {"id": dataset.id, "sha256": dataset.sha256, "rows": dataset.rows}
    document = {**done["document"], "dataset": source, "tags": job.spec["tags"]}
    key = rooms.registry.store(folder)
    with rooms.database.write() as connection:
        is_held = rooms.jobs.hold(connection, claim)
        if is_held:
            version = rooms.registry.add(connection, job.model, job.id, key, done["sha256"], document)
            rooms.jobs.succeed(connection, claim, version, done["metrics"])
    if not is_held:
        rooms.registry.discard(key)
        logger.info("publish refused", extra={"job_id": job.id})
        return
    logger.info("version published", extra={"job_id": job.id, "model": job.model, "version": version})
