"""From a child's events to its job's row. Knows neither the child nor what becomes of the job."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from app.errors import StorageFull, Unavailable
from app.records.job_report import JobReport
from app.records.jobs import Claim
from app.records.rooms import Rooms

logger = logging.getLogger(__name__)

#: the scores of an epoch that the job itself shows
METRICS = ("loss", "accuracy", "val_loss", "val_accuracy")
#: progress is committed at most this often
REPORT_SECONDS = 0.25


class JobProgress:
    """Gathers a child's events and commits them a few times a second."""

    def __init__(self, rooms: Rooms, claim: Claim) -> None:
        self._rooms = rooms
        self._claim = claim
        self._news: list[dict[str, Any]] = []
        self._progress: dict[str, Any] | None = None
        self._facts: dict[str, Any] = {}
        self._flushed = 0.0

    def add(self, event: dict[str, Any]) -> None:
        """Take one event; of progress and of facts the last one counts, of the others each."""
        if event["type"] == "progress":
            self._progress = {name: value for name, value in event.items() if name != "type"}
        elif event["type"] in ("device", "loop", "settled"):
            self._facts |= {name: value for name, value in event.items() if name != "type"}
        elif event["type"] != "ready":
            self._news.append(event)

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next commit."""
        return time.monotonic() - self._flushed >= REPORT_SECONDS

    async def flush(self) -> bool:
        """Commit what there is; False when the claim is void and the child is to be dropped."""
        self._flushed = time.monotonic()
        try:
            is_held = await asyncio.to_thread(self._write)
        except (StorageFull, Unavailable):
            logger.warning("progress not written", extra={"job_id": self._claim.job_id}, exc_info=True)
            return True
        self._news, self._progress, self._facts = [], None, {}
        return is_held

    def _write(self) -> bool:
        jobs = self._rooms.jobs
        if not (self._news or self._facts or self._progress):
            return jobs.is_held(self._claim)
        epochs = [event for event in self._news if event["type"] == "epoch"]
        metrics = {name: epochs[-1].get(name) for name in METRICS} if epochs else None
        return jobs.report(self._claim, JobReport(self._news, self._progress, metrics, **self._facts))
