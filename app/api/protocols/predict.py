"""A prediction for another server's protocol: body, version, rows, network, answer, all counted. Knows no protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import Request

from app.api.protocols.version_paths import named
from app.api.request_body import read_body
from app.learning.requests.prediction_rows import Rows, refuse_unknown_columns
from app.metrics.version_usage import Stopwatch
from app.serving.predictor import LoadedVersion, Prediction
from app.wiring import Services

Answer = TypeVar("Answer")
#: reads a body, predicts by `compute`, and writes the answer
Work = Callable[["Turn", bytes], Answer]


class Turn:
    """One request that is being answered by a version."""

    def __init__(self, loaded: LoadedVersion, watch: Stopwatch) -> None:
        self.loaded = loaded
        self._watch = watch
        self.columns = [each.name for each in loaded.artifact.encoder.inputs]

    def compute(self, rows: Rows) -> Prediction:
        """Predict rows whose columns the model knows: these protocols have no place for warnings.

        Raises:
            Invalid: there is another column; or as `LoadedVersion.predict`.
        """
        refuse_unknown_columns(rows, (*self.columns, self.loaded.target))
        self._watch.end("input")
        found = self.loaded.predict(rows)
        self._watch.rows = rows.count
        self._watch.end("infer")
        return found


async def answer(request: Request, services: Services, work: Work[Answer]) -> Answer:
    """Read a request's body, and answer it in a thread by the version that its path names.

    Raises:
        Busy: there are too many predictions.
        whatever `read_body`, `VersionCache.get` and `work` do.
    """
    lane = services.lanes.predictions
    lane.check()
    # a place is for work: a client that sends slowly has none
    body = await read_body(request, services.settings.max_predict_bytes)
    watch = Stopwatch()

    def run() -> Answer:
        loaded = services.version_cache.get(named(request))
        watch.end("queue")
        with services.usage.measured(loaded.version.key, watch):
            return work(Turn(loaded, watch), body)

    async with lane.place():
        return await lane.run(run)
