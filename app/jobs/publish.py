"""Publishing what a training job made: the files, the version and the job's outcome, all or none of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

from app.errors import StorageFull
from app.jobs.messages import Done
from app.records.claims import Claim
from app.records.job import Job
from app.records.rooms import Rooms
from app.records.version import VersionDocument

logger = logging.getLogger(__name__)


def publish(rooms: Rooms, job: Job, claim: Claim, folder: Path, done: Done) -> None:
    """Store a version's files, then add the version and end its job in one transaction.

    Where the claim is void by then, no version is added, and the files are removed.

    Args:
        folder: with the version's files; it is moved away.

    Raises:
        StorageFull: no version was added.
    """
    dataset = rooms.datasets.get(job.dataset_id)
    source = {"id": dataset.id, "sha256": dataset.sha256, "rows": dataset.rows}
    document = cast(VersionDocument, {**vars(done.version), "dataset": source, "tags": job.spec["tags"]})
    key = rooms.registry.store(folder)
    try:
        with rooms.database.write() as connection:
            is_held = rooms.claims.hold(connection, claim)
            if is_held:
                version = rooms.registry.add(connection, job.model, job.id, key, done.sha256, document)
                rooms.claims.succeed(connection, claim, version, done.metrics)
    except StorageFull:
        # the row was rolled back; the room that the files take is needed to write that the job failed
        rooms.registry.discard(key)
        raise
    if not is_held:
        rooms.registry.discard(key)
        logger.info("publish refused", extra={"job_id": job.id})
        return
    rooms.checkpoints.delete(job.id)
    logger.info("version published", extra={"job_id": job.id, "model": job.model, "version": version})
