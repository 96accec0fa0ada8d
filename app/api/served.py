"""One version as the short way serves it: bodies read, encoded, answered together, written. Knows no request."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import numpy as np

from app.admission import Lane
from app.api.answers import JsonAnswers, to_json
from app.api.turns import Answered, Turns
from app.errors import Busy, FitserveError
from app.inference import Loaded
from app.learning.matrices import Matrix, MatrixReader
from app.learning.quick import CALL_CELLS, Encoded, QuickMatrix, QuickRows
from app.learning.rows import decode

logger = logging.getLogger(__name__)

#: is told the answer to a body, once, on the event loop; None where the route has to answer
Tell = Callable[[bytes | Busy | None], None]
#: bytes of a body of numbers, and of other JSON, that are read on the event loop: each takes about a millisecond at most.
#: A thread makes the encoder and the network of a large body run beside the loop; the parsers hold Python's lock anywhere
LOOP_BYTES, LOOP_ROWS_BYTES = 256 * 1024, 8 * 1024


class Served:
    """A loaded version, and what is worked out from it once; more rows than one request may have go to the route."""

    def __init__(self, loaded: Loaded, _: object, lane: Lane) -> None:
        encoder, runtime = loaded.artifact.encoder, loaded.runtime
        self._network = runtime.probabilities
        self._loaded = loaded
        self._most_rows = loaded.most_rows
        self._columns = len(encoder.inputs)
        self._matrix = QuickMatrix.of(encoder)
        self._rows = QuickRows(encoder, loaded.target)
        self._answers = JsonAnswers(loaded)
        multiplications = sum(weight.size for weight in loaded.artifact.weights.values())
        self._turns = Turns(self._network, self._matrix, multiplications if runtime.device == "cpu" else None, lane)
        #: the header of every answer
        self.head = f"x-model: {loaded.version.model}@{loaded.version.version}\r\n".encode()

    def read(self, form: str, body: bytes, reader: MatrixReader) -> Matrix | Encoded | None:
        """Read a short body on the event loop; None where it is long, or the route has to say what is wrong.

        Args:
            form: "json", "float32" or "npy".
        """
        if len(body) > LOOP_BYTES:
            return None
        rows = None if self._matrix is None else reader.read(form, body, self._columns)
        if rows is None and form == "json" and len(body) <= LOOP_ROWS_BYTES:
            try:
                cells = decode(form, body, self._rows.names, 0)
            except FitserveError:
                return None
            return None if cells.count > self._most_rows else self._rows.encode(cells)
        return None if rows is None or len(rows) > self._most_rows else rows

    def answer(self, rows: Matrix | Encoded, entered: float, tell: Tell) -> None:
        """Answer soon what was read."""
        self._turns.ask(rows, entered, partial(self._write, tell))

    def _write(self, tell: Tell, found: Answered | Busy | None) -> None:
        if not isinstance(found, Answered):
            tell(found)
            return
        answer = None
        try:
            answer = self._answers.write(found.probabilities, found.best, found.warnings)
        except Exception:
            logger.exception("an answer could not be written")
        tell(answer)

    def answer_long(self, form: str, body: bytes) -> bytes | None:
        """Answer a long body in a thread; None where the route has to.

        Raises:
            FitserveError: there is something wrong with it, which the route says better.
        """
        rows = None if self._matrix is None else MatrixReader().read(form, body, self._columns)
        if rows is not None and self._matrix is not None:
            return self._in_parts(self._matrix, rows)
        if form != "json":
            return None
        cells = decode(form, body, self._rows.names, 0)
        return to_json(self._loaded.predict(cells), None)

    def _in_parts(self, matrix: QuickMatrix, rows: Matrix) -> bytes | None:
        if len(rows) > self._most_rows:
            return None
        parts, warnings = [], []
        step = max(CALL_CELLS // self._columns, 1)
        for start in range(0, len(rows), step):
            x, (found,) = matrix.encode([rows[start : start + step]])
            if found is None:
                return None
            parts.append(self._network(x))
            warnings += [(row + start, text) for row, text in found]
        probabilities = np.concatenate(parts)
        return self._answers.write(probabilities, probabilities.argmax(axis=1).tolist(), warnings)
