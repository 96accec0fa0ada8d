"""How long things are kept that nobody asked to delete. Knows the rooms, and no clock of its own.

Versions, and the data sets that a version or an unfinished job came from, stay until somebody deletes them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.records.rooms import Rooms
from app.settings import Settings
from app.storage.rows import timestamp

logger = logging.getLogger(__name__)

#: what a sweep removes of each kind at most, so that it never holds up the rest for long
BATCH = 500


@dataclass(frozen=True)
class Policy:
    """Ages in days after which things go; None keeps them.

    Args:
        datasets: those that no version and no unfinished job came from, by their upload.
        events: of jobs that have ended, by the end; the job's own record stays.
        jobs: records of jobs that have ended, with their events.
        engine: the durable queue's own rows of jobs that have ended.
        checkpoints: of jobs that failed or were cancelled, by the end; those of other jobs that have ended go at once.
    """

    datasets: float | None
    events: float | None
    jobs: float | None
    engine: float | None
    checkpoints: float | None

    @classmethod
    def of(cls, settings: Settings) -> Policy:
        """Read the policy from the settings, where 0 keeps for ever."""
        return cls(
            datasets=settings.keep_unused_datasets_days or None,
            events=settings.keep_events_days or None,
            jobs=settings.keep_jobs_days or None,
            engine=settings.keep_engine_days or None,
            checkpoints=settings.keep_checkpoints_days or None,
        )


def sweep(rooms: Rooms, policy: Policy, moment: datetime) -> dict[str, int]:
    """Remove what is older than the policy keeps it; gives how much of each went."""
    removed = {"jobs": 0, "events": 0, "engine": 0, "datasets": 0, "checkpoints": 0}
    if policy.jobs is not None:
        removed["jobs"] = rooms.job_sweep.delete_jobs(timestamp(moment - timedelta(days=policy.jobs)), BATCH)
    if policy.events is not None:
        removed["events"] = rooms.job_sweep.delete_events(timestamp(moment - timedelta(days=policy.events)), BATCH)
    if policy.engine is not None:
        removed["engine"] = rooms.job_sweep.delete_queue_rows(moment - timedelta(days=policy.engine), BATCH)
    if policy.datasets is not None:
        removed["datasets"] = rooms.datasets.delete_unused(
            timestamp(moment - timedelta(days=policy.datasets)), rooms.jobs, BATCH
        )
    # their jobs were there before they were
    kept = rooms.checkpoints.job_ids()
    since = "" if policy.checkpoints is None else timestamp(moment - timedelta(days=policy.checkpoints))
    removed["checkpoints"] = rooms.checkpoints.forget_all(kept - rooms.job_sweep.unfinished(since))
    rooms.datasets.sweep(rooms.jobs)
    if any(removed.values()):
        logger.info("swept", extra=removed)
    return removed
