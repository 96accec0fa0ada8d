"""The worker's heartbeat: a row that says that the worker lives, and which jobs it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress

from app.errors import StorageFull, Unavailable
from app.records.workers import Workers

#: between two writes of the row
BEAT_SECONDS = 5.0


async def beat(
    workers: Workers, name: str, slots: int, devices: Sequence[str], running: Callable[[], Sequence[str]]
) -> None:
    """Write the worker's row again and again; to be run as a task.

    Args:
        slots: jobs that the worker runs at once.
        devices: what its jobs can compute on.
        running: returns the ids of the jobs that it runs now.
    """
    while True:
        with suppress(StorageFull, Unavailable):
            await asyncio.to_thread(workers.beat, name, slots, running(), devices)
        await asyncio.sleep(BEAT_SECONDS)
