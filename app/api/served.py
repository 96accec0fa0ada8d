"""One version as the short way serves it: bodies read, encoded, answered together, written. Knows no request."""

from __future__ import annotations

import asyncio

import numpy as np

from app.api.answers import JsonAnswers
from app.api.turns import Turns
from app.errors import FitserveError
from app.inference import Loaded
from app.learning.matrices import MatrixReader
from app.learning.quick import CALL_CELLS, QuickMatrix, QuickRows
from app.learning.rows import decode

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
        self._headers = [(b"x-model", f"{loaded.version.model}@{loaded.version.version}".encode())]

    def headers(self, answer: bytes) -> list[tuple[bytes, bytes]]:
        """Give the headers of an answer, as the route would."""
        return [
            *self._headers,
            (b"content-length", b"%d" % len(answer)),
            (b"content-type", b"application/json"),
        ]

    async def answer(self, form: str, body: bytes, reader: MatrixReader) -> bytes | None:
        """Answer a body; None where the route has to.

        Args:
            form: "json", "float32" or "npy".
        """
        if len(body) > LOOP_BYTES:
            return await asyncio.to_thread(self._alone, form, body)
        rows = None if self._matrix is None else reader.read(form, body, self._columns)
        if rows is not None:
            found = None if len(rows) > self._most_rows else await self._turns.ask(rows)
        elif form == "json" and len(body) <= LOOP_ROWS_BYTES:
            try:
                cells = decode(form, body, self._rows.names, 0)
            except FitserveError:
                return None
            encoded = None if cells.count > self._most_rows else self._rows.encode(cells)
            found = None if encoded is None else await self._turns.ask(encoded)
        else:
            return None
        return None if found is None else self._answers.write(found.probabilities, found.best, found.warnings)

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
