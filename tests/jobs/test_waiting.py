"""Waiting for a job: a request wakes when the job has news, and at the latest when its time is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.jobs.waiting import POLL_SECONDS, JobWaiter
from app.records.job_report import JobReport
from app.records.rooms import Rooms
from tests.stored_rows import submit

#: far longer than `POLL_SECONDS`, far shorter than `LONG_SECONDS`, the longest that a wait may take
SOON_SECONDS = 20.0
LONG_SECONDS = 60.0


async def wait(rooms: Rooms, waits: list[tuple[str, int]], news: Callable[[], object], seconds: float) -> float:
    """Wait for several jobs at once while something happens, and return the seconds until the last wait ended."""
    waiter = JobWaiter(rooms.jobs)
    running = asyncio.create_task(waiter.run())
    started = time.monotonic()
    waiting = asyncio.gather(*(waiter.wait(job_id, seen, seconds) for job_id, seen in waits))
    await asyncio.sleep(2 * POLL_SECONDS)
    assert not waiting.done()
    await asyncio.to_thread(news)
    await waiting
    assert not running.done()
    running.cancel()
    return time.monotonic() - started


@pytest.mark.parametrize("change", ["report", "cancel", "delete"])
def test_news_of_a_job_wakes_every_request_that_waits_for_it(rooms: Rooms, change: str) -> None:
    job = submit(rooms)
    claim = rooms.claims.take(job.id, job.workflow_id)
    assert claim is not None
    last = rooms.jobs.get(job.id).last_event

    def end() -> None:
        rooms.jobs.cancel(job.id)
        rooms.jobs.delete(job.id)

    changes = {
        "report": lambda: rooms.claims.report(claim, JobReport([{"type": "log"}])),
        "cancel": lambda: rooms.jobs.cancel(job.id),
        "delete": end,
    }
    took = asyncio.run(wait(rooms, [(job.id, last)] * 3, changes[change], LONG_SECONDS))

    assert took < SOON_SECONDS


@pytest.mark.parametrize("seen", [0, 10], ids=["an older event", "the end"])
def test_news_that_is_there_already_ends_a_wait_at_once(rooms: Rooms, seen: int) -> None:
    job = submit(rooms)
    rooms.jobs.cancel(job.id)

    async def run() -> None:
        waiter = JobWaiter(rooms.jobs)
        running = asyncio.create_task(waiter.run())
        await asyncio.wait_for(waiter.wait(job.id, seen, LONG_SECONDS), SOON_SECONDS)
        running.cancel()

    asyncio.run(run())


def test_without_news_a_wait_ends_when_its_time_is_over(rooms: Rooms) -> None:
    job = submit(rooms)
    other = submit(rooms)

    took = asyncio.run(
        wait(rooms, [(job.id, job.last_event)], lambda: rooms.jobs.cancel(other.id), seconds=6 * POLL_SECONDS)
    )

    assert took >= 6 * POLL_SECONDS


def test_a_stop_wakes_every_request(rooms: Rooms) -> None:
    job = submit(rooms)

    async def run() -> None:
        waiter = JobWaiter(rooms.jobs)
        waiting = asyncio.create_task(waiter.wait(job.id, job.last_event, LONG_SECONDS))
        await asyncio.sleep(0)
        waiter.wake_all()
        await asyncio.wait_for(waiting, SOON_SECONDS)

    asyncio.run(run())


def test_waiting_goes_on_after_the_database_was_away(rooms: Rooms) -> None:
    job = submit(rooms)
    path = Path(rooms.database.url.removeprefix("sqlite:///"))

    def go_and_come_back() -> None:
        rooms.database.close()
        path.rename(path.with_suffix(".away"))
        path.mkdir()
        time.sleep(3 * POLL_SECONDS)
        path.rmdir()
        path.with_suffix(".away").rename(path)
        rooms.jobs.cancel(job.id)

    took = asyncio.run(wait(rooms, [(job.id, job.last_event)], go_and_come_back, LONG_SECONDS))

    assert took < SOON_SECONDS
