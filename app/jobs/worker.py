"""The worker: takes jobs off the durable queue, as many at a time as it has slots. Knows not how a job is carried out.

`job_runner` runs each job, in a training process of its own: the worker itself never imports Keras. Training processes
are spawned from the main thread, whose end is what kills them.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from app.jobs.gpu_choice import GpuChoice
from app.jobs.heartbeat import beat
from app.jobs.job_runner import JobRunner
from app.jobs.training_process import WarmTrainingProcess
from app.jobs.worker_settings import WorkerSettings
from app.records.rooms import Rooms
from app.storage.job_engine import APPLICATION, DBOS, ENGINE_VERSION, PORTABLE, QUEUE, WORKFLOW, DBOSConfig
from app.system.machine import gpus

logger = logging.getLogger(__name__)

#: time after SIGTERM in which training processes reach the end of a step and write a checkpoint
STOP_SECONDS = 8.0
#: how often the queue is asked for jobs
POLL_SECONDS = 0.2
#: longer than a stop takes: a job's work stays unfinished, so that the queue gives it out again
UNFINISHED_SECONDS = 3600.0


class Worker:
    """Carries out jobs until it is told to stop.

    Args:
        name: unique among the workers of one database.
    """

    def __init__(self, rooms: Rooms, name: str, settings: WorkerSettings) -> None:
        self._rooms, self._name, self._settings = rooms, name, settings
        self._label = f"train-{name}"
        self._gpus = [gpu["id"] for gpu in gpus()]
        #: a task for each job, named by its id
        self._running: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._processes = WarmTrainingProcess(settings.environment, self._stopping)
        self._runner = JobRunner(
            rooms,
            settings,
            label=self._label,
            gpus=GpuChoice(self._gpus),
            processes=self._processes,
            stopping=self._stopping,
        )

    def run(self) -> None:
        """Work until SIGTERM or SIGINT; then put the running jobs back and return."""
        asyncio.set_event_loop(self._loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stopping.set)
        self._rooms.blobs.sweep(self._label)
        self._rooms.registry.sweep()
        self._listen()
        try:
            self._loop.run_until_complete(self._live())
        finally:
            DBOS.destroy(workflow_completion_timeout_sec=0)

    def _listen(self) -> None:
        """Have DBOS call `_take`, in a thread of its own, for each job of the queue."""
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
        DBOS.register_queue(QUEUE, worker_concurrency=self._settings.slots, polling_interval_sec=POLL_SECONDS)

    async def _live(self) -> None:
        """Let jobs run until the worker is to stop; then let each write a checkpoint, and end."""
        self._processes.warm_up()
        devices = ["cpu", *self._gpus]
        beating = asyncio.create_task(
            beat(self._rooms.workers, self._name, self._settings.slots, devices, self._running_ids)
        )
        await self._stopping.wait()
        logger.info("stopping", extra={"running": len(self._running)})
        beating.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=STOP_SECONDS)
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._processes.close()

    def _running_ids(self) -> list[str]:
        return [task.get_name() for task in self._running]

    async def _take(self, job_id: str, workflow_id: str) -> None:
        """Run one job to its end; when the worker stops, leave the work unfinished so that the queue recovers it."""
        task = asyncio.create_task(self._runner.run(job_id, workflow_id), name=job_id)
        self._running.add(task)
        try:
            await task
        finally:
            self._running.discard(task)
            if self._stopping.is_set():
                await asyncio.sleep(UNFINISHED_SECONDS)
