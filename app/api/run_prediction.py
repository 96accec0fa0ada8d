"""One prediction by route, for all three protocols: body, place, version, rows, network, answer, all counted.

Knows no protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Request

from app.api.request_body import read_body
from app.learning.requests.prediction_rows import Rows, refuse_unknown_columns
from app.metrics.version_usage import Stopwatch
from app.records.ref import Ref
from app.serving.predictor import LoadedVersion, Prediction
from app.wiring import Services

Answer = TypeVar("Answer")


class TimedVersion:
    """A loaded version that answers one request, each part of which is timed."""

    def __init__(self, loaded: LoadedVersion, stopwatch: Stopwatch) -> None:
        self.loaded = loaded
        self._stopwatch = stopwatch
        self.columns = [each.name for each in loaded.artifact.encoder.inputs]

    def predict(self, rows: Rows, *, skips_bad: bool = False) -> Prediction:
        """Predict rows, as `LoadedVersion.predict` does."""
        self._stopwatch.rows = rows.count
        self._stopwatch.end("input")
        prediction = self.loaded.predict(rows, skips_bad=skips_bad)
        self._stopwatch.end("infer")
        return prediction

    def predict_known(self, rows: Rows) -> Prediction:
        """Predict rows for a protocol that has no place for warnings.

        Raises:
            Invalid: a column that the model does not know; or as `LoadedVersion.predict`.
        """
        refuse_unknown_columns(rows, (*self.columns, self.loaded.target))
        return self.predict(rows)


@dataclass
class AdmittedRequest:
    """A request for a prediction whose body was read, and which holds a place."""

    services: Services
    body: bytes
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    async def answer(self, ref: Ref, work: Callable[[TimedVersion], Answer]) -> Answer:
        """Load the version that a reference means, and work with it, in a thread; the version's usage is counted.

        Raises:
            whatever `VersionCache.get` and `work` do.
        """

        def run() -> Answer:
            loaded = self.services.version_cache.get(ref)
            self.stopwatch.end("queue")
            with self.services.usage.measured(loaded.version.key, self.stopwatch):
                return work(TimedVersion(loaded, self.stopwatch))

        return await self.services.lanes.predictions.run(run)


@asynccontextmanager
async def admitted(request: Request, services: Services) -> AsyncIterator[AdmittedRequest]:
    """Read a request's body, and hold one of the places for predictions.

    Raises:
        Busy: there are too many predictions.
        whatever `read_body` does.
    """
    lane = services.lanes.predictions
    lane.check()
    # a place is for work: a client that sends slowly has none
    body = await read_body(request, services.settings.max_predict_bytes)
    prediction = AdmittedRequest(services, body)
    async with lane.place():
        prediction.stopwatch.end("queue")
        yield prediction
