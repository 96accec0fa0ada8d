"""One version as the fast path serves it: its encoders, its batcher, and the constant parts of its responses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.fast_path.batcher import Batcher, OnResult
from app.fast_path.encode import CALL_CELLS, Encoded, MatrixEncoder, RowEncoder, RowWarning
from app.fast_path.write import NativeWriter
from app.learning.encoding.numeric_inputs import Matrix
from app.learning.requests.prediction_rows import Rows
from app.learning.tables.label import label_text
from app.serving.admission import Lane
from app.serving.predictor import LoadedVersion

#: longest body of numbers that is read on the event loop, which takes about a millisecond. For a larger one the encoder and the
#: network run in a thread, beside the event loop; the parsers hold Python's lock in a thread, too
LOOP_BYTES = 256 * 1024


class FastVersion:
    """Fast-path state of one version. Holds no reference to it, so both are freed when the cache evicts the version.

    A request with more rows than one prediction may have goes to the route.
    """

    def __init__(self, loaded: LoadedVersion, lane: Lane) -> None:
        version, encoder, runtime = loaded.version, loaded.artifact.encoder, loaded.runtime
        self.key = version.key
        self.names = [each.name for each in encoder.inputs]
        self.width = len(self.names)
        self.writer = NativeWriter(loaded)
        #: constant parts of responses: a line of the native head, the first members of the Open Inference Protocol, the classes
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
        """Whether all inputs of the version are numbers."""
        return self._matrix is not None

    def encode(self, rows: Rows) -> Encoded | None:
        """Encode a few rows of any kind; None where the route has to answer."""
        return None if rows.count > self._most_rows else self._rows.encode(rows)

    def encode_known(self, rows: Rows) -> Encoded | None:
        """Encode a few rows as `encode` does; None also where the model does not have one of their columns."""
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
        """Compute many rows in a thread: probabilities, best classes and warnings; None where the route has to answer."""
        if len(rows) > self._most_rows:
            return None
        assert self._matrix is not None, "only a version whose inputs are all numbers is asked about a matrix"
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
