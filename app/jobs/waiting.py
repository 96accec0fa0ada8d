"""Watching jobs: one query at a time on behalf of everyone who waits. Knows nothing of how news is sent."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress

from app.errors import Unavailable
from app.records.job_status import ACTIVE
from app.records.jobs import Jobs

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2


class JobWaiter:
    """Wakes those who wait for a job's next event."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._waiting: defaultdict[str, set[tuple[int, asyncio.Event]]] = defaultdict(set)
        self._some = asyncio.Event()

    async def run(self) -> None:
        """Poll for as long as somebody waits; to be run as a task."""
        while True:
            await self._some.wait()
            asked = list(self._waiting)
            with suppress(Unavailable):
                self._wake(asked, await asyncio.to_thread(self._jobs.last_events, asked))
            await asyncio.sleep(POLL_SECONDS)

    async def wait(self, job_id: str, seen: int, seconds: float) -> None:
        """Return when the job has an event above `seen`, has ended or is gone, or the time is over."""
        news = asyncio.Event()
        self._waiting[job_id].add((seen, news))
        self._some.set()
        try:
            async with asyncio.timeout(seconds):
                await news.wait()
        except TimeoutError:
            pass
        finally:
            self._waiting[job_id].discard((seen, news))
            if not self._waiting[job_id]:
                del self._waiting[job_id]
            if not self._waiting:
                self._some.clear()

    def wake_all(self) -> None:
        """Let everyone look again: the service is stopping."""
        for waiters in self._waiting.values():
            for _, news in waiters:
                news.set()

    def _wake(self, asked: Sequence[str], states: Mapping[str, tuple[int, str]]) -> None:
        for job_id in asked:
            last, status = states.get(job_id, (0, "gone"))
            for seen, news in self._waiting.get(job_id, ()):
                if last > seen or status not in ACTIVE:
                    news.set()
