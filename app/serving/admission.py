"""Admission: who starts at once, who waits for a place, and who is told to come back. Knows nothing of HTTP.

Each kind of work has a lane with places of its own, so that a flood of one kind takes nothing from another.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from app.errors import Busy

T = TypeVar("T")

#: how much all before count beside one who ends, in how often one does
_EARLIER = 0.99
#: nobody is sent away for longer
_LONGEST_RETRY_SECONDS = 60


class _Turn(NamedTuple):
    """One in the queue, whose turn has come when there are fewer than so many at work."""

    come: asyncio.Future[None]
    most: int


class Lane:
    """Places for one kind of work, and a queue before them; for the tasks of one event loop.

    Args:
        name: what there are too many of, in the plural.
        places: how many are at work at once.
        waiting: how many may wait for a place.
        seconds: how long one may wait and work.
    """

    def __init__(self, name: str, places: int, waiting: int, seconds: float) -> None:
        self.name = name
        #: how many have a place, or wait at the threads
        self.running = 0
        #: how many are there without a place, for work that never waits
        self.passing = 0
        #: how many were sent away because the queue was full, and how many were given up because their time was over
        self.refused = self.expired = 0
        self.places, self._most, self._seconds = places, places + waiting, seconds
        self._queue: deque[_Turn] = deque()
        #: when the last one ended, or the last place was taken; then the seconds that it took until so many ended, of late
        self._since = self._seconds_of_late = self._ends_of_late = 0.0
        # threads of its own: work that waits for a shared one would wait for other lanes
        self._threads = ThreadPoolExecutor(places, name)

    @property
    def at_work(self) -> int:
        """How many hold a place, or need none."""
        return min(self.running, self.places) + self.passing

    @property
    def waiting(self) -> int:
        """How many wait for a place, or at the threads for one."""
        return len(self._queue) + max(self.running - self.places, 0)

    @property
    def retry_seconds(self) -> int:
        """When those who are here now will be done, at the rate of late; whole seconds, at least 1."""
        each = self._seconds_of_late / self._ends_of_late if self._ends_of_late else 0
        return min(max(math.ceil(self.present * each), 1), _LONGEST_RETRY_SECONDS)

    @property
    def present(self) -> int:
        """How many are here, at work or waiting."""
        return self.running + self.passing + len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether one who came now could not even wait."""
        return self.present >= self._most

    def refusal(self) -> Busy:
        """Count and make the error of one who came to a full lane."""
        self.refused += 1
        return Busy(f"Expected at most {self._most} {self.name} at once; try again later.", self.retry_seconds)

    def check(self) -> None:
        """Refuse one who could not even wait: to be asked before a body is read.

        Raises:
            Busy: the lane is full.
        """
        if self.is_full:
            raise self.refusal()

    def enter(self) -> float | None:
        """Begin at once, without a place, what never waits; gives the time, for `leave`, or None where the lane is full."""
        here, now = self.present, time.perf_counter()
        if here >= self._most:
            return None
        if here == self.places - 1:
            self._since = now
        self.passing += 1
        return now

    def leave(self, *, has_ended: bool = True) -> None:
        """End what began so.

        Args:
            has_ended: it does not come again by another way.
        """
        if has_ended:
            self._note_end()
        self.passing -= 1

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place, after those who came before.

        Raises:
            Busy: the queue is full; or the time is over, and what the block awaits was cancelled.
        """
        self.check()
        if self.present == self.places - 1:
            self._since = time.perf_counter()
        async with self._held(self._seconds, self.places):
            yield

    async def work(self, work: Callable[[], T], entered: float) -> T:
        """Work on a thread, after those who came before, for one who entered so; it ends with the work.

        One for each place waits at the threads: one that waited for the event loop, which is busy with whoever is refused, would
        leave its thread idle.

        Raises:
            Busy: the time is over.
        """
        self.passing -= 1
        if self.is_over(entered):
            raise self.expiry()
        async with self._held(entered + self._seconds - time.perf_counter(), 2 * self.places):
            return await self.run(work)

    @asynccontextmanager
    async def _held(self, seconds: float, most: int) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                await self._wait(most)
                try:
                    yield
                finally:
                    self._note_end()
                    self._pass_on()
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self.expiry() from error

    def overdue(self, entered: float) -> Busy | None:
        """Count and make the error of one who entered so long ago that its time is over, else give None."""
        return self.expiry() if self.is_over(entered) else None

    def is_over(self, entered: float) -> bool:
        """Tell whether the time of one who entered then is over; from any thread."""
        return time.perf_counter() > entered + self._seconds

    def expiry(self) -> Busy:
        """Count and make the error of one whose time is over."""
        self.expired += 1
        detail = f"Expected {self.name} that wait and work for at most {self._seconds:g} seconds; try again later."
        return Busy(detail, self.retry_seconds)

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Work on a thread of the lane's own; to be awaited at a place."""
        # what is logged there has the request's id
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _note_end(self) -> None:
        # what ends while there are places says nothing of how many can
        if self.present >= self.places:
            now = time.perf_counter()
            self._seconds_of_late = self._seconds_of_late * _EARLIER + now - self._since
            self._ends_of_late = self._ends_of_late * _EARLIER + 1
            self._since = now

    async def _wait(self, most: int) -> None:
        if self.running < most and not self._queue:
            self.running += 1
            return
        turn = _Turn(asyncio.get_running_loop().create_future(), most)
        self._queue.append(turn)
        try:
            await turn.come
        except asyncio.CancelledError:
            if turn.come.cancelled():
                with suppress(ValueError):
                    self._queue.remove(turn)
            else:
                # it was handed a place while its time ran out
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        self.running -= 1
        while self._queue and self.running < self._queue[0].most:
            come = self._queue.popleft().come
            if not come.done():
                self.running += 1
                come.set_result(None)


@dataclass(frozen=True)
class Lanes:
    """The lanes of one process."""

    predictions: Lane
    evaluations: Lane
    uploads: Lane
    submissions: Lane

    def __iter__(self) -> Iterator[Lane]:
        return iter((self.predictions, self.evaluations, self.uploads, self.submissions))
