"""One attempt at a job: the worker's conversation with a training process, from the request to the published version.

Knows neither the queue nor what another attempt would be.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from app.errors import NotFound, StorageFull
from app.jobs.messages import Done, Failed, Interrupted, Ready, StartVersion, TrainingMessage, TrainRequest
from app.jobs.progress import REPORT_SECONDS, ClaimVoid, JobProgress
from app.jobs.publish import publish
from app.jobs.submit import spec_of
from app.jobs.training_process import TrainingProcess
from app.jobs.worker_settings import WorkerSettings
from app.learning.training.events import CheckpointWritten, TrainingWarning
from app.records.claims import Claim
from app.records.job import Job
from app.records.ref import Ref
from app.records.rooms import Rooms
from app.system.machine import out_of_memory_kills

logger = logging.getLogger(__name__)

#: how much longer than `max_seconds` a training process may take, for loading, encoding and writing
GRACE_SECONDS = 600.0


class TrainingProcessLost(Exception):
    """The training process died on its own, and not for want of memory."""


class AttemptInterrupted(Exception):
    """The training process has stopped because this worker is stopping."""


class TrainingFailed(Exception):
    """The job cannot succeed.

    Args:
        code: a word of the contract's `error.code`.
        message: why.
        param: the part of the specification that is wrong.
    """

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


def make_request(rooms: Rooms, settings: WorkerSettings, job: Job, folder: Path, gpu: str | None) -> TrainRequest:
    """Return what a training process needs for a job.

    Args:
        folder: an empty one, for the version's files and for checkpoints.
        gpu: the worker's choice for a job that leaves the choice to the service.

    Raises:
        TrainingFailed: the version that the job starts from is gone.
    """
    validation = job.validation_table_key
    return TrainRequest(
        job.id,
        spec_of(job),
        # a job of an earlier release has none
        auto=tuple(job.spec.get("auto", ())),
        columns=tuple(job.spec["columns"]),
        table=rooms.datasets.path(job.table_key),
        validation_table=None if validation is None else rooms.datasets.path(validation),
        folder=folder,
        memory_bytes=settings.memory_bytes,
        checkpoint_seconds=settings.checkpoint_seconds,
        compiled=settings.compiled,
        gpu=gpu,
        checkpoint=rooms.checkpoints.find(job.id),
        start=_start_version(rooms, job.spec["start_from"]),
    )


def _start_version(rooms: Rooms, ref: str | None) -> StartVersion | None:
    if ref is None:
        return None
    try:
        version = rooms.registry.resolve(Ref.parse(ref))
    except NotFound as error:
        raise TrainingFailed("invalid_data", error.message, "start_from") from error
    return StartVersion(rooms.registry.folder(version), version.sha256)


class Attempt:
    """One attempt at a job.

    Args:
        process: the training process; it carries out this attempt and nothing else.
        stopping: set when the worker is to stop.
    """

    def __init__(self, rooms: Rooms, job: Job, claim: Claim, process: TrainingProcess, stopping: asyncio.Event) -> None:
        self._rooms, self._job, self._claim = rooms, job, claim
        self._process, self._stopping = process, stopping
        self._progress = JobProgress(rooms.claims, claim)
        #: processes that the kernel had killed for want of memory before this attempt
        self._kills = out_of_memory_kills()

    async def run(self, request: TrainRequest) -> None:
        """Have the process train, and publish its version; end early where the claim is void.

        Raises:
            TrainingProcessLost, TrainingFailed, AttemptInterrupted: there is no version.
        """
        await self._process.send(request)
        interrupting = asyncio.create_task(self._interrupt_when_stopping())
        try:
            with suppress(ClaimVoid):
                await self._follow(request.folder)
        finally:
            interrupting.cancel()

    async def _interrupt_when_stopping(self) -> None:
        """Have the process write a checkpoint and stop once the worker is to stop."""
        await self._stopping.wait()
        self._process.interrupt()

    async def _follow(self, folder: Path) -> None:
        """Act on each message of the process until the last one."""
        deadline = time.monotonic() + float(self._job.spec["fit"]["max_seconds"]) + GRACE_SECONDS
        reading = asyncio.create_task(self._process.read())
        try:
            while time.monotonic() < deadline:
                await asyncio.wait({reading}, timeout=REPORT_SECONDS)
                if reading.done():
                    if await self._act_on(reading.result(), folder):
                        return
                    reading = asyncio.create_task(self._process.read())
                if self._progress.is_due:
                    await self._progress.flush()
            raise TrainingFailed("timeout", "The job ran far beyond its max_seconds.")
        finally:
            reading.cancel()

    async def _act_on(self, message: TrainingMessage | None, folder: Path) -> bool:
        """Act on one message, and return whether the version is published with it; None is the end of all messages."""
        match message:
            case None:
                await self._progress.flush()
                self._training_process_lost()
            case Interrupted():
                await self._progress.flush()
                raise AttemptInterrupted
            case Failed(code=code, message=reason, param=param):
                await self._progress.flush()
                raise TrainingFailed(code, reason + (_estimate(self._job) if code == "out_of_memory" else ""), param)
            case Done():
                await self._progress.flush()
                await asyncio.to_thread(publish, self._rooms, self._job, self._claim, folder / "version", message)
                return True
            case Ready():
                pass
            case CheckpointWritten(file=file):
                await self._keep_checkpoint(file)
            case _:
                self._progress.add(message)
        return False

    def _training_process_lost(self) -> NoReturn:
        """Raise what the death of the training process means for the job."""
        extra = {"job_id": self._job.id, "said": list(self._process.last_lines)}
        logger.warning("training process died", extra=extra)
        if out_of_memory_kills() > self._kills:
            raise TrainingFailed("out_of_memory", f"The machine ran out of memory.{_estimate(self._job)}")
        raise TrainingProcessLost

    async def _keep_checkpoint(self, file: Path) -> None:
        try:
            await asyncio.to_thread(self._rooms.checkpoints.add, self._job.id, file)
        except (StorageFull, OSError) as error:
            message = f"a checkpoint could not be stored, training goes on: {error}"
            self._progress.add(TrainingWarning(message))


def _estimate(job: Job) -> str:
    # a job of an earlier release has none
    needed = job.spec.get("estimate", {}).get("memory_bytes")
    return "" if needed is None else f" It was estimated to need {round(needed / 1024**2)} MB."
