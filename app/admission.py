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
from typing import TypeVar

from app.errors import Busy

T = TypeVar("T")

#: how much all before count beside one who ends, in how often one does
_EARLIER = 0.99
#: nobody is sent away for longer
_LONGEST_RETRY_SECONDS = 60


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
        self.running = 0
        #: how many are there without a place, for work that never waits
        self.passing = 0
        #: how many were sent away because the queue was full, and how many were given up because their time was over
        self.refused = self.expired = 0
        self.places, self._most, self._seconds = places, places + waiting, seconds
        self._queue: deque[asyncio.Future[None]] = deque()
        #: when the last one ended, or the lane was last empty; then the seconds that it took until so many ended, of late
        self._since = self._seconds_of_late = self._ends_of_late = 0.0
        # threads of its own: work that waits for a shared one would wait for other lanes
        self._threads = ThreadPoolExecutor(places, name)

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

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
        here = self.present
        if here >= self._most:
            return None
        self.passing += 1
        now = time.perf_counter()
        if not here:
            self._since = now
        return now

    def leave(self) -> None:
        """End what began so."""
        self.passing -= 1
        self._note_end()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Hold a place, after those who came before.

        Raises:
            Busy: the queue is full; or the time is over, and what the block awaits was cancelled.
        """
        self.check()
        if not self.present:
            self._since = time.perf_counter()
        async with self._limited(self._seconds):
            await self._wait()
            try:
                yield
            finally:
                self._note_end()
                self._pass_on()

    @asynccontextmanager
    async def _limited(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                yield
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

    async def work(self, work: Callable[[], T], entered: float) -> T:
        """Work, for one who entered so, on the first thread of the lane's own that is free.

        A place that is handed on by the event loop, which is busy with whoever is refused, leaves its thread idle meanwhile.

        Raises:
            Busy: the time is over.
        """
        async with self._limited(entered + self._seconds - time.perf_counter()):
            return await self.run(work)

    def run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Work on a thread of the lane's own; to be awaited at a place."""
        # what is logged there has the request's id
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _note_end(self) -> None:
        now = time.perf_counter()
        self._seconds_of_late = self._seconds_of_late * _EARLIER + now - self._since
        self._ends_of_late = self._ends_of_late * _EARLIER + 1
        self._since = now

    async def _wait(self) -> None:
        if self.running < self.places:
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    self._queue.remove(turn)
            else:
                # it was handed a place while its time ran out
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1


@dataclass(frozen=True)
class Lanes:
    """The lanes of one process."""

    predictions: Lane
    evaluations: Lane
    uploads: Lane
    submissions: Lane

    def __iter__(self) -> Iterator[Lane]:
        return iter((self.predictions, self.evaluations, self.uploads, self.submissions))
