"""Work that there is once on a data directory, however many processes serve it: the worker, large uploads, the sweep."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from app.errors import StorageFull, Unavailable
from app.records import retention
from app.settings import Settings
from app.system.supervisor import SupervisedProcess
from app.wiring import Services, retention_policy

logger = logging.getLogger(__name__)

#: longest time that the worker takes to stop
WORKER_STOP_SECONDS = 8.0
#: how often this process looks for large uploads that other processes took
UPLOAD_SECONDS = 1.0


class BackgroundWork:
    """Runs beside the serving, in the process that was started first."""

    def __init__(self, services: Services) -> None:
        self._services = services
        command = [sys.executable, "-m", "app", "work", "--parent", str(os.getpid())]
        self._worker = SupervisedProcess("worker", command, environment(services.settings))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the work for as long as the block runs."""
        services = self._services
        settings = services.settings
        # a process that serves alone is told of each large upload by its own routes
        work = [services.background_parser.run(UPLOAD_SECONDS if settings.processes > 1 else None), self._sweep()]
        if settings.workers:
            work.append(self._worker.run())
        tasks = [asyncio.create_task(each) for each in work]
        try:
            yield
        finally:
            await self._worker.stop(WORKER_STOP_SECONDS)
            for task in tasks:
                task.cancel()
            await services.background_parser.close()

    def drain(self) -> None:
        """Let the worker end: its jobs go back to the queue."""
        self._worker.terminate()

    async def _sweep(self) -> None:
        """Every `sweep_seconds`, fail jobs that no worker would take up, and remove what is older than the settings keep it."""
        settings, rooms = self._services.settings, self._services.rooms
        policy = retention_policy(settings)
        while True:
            try:
                await asyncio.to_thread(rooms.job_sweep.fail_lost)
                await asyncio.to_thread(retention.sweep, rooms, policy, datetime.now(UTC))
            except (Unavailable, StorageFull) as error:
                logger.warning("sweep put off: %s", error)
            except Exception:
                # the next sweep may succeed, and nothing else depends on this one
                logger.exception("sweep failed")
            await asyncio.sleep(settings.sweep_seconds)


def environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with every setting in it, for a child process."""
    variables = {f"FITSERVE_{name.upper()}": value for name, value in settings.model_dump().items()}
    return {**os.environ, **{name: str(value) for name, value in variables.items() if value is not None}}
