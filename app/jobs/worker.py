"""The worker: takes jobs off the durable queue, and gives each a child process of its own.

It relays the child's events, stores its checkpoints, publishes the version, and keeps a warm child for the next job.
It never imports Keras itself. Children are spawned from the main thread, whose end is what kills them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dbos import DBOS, DBOSConfig

from app.errors import FitserveError, NotFound, StorageFull, Unavailable, is_disk_full
from app.jobs.progress import REPORT_SECONDS, JobProgress
from app.jobs.publish import publish
from app.jobs.submit import CHOSEN
from app.jobs.training_process import TrainingProcess
from app.records.jobs import MAX_CRASHES, Claim, Job
from app.records.registry import Ref
from app.records.rooms import Rooms
from app.storage.job_queue import APPLICATION, ENGINE_VERSION, PORTABLE, QUEUE, WORKFLOW
from app.system.machine import gpus, out_of_memory_kills, processor

logger = logging.getLogger(__name__)

#: how often the worker's heartbeat row is written
BEAT_SECONDS = 5.0
#: what a child has at SIGTERM to reach the end of a step and write a checkpoint
STOP_SECONDS = 8.0
#: beyond `max_seconds`, for loading, encoding and writing
GRACE_SECONDS = 600.0
POLL_SECONDS = 0.2
#: between attempts to write to a database that cannot be written
RETRY_SECONDS = 1.0
T = TypeVar("T")


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker gives its jobs.

    Args:
        slots: jobs at once.
        memory_bytes: what the encoded rows of one job may take in memory.
        checkpoint_seconds: least time between two checkpoints of a job.
        cache: a folder for what compilers want to find again.
    """

    slots: int
    memory_bytes: int
    checkpoint_seconds: float
    cache: Path

    @property
    def compiled(self) -> Path:
        """The folder of what XLA has compiled; for a processor, and not to be run on another one."""
        return self.cache / f"xla-{processor()}"

    def environment(self) -> dict[str, str]:
        """Give the variables of a child."""
        self.compiled.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = f"{os.environ.get('TF_XLA_FLAGS', '')} --tf_xla_persistent_cache_directory={self.compiled}"
        return {**os.environ, "TF_XLA_FLAGS": flags.strip()}


class _Crashed(Exception):
    """The child died on its own."""


class _Interrupted(Exception):
    """The child has stopped because this worker is stopping."""


