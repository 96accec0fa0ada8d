"""One prediction by a route, for the native protocol and the two others.

Read the body, wait for a place, load the version, then decode, compute and encode in a thread; time each part. Knows no
protocol.
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
    """A loaded version that answers one request; the parts of the request are timed."""

    def __init__(self, loaded: LoadedVersion, stopwatch: Stopwatch) -> None:
        self.loaded = loaded
        self._stopwatch = stopwatch
        self.columns = [column.name for column in loaded.artifact.encoder.inputs]

    def predict(self, rows: Rows, *, skips_bad: bool = False) -> Prediction:
        """Predict rows as `LoadedVersion.predict` does."""
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
    """A request for a prediction whose body was read, and which holds a place in the lane."""

    services: Services
    body: bytes
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    async def run(self, ref: Ref, work: Callable[[TimedVersion], Answer]) -> Answer:
        """Call `work` in a thread with the version that a reference means, and count the request for that version.

        Raises:
            NotFound, Corrupt: as `VersionCache.get`; or whatever `work` raises.
        """

        def predict() -> Answer:
            loaded = self.services.version_cache.get(ref)
            self.stopwatch.end("queue")
            with self.services.usage.measured(loaded.version.key, self.stopwatch):
                return work(TimedVersion(loaded, self.stopwatch))

        return await self.services.lanes.predictions.run(predict)


@asynccontextmanager
async def admit(request: Request, services: Services) -> AsyncIterator[AdmittedRequest]:
    """Read a request's body, then hold one of the places for predictions.

    Raises:
        Busy: too many predictions wait, or the time of this one is over.
        TooLarge, UnsupportedMedia, Malformed: as `read_body`.
    """
    lane = services.lanes.predictions
    lane.check()
    # the body is read before the place is taken: a client that sends slowly holds none
    body = await read_body(request, services.settings.max_predict_bytes)
    admitted = AdmittedRequest(services, body)
    async with lane.place():
        admitted.stopwatch.end("queue")
        yield admitted
