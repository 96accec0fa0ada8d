"""How long records are kept that nobody deleted. Knows the rooms, and neither the settings nor a clock.

Versions, and the data sets that a version or an unfinished job came from, stay until somebody deletes them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta

from app.records.rooms import Rooms
from app.storage.rows import timestamp

logger = logging.getLogger(__name__)

#: most records of each kind that one sweep deletes, so that it keeps nobody waiting for long
BATCH = 500


@dataclass(frozen=True)
class Policy:
    """Ages in days after which records are deleted; None keeps them.

    Args:
        datasets: data sets that no version and no unfinished job came from, by their upload.
        events: events of jobs that have ended, by the end; the job's own record stays.
        jobs: records of jobs that have ended, with their events.
        engine: the queue's own rows of jobs that have ended, by their submission.
        checkpoints: checkpoints of jobs that failed or were cancelled, by the end. Those of jobs that succeeded are
            deleted at once.
    """

    datasets: float | None
    events: float | None
    jobs: float | None
    engine: float | None
    checkpoints: float | None


def sweep(rooms: Rooms, policy: Policy, moment: datetime) -> dict[str, int]:
    """Delete what is older at a moment than the policy keeps it; return how much of each kind."""
    deleted = {"jobs": 0, "events": 0, "engine": 0, "datasets": 0, "checkpoints": 0}
    if policy.jobs is not None:
        deleted["jobs"] = rooms.job_sweep.delete_jobs(_before(moment, policy.jobs), BATCH)
    if policy.events is not None:
        deleted["events"] = rooms.job_sweep.delete_events(_before(moment, policy.events), BATCH)
    if policy.engine is not None:
        deleted["engine"] = rooms.job_sweep.delete_queue_rows(moment - timedelta(days=policy.engine), BATCH)
    if policy.datasets is not None:
        deleted["datasets"] = rooms.datasets.delete_unused(_before(moment, policy.datasets), rooms.jobs, BATCH)
    # checkpoints are listed before jobs: every listed checkpoint then has its job's row
    with_checkpoints = rooms.checkpoints.job_ids()
    since = "" if policy.checkpoints is None else _before(moment, policy.checkpoints)
    deleted["checkpoints"] = rooms.checkpoints.delete_all(with_checkpoints - rooms.job_sweep.unfinished(since))
    rooms.datasets.sweep(rooms.jobs)
    if any(deleted.values()):
        logger.info("swept", extra=deleted)
    return deleted


def _before(moment: datetime, days: float) -> str:
    return timestamp(moment - timedelta(days=days))
