"""Admission: which requests start at once, which wait for a place, and which are refused. Knows nothing of HTTP.

Each kind of work has a lane with places of its own, so that a flood of one kind takes nothing from another.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from app.errors import Busy
from app.serving.retry_after import RetryAfter

T = TypeVar("T")


class _Waiting(NamedTuple):
    """A request in the queue.

    Args:
        admitted: ends when the request has a place.
        limit: the request gets a place when fewer than `limit` requests have one.
    """

    admitted: asyncio.Future[None]
    limit: int


class Lane:
    """Places for one kind of work, and a queue before them; for the tasks of one event loop.

    A request has a place while it works: `place` waits for one, and `work` does so for one piece of work in a thread. A request
    of the fast path is in the lane without a place, from `enter` to `leave`: it never waits in the queue, and counts against
    the limit like the others.

    Args:
        name: of the kind of work, in the plural.
        places: requests that work at once; the lane has as many threads.
        waiting: requests that may wait for a place.
        seconds: longest time that a request waits and works.
    """

    def __init__(self, name: str, places: int, waiting: int, seconds: float) -> None:
        self.name = name
        self.places = places
        #: requests with a place, or that wait for a thread with `work`
        self.running = 0
        #: requests between `enter` and `leave`
        self.passing = 0
        #: requests refused because the lane was full, and requests given up because their time was over
        self.refused = self.expired = 0
        self._limit, self._seconds = places + waiting, seconds
        self._queue: deque[_Waiting] = deque()
        self._retry_after = RetryAfter()
        # threads of the lane's own: work that waits for a shared thread would wait for other lanes
        self._threads = ThreadPoolExecutor(places, name)

    @property
    def at_work(self) -> int:
        """The number of requests that work."""
        return min(self.running, self.places) + self.passing

    @property
    def waiting(self) -> int:
        """The number of requests that wait, for a place or for a thread."""
        return len(self._queue) + max(self.running - self.places, 0)

    @property
    def present(self) -> int:
        """The number of requests that work or wait."""
        return self.running + self.passing + len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether one more request would be refused."""
        return self.present >= self._limit

    def refusal(self) -> Busy:
        """Count a request that came to a full lane, and return its error."""
        self.refused += 1
        detail = f"Expected at most {self._limit} {self.name} at once; try again later."
        return Busy(detail, self._retry_after.seconds(self.present))

    def check(self) -> None:
        """Refuse a request for which the lane is full; call this before the request's body is read.

        Raises:
            Busy: the lane is full.
        """
        if self.is_full:
            raise self.refusal()

    def enter(self) -> float | None:
        """Let a request begin at once, without a place; return the time, or None where the lane is full."""
        present = self.present
        if present >= self._limit:
            return None
        self._note_beginning(present)
        self.passing += 1
        return time.perf_counter()

    def leave(self, *, has_ended: bool = True) -> None:
        """Let a request go that entered.

        Args:
            has_ended: False where the request comes again, by its route.
        """
        if has_ended:
            self._note_completion()
        self.passing -= 1

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place, after the requests that came before.

        Raises:
            Busy: the lane is full; or the request's time is over, and what the block awaits was cancelled.
        """
        self.check()
        self._note_beginning(self.present)
        async with self._held(self._seconds, self.places):
            yield

    async def work(self, work: Callable[[], T], entered: float) -> T:
        """Work in a thread for a request that entered, after the requests that came before. The request then has left.

        One request for each place waits at the threads, not in the queue: a thread whose next request had to be handed over by
        the event loop, which is busy with refusals, would stay idle.

        Args:
            entered: the time that `enter` returned.

        Raises:
            Busy: the request's time is over.
        """
        self.passing -= 1
        if self.is_late(entered):
            raise self.expiry()
        async with self._held(entered + self._seconds - time.perf_counter(), 2 * self.places):
            return await self.run(work)

    @asynccontextmanager
    async def _held(self, seconds: float, limit: int) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds) as time_out:
                await self._take_place(limit)
                try:
                    yield
                finally:
                    self._note_completion()
                    self._pass_on()
        except TimeoutError as error:
            if not time_out.expired():
                raise
            raise self.expiry() from error

    def is_late(self, entered: float) -> bool:
        """Return whether the time of a request that entered then is over; any thread may call this."""
        return time.perf_counter() > entered + self._seconds

    def expiry(self) -> Busy:
        """Count a request whose time is over, and return its error."""
        self.expired += 1
        detail = f"Expected {self.name} that wait and work for at most {self._seconds:g} seconds; try again later."
        return Busy(detail, self._retry_after.seconds(self.present))

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Work in a thread of the lane; the caller has a place."""
        # lines that the work logs have the request's id
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _note_beginning(self, present: int) -> None:
        if present == self.places - 1:
            self._retry_after.start()

    def _note_completion(self) -> None:
        if self.present >= self.places:
            self._retry_after.count_completion()

    async def _take_place(self, limit: int) -> None:
        """Wait until fewer than `limit` requests have a place, and take one."""
        if self.running < limit and not self._queue:
            self.running += 1
            return
        waiting = _Waiting(asyncio.get_running_loop().create_future(), limit)
        self._queue.append(waiting)
        try:
            await waiting.admitted
        except asyncio.CancelledError:
            if waiting.admitted.cancelled():
                with suppress(ValueError):
                    self._queue.remove(waiting)
            else:
                # the request got a place while its time ran out
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """End the hold on a place, and admit the next requests of the queue."""
        self.running -= 1
        while self._queue and self.running < self._queue[0].limit:
            admitted = self._queue.popleft().admitted
            if not admitted.done():
                self.running += 1
                admitted.set_result(None)


@dataclass(frozen=True)
class Lanes:
    """The lanes of one process."""

    predictions: Lane
    evaluations: Lane
    uploads: Lane
    submissions: Lane

    def __iter__(self) -> Iterator[Lane]:
        return iter((self.predictions, self.evaluations, self.uploads, self.submissions))