class _Failed(Exception):
    """The job cannot succeed: a word of the contract's `error.code`, why, and which part of the specification."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param


class Worker:
    """Carries out jobs, as many at a time as it has means for."""

    def __init__(self, rooms: Rooms, name: str, means: WorkerSettings) -> None:
        self._rooms = rooms
        self._name = name
        self._means = means
        self._gpus = [gpu["id"] for gpu in gpus()]
        #: the GPU of each running job that may have one, by the job's id
        self._given: dict[str, str] = {}
        self._warm: asyncio.Task[TrainingProcess] | None = None
        #: a task for each job, named by its id
        self._running: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()

    def run(self) -> None:
        """Work until SIGTERM or SIGINT; then put the running jobs back and return."""
        asyncio.set_event_loop(self._loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        self._rooms.blobs.sweep(self._label)
        self._rooms.registry.sweep()
        self._launch()
        try:
            self._loop.run_until_complete(self._live())
        finally:
            DBOS.destroy(workflow_completion_timeout_sec=0)

    @property
    def _label(self) -> str:
        return f"train-{self._name}"

    def _launch(self) -> None:
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self._rooms.database.url,
            "application_version": ENGINE_VERSION,
            "executor_id": self._name,
            "run_migrations": False,
            "serializer": PORTABLE,
            "notification_listener_polling_interval_sec": POLL_SECONDS,
            "enable_otlp": False,
            # a row that DBOS refuses is a line with the id of its work
            "log_level": "ERROR",
        }
        DBOS(config=config)

        @DBOS.step(name="run", preemptible=True)
        async def run(job_id: str, workflow_id: str) -> None:
            future = asyncio.run_coroutine_threadsafe(self._take(job_id, workflow_id), self._loop)
            await asyncio.wrap_future(future)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=1_000_000)
        async def train(job_id: str, workflow_id: str) -> None:
            await run(job_id, workflow_id)

        DBOS.listen_queues([QUEUE])
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=self._means.slots, polling_interval_sec=POLL_SECONDS)

    async def _live(self) -> None:
        self._warm_up()
        beat = asyncio.create_task(self._beat())
        await self._stopping.wait()
        logger.info("stopping", extra={"running": len(self._running)})
        beat.cancel()
        if self._running:
            # each conversation has its child write a checkpoint
            await asyncio.wait(self._running, timeout=STOP_SECONDS)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        if self._warm is not None:
            await (await self._warm).kill()

    async def _beat(self) -> None:
        while True:
            running = [task.get_name() for task in self._running]
            with suppress(StorageFull, Unavailable):
                await asyncio.to_thread(
                    self._rooms.workers.beat, self._name, self._means.slots, running, ["cpu", *self._gpus]
                )
            await asyncio.sleep(BEAT_SECONDS)

    def _warm_up(self) -> None:
        """Have a child import Keras for the next job, but for one that does so already."""
        if self._warm is None and not self._stopping.is_set():
            self._warm = asyncio.create_task(TrainingProcess.spawn(self._means.environment()))

    async def _child(self) -> TrainingProcess:
        warm, self._warm = self._warm, None
        child = None if warm is None else await warm
        return (
            child
            if child is not None and child.process.returncode is None
            else await TrainingProcess.spawn(self._means.environment())
        )

    async def _take(self, job_id: str, workflow_id: str) -> None:
        """Run one job to its end; when the worker stops, leave the workflow unfinished so that it recovers."""
        task = asyncio.create_task(self._carry_out(job_id, workflow_id), name=job_id)
        self._running.add(task)
        try:
            await task
        finally:
            self._running.discard(task)
            if self._stopping.is_set():
                await asyncio.sleep(3600)

    async def _carry_out(self, job_id: str, workflow_id: str) -> None:
        jobs = self._rooms.jobs
        while not self._stopping.is_set():
            claim = await self._persist(jobs.claim, job_id, workflow_id)
            if claim is None:
                return
            job = await self._persist(jobs.get, job_id)
            logger.info("job started", extra={"job_id": job_id, "attempt": job.attempt})
            try:
                await self._attempt(job, claim)
            except (asyncio.CancelledError, _Interrupted) as error:
                if self._stopping.is_set():
                    # where this fails the next start takes the job up as it is
                    with suppress(StorageFull, Unavailable):
                        await asyncio.to_thread(jobs.release, claim)
                if isinstance(error, asyncio.CancelledError):
                    raise
            except Unavailable:
                logger.exception("database unavailable", extra={"job_id": job_id})
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except _Crashed:
                crashes = await self._persist(jobs.charge_crash, claim)
                if crashes < MAX_CRASHES:
                    continue
                message = f"The training process died {crashes} times."
                await self._persist(jobs.fail, claim, "worker_crashed", message)
            except _Failed as error:
                await self._persist(jobs.fail, claim, error.code, error.message, error.param)
            except Exception as error:
                logger.exception("job failed", extra={"job_id": job_id})
                await self._persist(jobs.fail, claim, *_failure(error))
            return

    async def _persist(self, write: Callable[..., T], *arguments: Any) -> T:
        """Write to the database; where it cannot be written now, when it can: no job is lost to a full disk."""
        while True:
            try:
                return await asyncio.to_thread(write, *arguments)
            except (StorageFull, Unavailable):
                logger.warning("database not written", exc_info=True)
            await asyncio.sleep(RETRY_SECONDS)

    async def _attempt(self, job: Job, claim: Claim) -> None:
        """Run one child until the job has ended, published or void.

        Raises:
            _Crashed, _Failed
        """
        with self._rooms.blobs.staging(self._label) as folder:
            child = await self._child()
            try:
                await self._converse(child, job, claim, folder)
            finally:
                self._given.pop(job.id, None)
                await child.kill()
                self._warm_up()

    def _start(self, job: Job) -> dict[str, str] | None:
        """Give the folder and the digest of the version that a job starts from."""
        if job.spec["start_from"] is None:
            return None
        try:
            version = self._rooms.registry.resolve(Ref.parse(job.spec["start_from"]))
        except NotFound as error:
            raise _Failed("invalid_data", error.message, "start_from") from error
        return {"folder": str(self._rooms.registry.folder(version)), "sha256": version.sha256}

    async def _converse(self, child: TrainingProcess, job: Job, claim: Claim, folder: Path) -> None:
        await child.ask(await asyncio.to_thread(self._request, job, folder))
        relay = JobProgress(self._rooms, claim)
        kills = out_of_memory_kills()
        deadline = time.monotonic() + float(job.spec["fit"]["max_seconds"]) + GRACE_SECONDS
        reading = asyncio.create_task(child.event())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while time.monotonic() < deadline:
                await asyncio.wait({reading, stopping}, timeout=REPORT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done() and not stopping.cancelled():
                    child.interrupt()
                    stopping = asyncio.create_task(asyncio.sleep(GRACE_SECONDS, True))
                if reading.done():
                    event = reading.result()
                    if event is None or event["type"] in ("done", "failed", "interrupted"):
                        if await relay.flush():
                            has_run_out = event is None and out_of_memory_kills() > kills
                            await self._conclude(child, job, claim, folder, event, has_run_out=has_run_out)
                        return
                    if event["type"] == "checkpoint":
                        await self._keep(job, relay, Path(event["file"]))
                    else:
                        relay.add(event)
                    reading = asyncio.create_task(child.event())
                if relay.is_due and not await relay.flush():
                    return
            raise _Failed("timeout", "The job ran far beyond its max_seconds.")
        finally:
            reading.cancel()
            stopping.cancel()

    def _request(self, job: Job, folder: Path) -> dict[str, Any]:
        validation = job.validation_table_key
        checkpoint = self._rooms.checkpoints.latest(job.id)
        return {
            "job": job.id,
            "spec": {k: v for k, v in job.spec.items() if k not in CHOSEN},
            # a job of an earlier release has none
            "auto": job.spec.get("auto", []),
            "columns": job.spec["columns"],
            "table": str(self._rooms.datasets.path(job.table_key)),
            "validation_table": None if validation is None else str(self._rooms.datasets.path(validation)),
            "folder": str(folder),
            "memory_bytes": self._means.memory_bytes,
            "checkpoint_seconds": self._means.checkpoint_seconds,
            "compiled": str(self._means.compiled),
            "checkpoint": None if checkpoint is None else str(checkpoint),
            "gpu": self._gpu(job),
            "start": self._start(job),
        }

    def _gpu(self, job: Job) -> str | None:
        """Give a job that leaves the choice to us the GPU that has the fewest jobs; None where there is none."""
        if job.spec["device"] not in ("auto", "gpu") or not self._gpus:
            return None
        taken = list(self._given.values())
        self._given[job.id] = min(self._gpus, key=taken.count)
        return self._given[job.id]

    async def _keep(self, job: Job, relay: JobProgress, file: Path) -> None:
        try:
            await asyncio.to_thread(self._rooms.checkpoints.keep, job.id, file)
        except (StorageFull, OSError) as error:
            relay.add({"type": "warning", "message": f"a checkpoint could not be stored, training goes on: {error}"})

    async def _conclude(
        self,
        child: TrainingProcess,
        job: Job,
        claim: Claim,
        folder: Path,
        event: dict[str, Any] | None,
        *,
        has_run_out: bool,
    ) -> None:
        if event is None:
            logger.warning("training process died", extra={"job_id": job.id, "said": list(child.said)})
            if has_run_out:
                raise _Failed("out_of_memory", f"The machine ran out of memory.{_estimate(job)}")
            raise _Crashed
        if event["type"] == "interrupted":
            raise _Interrupted
        if event["type"] == "failed":
            more = _estimate(job) if event["code"] == "out_of_memory" else ""
            raise _Failed(event["code"], event["message"] + more, event.get("param"))
        await asyncio.to_thread(publish, self._rooms, job, claim, folder / "version", event)


def _estimate(job: Job) -> str:
    # a job of an earlier release has none
    needed = job.spec.get("estimate", {}).get("memory_bytes")
    return "" if needed is None else f" It was estimated to need {round(needed / 1024**2)} MB."


def _failure(error: Exception) -> tuple[str, str]:
    """Give the code and the message of a job that failed in this process."""
    if isinstance(error, StorageFull) or is_disk_full(error):
        return StorageFull.code, "The store's disk is full; nothing was stored."
    if isinstance(error, FitserveError):
        return "invalid_data", error.message
    return "internal", "The worker failed; its log says why."
