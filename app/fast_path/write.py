"""Bodies of native responses, whose constant part is written once for each version. Knows no request."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import orjson
from numpy.typing import NDArray

from app.fast_path.encode import RowWarning
from app.learning.encoding.cell_warnings import MAX_WARNINGS
from app.serving.predictor import LoadedVersion


class NativeWriter:
    """Writes the bytes that `to_json` writes, for one version."""

    def __init__(self, loaded: LoadedVersion) -> None:
        version, classes = loaded.version, loaded.artifact.classes
        constant = {"model": version.model, "version": version.version, "classes": classes}
        self._start = orjson.dumps(constant)[:-1] + b',"predictions":['
        self._labels = [orjson.dumps(label) for label in classes]

    def write(self, probabilities: NDArray[np.float32], best: Sequence[int], warnings: Sequence[RowWarning]) -> bytes:
        """Write a body.

        Args:
            probabilities: float32 (n, k).
            best: the index of the most probable class of each row.
            warnings: in order of rows.
        """
        shown = b",".join([b'{"row":%d,%b' % warning for warning in warnings[:MAX_WARNINGS]])
        return b'%b%b],"probabilities":%b,"warnings":[%b],"warnings_total":%d}' % (
            self._start,
            b",".join([self._labels[i] for i in best]),
            orjson.dumps(probabilities, option=orjson.OPT_SERIALIZE_NUMPY),
            shown,
            len(warnings),
        )
