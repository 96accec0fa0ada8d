"""One job from its claim to its outcome: attempts, until one of them ends it. Knows no queue.

How one attempt goes is in `attempt`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import ParamSpec, TypeVar

from app.errors import FitserveError, StorageFull, Unavailable, is_disk_full
from app.jobs.attempt import Attempt, AttemptInterrupted, TrainingFailed, TrainingProcessLost, make_request
from app.jobs.gpu_choice import GpuChoice
from app.jobs.training_process import WarmTrainingProcess
from app.jobs.worker_settings import WorkerSettings
from app.records.claims import MAX_CRASHES, Claim
from app.records.job import Job
from app.records.rooms import Rooms

logger = logging.getLogger(__name__)

#: between two tries to write to a database that cannot be written
RETRY_SECONDS = 1.0
P = ParamSpec("P")
T = TypeVar("T")


class JobRunner:
    """Runs jobs, each until it has an outcome or the worker stops.

    Args:
        label: of the staging folders that jobs work in.
        processes: where each attempt takes its training process from.
        stopping: set when the worker is to stop.
    """

    def __init__(
        self,
        rooms: Rooms,
        settings: WorkerSettings,
        *,
        label: str,
        gpus: GpuChoice,
        processes: WarmTrainingProcess,
        stopping: asyncio.Event,
    ) -> None:
        self._rooms, self._settings, self._label = rooms, settings, label
        self._gpus, self._processes, self._stopping = gpus, processes, stopping

    async def run(self, job_id: str, workflow_id: str) -> None:
        """Make attempts at a job until one ends it; return at once where the job is no longer to be done."""
        while not self._stopping.is_set():
            claim = await _persist(self._rooms.claims.take, job_id, workflow_id)
            if claim is None:
                return
            job = await _persist(self._rooms.jobs.get, job_id)
            logger.info("job started", extra={"job_id": job_id, "attempt": job.attempt})
            if await self._is_ended_by_attempt(job, claim):
                return

    async def _is_ended_by_attempt(self, job: Job, claim: Claim) -> bool:
        """Make one attempt and write its outcome; return False where another attempt is due."""
        claims = self._rooms.claims
        try:
            await self._attempt(job, claim)
        except asyncio.CancelledError:
            await self._release(claim)
            raise
        except AttemptInterrupted:
            await self._release(claim)
        except Unavailable:
            logger.exception("database unavailable", extra={"job_id": job.id})
            await asyncio.sleep(RETRY_SECONDS)
            return False
        except TrainingProcessLost:
            crashes = await _persist(claims.charge_crash, claim)
            if crashes < MAX_CRASHES:
                return False
            await _persist(claims.fail, claim, "worker_crashed", f"The training process died {crashes} times.")
        except TrainingFailed as error:
            await _persist(claims.fail, claim, error.code, error.message, error.param)
        except Exception as error:
            # a fault of this worker ends the one job, and not the worker
            logger.exception("job failed", extra={"job_id": job.id})
            await _persist(claims.fail, claim, *_code_and_message(error))
        return True

    async def _attempt(self, job: Job, claim: Claim) -> None:
        """Make one attempt in a training process of its own; raises as `Attempt.run` does."""
        with self._rooms.blobs.staging(self._label) as folder:
            process = await self._processes.take()
            try:
                gpu = self._gpus.choose(job.id, job.spec["device"])
                request = await asyncio.to_thread(make_request, self._rooms, self._settings, job, folder, gpu)
                await Attempt(self._rooms, job, claim, process, self._stopping).run(request)
            finally:
                self._gpus.release(job.id)
                await process.kill()
                self._processes.warm_up()

    async def _release(self, claim: Claim) -> None:
        """Put a job back to queued where the worker stops; where that fails, the next start takes the job as it is."""
        if self._stopping.is_set():
            with suppress(StorageFull, Unavailable):
                await asyncio.to_thread(self._rooms.claims.release, claim)


async def _persist(write: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Write to the database, again and again until it can be written: a full disk loses no job."""
    while True:
        try:
            return await asyncio.to_thread(write, *args, **kwargs)
        except (StorageFull, Unavailable):
            logger.warning("database not written", exc_info=True)
        await asyncio.sleep(RETRY_SECONDS)


def _code_and_message(error: Exception) -> tuple[str, str]:
    """Return the `error.code` and the message of a job that failed in this process."""
    if isinstance(error, StorageFull) or is_disk_full(error):
        return StorageFull.code, "The store's disk is full; nothing was stored."
    if isinstance(error, FitserveError):
        return "invalid_data", error.message
    return "internal", "The worker failed; its log says why."
