"""One version as the short way serves it: encoded, answered together. Knows no request."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.fast_path.batcher import Batcher, OnResult
from app.fast_path.encode import CALL_CELLS, Encoded, MatrixEncoder, RowEncoder, RowWarning
from app.fast_path.parse import Matrix
from app.fast_path.write import AnswerWriter
from app.learning.requests.prediction_rows import Rows
from app.learning.tables.label import label_text
from app.serving.admission import Lane
from app.serving.predictor import LoadedVersion

#: bytes of a body of numbers that are read on the event loop: each takes about a millisecond at most. A thread makes the
#: encoder and the network of a large body run beside the loop; the parsers hold Python's lock anywhere
LOOP_BYTES = 256 * 1024


class FastVersion:
    """What is worked out once from a loaded version, which it does not hold: who forgets that, forgets this.

    More rows than one request may have go to the route.
    """

    def __init__(self, loaded: LoadedVersion, lane: Lane) -> None:
        version, encoder, runtime = loaded.version, loaded.artifact.encoder, loaded.runtime
        self.key = version.key
        self.names = [each.name for each in encoder.inputs]
        self.width = len(self.names)
        self.answers = AnswerWriter(loaded)
        #: what stands in every answer: the contract's line of the head, V2's first fields, and the classes as texts
        self.line = f"x-model: {version.model}@{version.version}\r\n".encode()
        self.head = {"model_name": version.model, "model_version": str(version.version)}
        self.classes = [label_text(label) for label in loaded.artifact.classes]
        self._network = runtime.probabilities
        self._most_rows = loaded.most_rows
        self._matrix = MatrixEncoder.of(encoder)
        self._rows = RowEncoder(encoder, loaded.target)
        multiplications = sum(weight.size for weight in loaded.artifact.weights.values())
        self._batcher = Batcher(self._network, self._matrix, multiplications, runtime.cpu_rows, lane)

    @property
    def takes_matrices(self) -> bool:
        """Whether all its inputs are numbers."""
        return self._matrix is not None

    def encode(self, rows: Rows) -> Encoded | None:
        """Encode a few rows of any kind; None where the route has to."""
        return None if rows.count > self._most_rows else self._rows.encode(rows)

    def encode_known(self, rows: Rows) -> Encoded | None:
        """Encode a few rows; None where a column of theirs is none of the model's, too."""
        is_known = all(name in self._rows.known for name in rows.columns)
        return self.encode(rows) if is_known else None

    def submit(self, rows: Matrix | Encoded, entered: float, on_result: OnResult) -> None:
        """Have the network compute soon; the result is None where the route has to answer.

        Args:
            entered: when the request entered the lane.
        """
        if len(rows) > self._most_rows:
            on_result(None)
        else:
            self._batcher.submit(rows, entered, on_result)

    def compute(self, rows: Matrix) -> tuple[NDArray[np.float32], list[int], list[RowWarning]] | None:
        """Compute many rows in a thread: probabilities, best classes and warnings; None where the route has to."""
        if len(rows) > self._most_rows:
            return None
        assert self._matrix is not None, "only a version whose inputs are numbers is asked about a matrix"
        parts, warnings = [], list[RowWarning]()
        step = max(CALL_CELLS // self.width, 1)
        for start in range(0, len(rows), step):
            x, (found,) = self._matrix.encode([rows[start : start + step]])
            if found is None:
                return None
            parts.append(self._network(x))
            warnings += [(row + start, text) for row, text in found]
        probabilities = np.concatenate(parts)
        return probabilities, probabilities.argmax(axis=1).tolist(), warnings
