"""Waiting for a job's next event: one query at a time for all who wait. Knows nothing of how events are sent."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress

from app.errors import Unavailable
from app.records.job_status import ACTIVE
from app.records.jobs import Jobs

#: between two queries
POLL_SECONDS = 0.2


class JobWaiter:
    """Wakes the requests that wait for a job's next event."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        #: by job: the last event that a request has seen, and what wakes the request
        self._waiting: defaultdict[str, set[tuple[int, asyncio.Event]]] = defaultdict(set)
        self._somebody_waits = asyncio.Event()

    async def run(self) -> None:
        """Query the database for as long as somebody waits; to be run as a task."""
        while True:
            await self._somebody_waits.wait()
            job_ids = list(self._waiting)
            with suppress(Unavailable):
                self._wake(job_ids, await asyncio.to_thread(self._jobs.last_events, job_ids))
            await asyncio.sleep(POLL_SECONDS)

    async def wait(self, job_id: str, seen: int, seconds: float) -> None:
        """Return when the job has an event above `seen`, has ended or is gone, or after this many seconds."""
        news = asyncio.Event()
        self._waiting[job_id].add((seen, news))
        self._somebody_waits.set()
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
                self._somebody_waits.clear()

    def wake_all(self) -> None:
        """Wake every request, as the service is stopping."""
        for waiters in self._waiting.values():
            for _, news in waiters:
                news.set()

    def _wake(self, job_ids: Sequence[str], states: Mapping[str, tuple[int, str]]) -> None:
        """Wake the requests whose job has news, given the last event and the status of each job that is there."""
        for job_id in job_ids:
            last, status = states.get(job_id, (0, "gone"))
            for seen, news in self._waiting.get(job_id, ()):
                if last > seen or status not in ACTIVE:
                    news.set()
