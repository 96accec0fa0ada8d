"""One call of the network for the requests that come within one turn of the event loop. Knows no HTTP.

No timer waits for more requests: a call is for those that have come when the event loop has run everything that was ready.
The bits of a row do not depend on its neighbours (`network`), so that no client can see who shared a call.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.errors import Busy
from app.fast_path.attempt import attempt
from app.fast_path.encode import CALL_CELLS, Encoded, MatrixEncoder, RowWarning
from app.learning.encoding.numeric_inputs import Matrix
from app.serving.admission import Lane

logger = logging.getLogger(__name__)

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
#: multiplications up to which the event loop waits for the network: about a millisecond
LOOP_MULTIPLICATIONS = 10_000_000
#: multiplications beyond which a call in a thread takes no further request: tens of milliseconds
CALL_MULTIPLICATIONS = 300_000_000


class Result(NamedTuple):
    """What the network says about the rows of one request.

    Args:
        probabilities: float32 (n, k).
        best: the index of the most probable class of each row.
        began, ended: when the call of the network was, by `time.perf_counter`.
        is_first: whether the request is the first of those that the call was for.
    """

    probabilities: NDArray[np.float32]
    best: Sequence[int]
    warnings: Sequence[RowWarning]
    began: float
    ended: float
    is_first: bool


#: takes the result of a request, once, on the event loop; None where the route has to answer
OnResult = Callable[[Result | Busy | None], None]


class Pending(NamedTuple):
    """A request that waits for the network: its rows, and how many rows and cells they are."""

    rows: Matrix | Encoded
    row_count: int
    cell_count: int
    entered: float
    on_result: OnResult


class Batch(NamedTuple):
    """The requests of one call of the network.

    Args:
        x: the rows of all of them, one request after the other, float32 (n, d).
        warnings: about the rows of each request; None where a number is missing or too large: its rows are not in x.
    """

    requests: Sequence[Pending]
    x: NDArray[np.float32]
    warnings: Sequence[Sequence[RowWarning] | None]


class Batcher:
    """Computes the requests of one version, several with each call of the network.

    Args:
        network: maps float32 (n, d) to probabilities float32 (n, k).
        matrix: encodes matrices, where the version's inputs are all numbers.
        multiplications: of the network, for one row.
        cpu_rows: the most rows that the processor computes; another device always computes in a thread.
        lane: has the threads, as many as calls may run at once, and the longest time that a request may wait.
    """

    def __init__(
        self, network: Network, matrix: MatrixEncoder | None, multiplications: int, cpu_rows: int, lane: Lane
    ) -> None:
        self._network = network
        self._matrix = matrix
        self._lane = lane
        per_row = max(multiplications, 1)
        self._loop_rows = min(LOOP_MULTIPLICATIONS // per_row, cpu_rows)
        # another device computes many rows as quickly as few
        self._most_rows = CALL_MULTIPLICATIONS // per_row if cpu_rows == sys.maxsize else sys.maxsize
        self._waiting: deque[Pending] = deque()
        #: rows and cells of the requests that wait
        self._rows = self._cells = 0
        #: whether the event loop is to begin a call soon, and how many calls run in threads
        self._is_due, self._running = False, 0

    def submit(self, rows: Matrix | Encoded, entered: float, on_result: OnResult) -> None:
        """Have the network compute soon. The result is None where a number is missing or too large, or the network fails.

        Args:
            entered: when the request entered the lane.
        """
        request = Pending(rows, len(rows), rows.size, entered, on_result)
        self._waiting.append(request)
        self._rows += request.row_count
        self._cells += request.cell_count
        self._plan()

    def _plan(self) -> None:
        if self._waiting and not self._is_due and self._may_call():
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._call)

    def _may_call(self) -> bool:
        # a full call waits at the threads for one of them: a busy event loop would leave the thread idle
        ahead = self._running - self._lane.places
        is_full = self._rows >= self._most_rows or self._cells >= CALL_CELLS
        return ahead < 0 or (ahead == 0 and is_full)

    def _call(self) -> None:
        self._is_due = False
        requests, began = self._take(), time.perf_counter()
        batch = attempt(self._gather, requests)
        if batch is None:
            fail_all(requests)
        elif len(batch.x) > self._loop_rows:
            self._start(batch)
        else:
            # all requests may have a fault: then there is no row
            probabilities = attempt(self._network, batch.x) if len(batch.x) else batch.x
            _deliver(batch, probabilities, began)
        self._plan()

    def _take(self) -> list[Pending]:
        """Take the requests of the next call, in the order in which they came; refuse those that waited too long."""
        cells = rows = 0
        taken: list[Pending] = []
        while self._waiting and cells < CALL_CELLS and rows < self._most_rows:
            request = self._waiting.popleft()
            self._rows -= request.row_count
            self._cells -= request.cell_count
            if self._lane.is_late(request.entered):
                attempt(request.on_result, self._lane.expiry())
                continue
            cells += request.cell_count
            rows += request.row_count
            taken.append(request)
        return taken

    def _gather(self, requests: Sequence[Pending]) -> Batch:
        """Put the rows of all requests into one array: those that are encoded, then the matrices, which are encoded here."""
        ready: list[Pending] = []
        later: list[Pending] = []
        parts: list[NDArray[np.float32]] = []
        matrices: list[Matrix] = []
        warnings: list[Sequence[RowWarning] | None] = []
        for request in requests:
            rows = request.rows
            if isinstance(rows, Encoded):
                ready.append(request)
                parts.append(rows.x)
                warnings.append(rows.warnings)
            else:
                later.append(request)
                matrices.append(rows)
        if matrices:
            assert self._matrix is not None, "only a version whose inputs are all numbers is asked about a matrix"
            x, found = self._matrix.encode(matrices)
            parts.append(x)
            warnings += found
        if not parts:
            return Batch((), np.empty((0, 1), np.float32), ())
        return Batch(ready + later, parts[0] if len(parts) == 1 else np.concatenate(parts), warnings)

    def _start(self, batch: Batch) -> None:
        call = self._lane.run(partial(self._compute, batch))
        self._running += 1
        call.add_done_callback(partial(self._end, batch))

    def _compute(self, batch: Batch) -> tuple[NDArray[np.float32], float] | None:
        """Compute in a thread; return when that began, too: other calls may have kept the thread. None where it is too late for all."""
        began = time.perf_counter()
        return None if self._lane.is_late(batch.requests[-1].entered) else (self._network(batch.x), began)

    def _end(self, batch: Batch, call: asyncio.Future[tuple[NDArray[np.float32], float] | None]) -> None:
        self._running -= 1
        error = None if call.cancelled() else call.exception()
        if call.cancelled() or error is not None:
            logger.error("batch failed", exc_info=error)
            fail_all(batch.requests)
        elif (computed := call.result()) is None:
            for request in batch.requests:
                attempt(request.on_result, self._lane.expiry())
        else:
            _deliver(batch, *computed)
        self._plan()


def _deliver(batch: Batch, probabilities: NDArray[np.float32] | None, began: float) -> None:
    """Hand each request its part of the probabilities."""
    if probabilities is None:
        fail_all(batch.requests)
        return
    ended = time.perf_counter()
    best = probabilities.argmax(axis=1).tolist()
    start = 0
    for request, warnings in zip(batch.requests, batch.warnings, strict=True):
        if warnings is None:
            attempt(request.on_result, None)
            continue
        end = start + request.row_count
        result = Result(probabilities[start:end], best[start:end], warnings, began, ended, is_first=start == 0)
        attempt(request.on_result, result)
        start = end


def fail_all(requests: Iterable[Pending]) -> None:
    """Leave requests to their routes: the network failed for all of them, and each route finds out whether it fails for one."""
    for request in requests:
        attempt(request.on_result, None)
