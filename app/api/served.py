"""One version as the short way serves it: bodies read, encoded, answered together, written. Knows no request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from app.api.answers import JsonAnswers
from app.api.turns import Answered, Turns
from app.errors import FitserveError
from app.inference import Loaded
from app.learning.matrices import Matrix, MatrixReader
from app.learning.quick import CALL_CELLS, Encoded, QuickMatrix, QuickRows
from app.learning.rows import decode

logger = logging.getLogger(__name__)

#: is told the answer to a body, once, on the event loop; None where the route has to answer
Tell = Callable[[bytes | None], None]
#: bytes of a body of numbers, and of other JSON, that are read on the event loop: each takes about a millisecond at most.
#: A thread makes the encoder and the network of a large body run beside the loop; the parsers hold Python's lock anywhere
LOOP_BYTES, LOOP_ROWS_BYTES = 256 * 1024, 8 * 1024


class Served:
    """A loaded version, and what is worked out from it once.

    Args:
        most_rows: of one request; more go to the route, which refuses them.
    """

    def __init__(self, loaded: Loaded, most_rows: int) -> None:
        encoder, runtime = loaded.artifact.encoder, loaded.runtime
        self._network = runtime.probabilities
        self._most_rows = most_rows
        self._columns = len(encoder.inputs)
        self._matrix = QuickMatrix.of(encoder)
        self._rows = QuickRows(encoder, loaded.target)
        self._answers = JsonAnswers(loaded)
        multiplications = sum(weight.size for weight in loaded.artifact.weights.values())
        self._turns = Turns(self._network, self._matrix, multiplications if runtime.device == "cpu" else None)
        #: the header of every answer
        self.head = f"x-model: {loaded.version.model}@{loaded.version.version}\r\n".encode()

    def answer(self, form: str, body: bytes, reader: MatrixReader, tell: Tell) -> None:
        """Answer a body soon.

        Args:
            form: "json", "float32" or "npy".
        """
        if len(body) > LOOP_BYTES:
            call = asyncio.get_running_loop().run_in_executor(None, self._alone, form, body)
            call.add_done_callback(partial(_tell_result, tell))
            return
        rows = self._read(form, body, reader)
        if rows is None or len(rows) > self._most_rows:
            tell(None)
        else:
            self._turns.ask(rows, partial(self._write, tell))

    def _read(self, form: str, body: bytes, reader: MatrixReader) -> Matrix | Encoded | None:
        rows = None if self._matrix is None else reader.read(form, body, self._columns)
        if rows is not None or form != "json" or len(body) > LOOP_ROWS_BYTES:
            return rows
        try:
            cells = decode(form, body, self._rows.names, 0)
        except FitserveError:
            return None
        return None if cells.count > self._most_rows else self._rows.encode(cells)

    def _write(self, tell: Tell, found: Answered | None) -> None:
        answer = None
        try:
            if found is not None:
                answer = self._answers.write(found.probabilities, found.best, found.warnings)
        except Exception:
            logger.exception("an answer could not be written")
        tell(answer)

    def _alone(self, form: str, body: bytes) -> bytes | None:
        """Answer one large body of numbers beside the event loop."""
        if self._matrix is None:
            return None
        rows = MatrixReader().read(form, body, self._columns)
        if rows is None or len(rows) > self._most_rows:
            return None
        parts, warnings = [], []
        step = max(CALL_CELLS // self._columns, 1)
        for start in range(0, len(rows), step):
            x, (found,) = self._matrix.encode([rows[start : start + step]])
            if found is None:
                return None
            parts.append(self._network(x))
            warnings += [(row + start, text) for row, text in found]
        probabilities = np.concatenate(parts)
        return self._answers.write(probabilities, probabilities.argmax(axis=1).tolist(), warnings)


def _tell_result(tell: Tell, call: asyncio.Future[bytes | None]) -> None:
    error = None if call.cancelled() else call.exception()
    if error is not None:
        logger.error("a large body could not be answered", exc_info=error)
    tell(None if call.cancelled() or error is not None else call.result())
