"""Training processes, as their worker sees them. Knows no jobs.

The process's own side is `training_child`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from app.jobs.messages import MESSAGES, REQUESTS, TrainingMessage, TrainRequest
from app.system.json_lines import ChildProcess

TrainingProcess = ChildProcess[TrainRequest, TrainingMessage]


class WarmTrainingProcess:
    """Keeps one training process ready, with Keras imported, for the next job.

    Args:
        environment: returns the environment variables of a training process.
        stopping: set when the worker is to stop; no process is warmed up from then on.
    """

    def __init__(self, environment: Callable[[], Mapping[str, str]], stopping: asyncio.Event) -> None:
        self._environment, self._stopping = environment, stopping
        self._spawning: asyncio.Task[TrainingProcess] | None = None

    def warm_up(self) -> None:
        """Have a process import Keras, unless one does so already."""
        if self._spawning is None and not self._stopping.is_set():
            self._spawning = asyncio.create_task(self._spawn())

    async def take(self) -> TrainingProcess:
        """Return a living training process for one job: the warm one, or another where that one has died."""
        spawning, self._spawning = self._spawning, None
        process = None if spawning is None else await spawning
        return process if process is not None and process.is_alive else await self._spawn()

    async def close(self) -> None:
        """End the warm process."""
        if self._spawning is not None:
            await (await self._spawning).kill()

    async def _spawn(self) -> TrainingProcess:
        return await TrainingProcess.spawn(
            "app.jobs.training_child", requests=REQUESTS, replies=MESSAGES, environment=self._environment()
        )
