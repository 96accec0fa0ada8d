"""From the events of a run to its job's row. Knows neither the training process nor what becomes of the job."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import assert_never

from app.errors import StorageFull, Unavailable
from app.learning.training.events import (
    CheckpointWritten,
    DeviceChosen,
    Epoch,
    Event,
    LearningRateSettled,
    LogLine,
    LoopChosen,
    Progress,
    TrainingWarning,
)
from app.records.claims import Claim, Claims
from app.records.job_report import JobReport

logger = logging.getLogger(__name__)

#: least time between two commits of a job's progress
REPORT_SECONDS = 0.25
#: the scores of an epoch that the job itself shows
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")


class ClaimVoid(Exception):
    """The job was cancelled, or claimed again: this attempt may not write to it any more."""


class JobProgress:
    """Gathers the events of a run, and commits them a few times a second."""

    def __init__(self, claims: Claims, claim: Claim) -> None:
        self._claims, self._claim = claims, claim
        self._events: list[Mapping[str, object]] = []
        #: the report that the next commit makes, without its events
        self._report = JobReport()
        self._flushed = 0.0

    def add(self, event: Event) -> None:
        """Take one event: it becomes an event of the job, or replaces what the job shows."""
        report = self._report
        match event:
            case DeviceChosen(device=device):
                self._report = replace(report, device=device)
            case LoopChosen(loop=loop):
                self._report = replace(report, loop=loop)
            case LearningRateSettled(learning_rate=rate):
                self._report = replace(report, learning_rate=rate)
            case Progress():
                self._report = replace(report, progress=_without_type(asdict(event)))
            case Epoch(scores=scores):
                self._report = replace(report, metrics={name: scores.get(name) for name in METRICS})
                self._events.append({"type": event.type, **event.figures()})
            case TrainingWarning() | LogLine():
                self._events.append({"type": event.type, "message": event.message})
            case CheckpointWritten():
                # the job shows no checkpoints
                pass
            case _:
                assert_never(event)

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next commit."""
        return time.monotonic() - self._flushed >= REPORT_SECONDS

    async def flush(self) -> None:
        """Commit what there is; where the database cannot be written now, the next call does.

        Raises:
            ClaimVoid: nothing was committed, and nothing will be.
        """
        self._flushed = time.monotonic()
        try:
            is_held = await asyncio.to_thread(self._write, replace(self._report, events=tuple(self._events)))
        except (StorageFull, Unavailable):
            logger.warning("progress not written", extra={"job_id": self._claim.job_id}, exc_info=True)
            return
        self._events, self._report = [], JobReport()
        if not is_held:
            raise ClaimVoid

    def _write(self, report: JobReport) -> bool:
        if report == JobReport():
            return self._claims.is_held(self._claim)
        return self._claims.report(self._claim, report)


def _without_type(document: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in document.items() if name != "type"}
