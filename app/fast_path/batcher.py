"""One call of the network for the requests that come within one turn of the event loop. Knows no HTTP.

No timer waits for more of them: what has come when the loop has run all that was ready is what is answered. A row's
bits do not depend on its neighbours (`network`), so nobody can tell.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.errors import Busy
from app.fast_path.encode import CALL_CELLS, Encoded, MatrixEncoder, RowWarning
from app.fast_path.parse import Matrix
from app.serving.admission import Lane

logger = logging.getLogger(__name__)

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
#: multiplications up to which the event loop waits for the network: about a millisecond
LOOP_MULTIPLICATIONS = 10_000_000
#: and those that a call beside the loop begins no further request beyond: tens of milliseconds
CALL_MULTIPLICATIONS = 300_000_000


class Answered(NamedTuple):
    """What the network says about the rows of one request.

    Args:
        probabilities: float32 (n, k).
        best: the index of the most probable class of each row.
        began, ended: when the call was, by `time.perf_counter`.
        is_first: of those that the call was for.
    """

    probabilities: NDArray[np.float32]
    best: Sequence[int]
    warnings: Sequence[RowWarning]
    began: float
    ended: float
    is_first: bool


#: is told what was asked for, once, on the event loop; None where the route has to answer
Tell = Callable[[Answered | Busy | None], None]


class _Waiting(NamedTuple):
    rows: Matrix | Encoded
    entered: float
    tell: Tell


class _Asked(NamedTuple):
    rows: int
    #: None where a number is missing or too large: there are no rows then
    warnings: Sequence[RowWarning] | None
    tell: Tell


class Batcher:
    """The requests of one version.

    Args:
        network: maps float32 (n, d) to probabilities float32 (n, k).
        matrix: encodes matrices, where the version's inputs are all numbers.
        multiplications: what the network takes for a row.
        cpu_rows: the most rows that the processor computes; what another device does is always beside the loop.
        lane: what is computed beside the loop has its threads, as many calls at once as there are; it knows how long one may wait.
    """

    def __init__(
        self, network: Network, matrix: MatrixEncoder | None, multiplications: int, cpu_rows: int, lane: Lane
    ) -> None:
        self._network = network
        self._matrix = matrix
        self._lane = lane
        each = max(multiplications, 1)
        self._loop_rows = min(LOOP_MULTIPLICATIONS // each, cpu_rows)
        # another device computes many as quickly as few
        self._most_rows = CALL_MULTIPLICATIONS // each if cpu_rows == sys.maxsize else sys.maxsize
        self._waiting: deque[_Waiting] = deque()
        #: of those who wait
        self._rows = self._cells = 0
        #: a call is due soon; so many are computed beside the loop
        self._is_due, self._running = False, 0

    def ask(self, rows: Matrix | Encoded, entered: float, tell: Tell) -> None:
        """Tell soon what the network says; None where a number is missing or too large, or the network failed.

        Args:
            entered: the lane, as it says.
        """
        self._waiting.append(_Waiting(rows, entered, tell))
        self._rows += len(rows)
        self._cells += rows.size
        self._plan()

    def _plan(self) -> None:
        if self._waiting and not self._is_due and self._may_call():
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._call)

    def _may_call(self) -> bool:
        # one that is full waits for its thread there: a busy event loop would leave the thread idle
        ahead = self._running - self._lane.places
        is_full = self._rows >= self._most_rows or self._cells >= CALL_CELLS
        return ahead < 0 or (ahead == 0 and is_full)

    def _call(self) -> None:
        self._is_due = False
        taken, began = self._take(), time.perf_counter()
        try:
            x, asked = self._gather(taken)
            if len(x) > self._loop_rows:
                call = self._lane.run(partial(self._compute, x, taken[-1].entered))
                self._running += 1
                call.add_done_callback(partial(self._end, asked))
                return
            # no row may be left
            probabilities = self._network(x) if len(x) else x
        except Exception:
            # each is then answered, or told what is wrong, on its own
            logger.exception("batch failed")
            _forsake(taken)
        else:
            _tell_all(asked, probabilities, began)
        finally:
            self._plan()

    def _take(self) -> list[_Waiting]:
        """Take what the next call is for, in the order in which it came; whoever waited too long is told so."""
        cells = rows = 0
        taken: list[_Waiting] = []
        while self._waiting and cells < CALL_CELLS and rows < self._most_rows:
            each = self._waiting.popleft()
            self._rows -= len(each.rows)
            self._cells -= each.rows.size
            late = self._lane.overdue(each.entered)
            if late is not None:
                _tell(each.tell, late)
                continue
            cells += each.rows.size
            rows += len(each.rows)
            taken.append(each)
        return taken

    def _gather(self, taken: Sequence[_Waiting]) -> tuple[NDArray[np.float32], list[_Asked]]:
        """Encode what is not encoded yet, and put all rows into one array; none of whoever has a fault."""
        parts: list[NDArray[np.float32]] = []
        asked: list[_Asked] = []
        matrices: list[Matrix] = []
        tells: list[Tell] = []
        for rows, _, tell in taken:
            if isinstance(rows, Encoded):
                parts.append(rows.x)
                asked.append(_Asked(len(rows.x), rows.warnings, tell))
            else:
                matrices.append(rows)
                tells.append(tell)
        if matrices:
            assert self._matrix is not None, "only a version whose inputs are numbers is asked about a matrix"
            x, found = self._matrix.encode(matrices)
            parts.append(x)
            for matrix, warnings, tell in zip(matrices, found, tells, strict=True):
                asked.append(_Asked(0 if warnings is None else len(matrix), warnings, tell))
        if not parts:
            return np.empty((0, 1), np.float32), asked
        return parts[0] if len(parts) == 1 else np.concatenate(parts), asked

    def _end(self, asked: Sequence[_Asked], call: asyncio.Future[tuple[NDArray[np.float32], float] | None]) -> None:
        self._running -= 1
        error = None if call.cancelled() else call.exception()
        if call.cancelled() or error is not None:
            logger.error("batch failed", exc_info=error)
            _forsake(asked)
        elif (found := call.result()) is None:
            for each in asked:
                _tell(each.tell, self._lane.expiry())
        else:
            _tell_all(asked, *found)
        self._plan()

    def _compute(self, x: NDArray[np.float32], entered: float) -> tuple[NDArray[np.float32], float] | None:
        """Compute in a thread, and say when that began: other calls may have held it. None where it came too late for all."""
        began = time.perf_counter()
        return None if self._lane.is_over(entered) else (self._network(x), began)


def _tell_all(asked: Sequence[_Asked], probabilities: NDArray[np.float32], began: float) -> None:
    ended = time.perf_counter()
    best = probabilities.argmax(axis=1).tolist()
    at = 0
    for rows, warnings, tell in asked:
        answer = None
        if warnings is not None:
            mine = slice(at, at + rows)
            answer = Answered(probabilities[mine], best[mine], warnings, began, ended, is_first=at == 0)
        _tell(tell, answer)
        at += rows


def _tell(tell: Tell, what: Answered | Busy | None) -> None:
    try:
        tell(what)
    except Exception:
        # it is no fault of those who are told next
        logger.exception("an answer was not delivered")


def _forsake(asked: Sequence[_Waiting | _Asked]) -> None:
    for each in asked:
        _tell(each.tell, None)
