"""What a job shows of its run's events, and when its claim is void."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.jobs.progress import REPORT_SECONDS, ClaimVoid, JobProgress
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
from app.records.claims import Claim
from app.records.job import Job
from app.records.rooms import Rooms
from tests.stored_rows import submit


def claimed(rooms: Rooms) -> tuple[Job, Claim]:
    job = submit(rooms, optimizer={"learning_rate": 0.5})
    claim = rooms.claims.take(job.id, job.workflow_id)
    assert claim is not None
    return rooms.jobs.get(job.id), claim


def test_a_job_shows_its_runs_events_and_where_the_run_is(rooms: Rooms) -> None:
    job, claim = claimed(rooms)
    progress = JobProgress(rooms.claims, claim)
    scores: dict[str, float | None] = {"loss": 0.5, "accuracy": 0.75, "val_loss": None, "val_macro_f1": 0.25}
    epochs = [Epoch(n, 2, scores | {"loss": 1 / n}, 0.1, 1.5 * n, 1000.0) for n in (1, 2)]
    run: list[Event] = [
        DeviceChosen("cpu"),
        LoopChosen("graph"),
        TrainingWarning("odd"),
        *epochs,
        Progress(1, 2, 3, 4, 0.25, 9.5),
        Progress(2, 2, 4, 4, 1.0, 0.0),
        CheckpointWritten(Path("/checkpoint"), 1),
        LearningRateSettled(0.05),
        LogLine("é"),
    ]
    for event in run:
        progress.add(event)

    asyncio.run(progress.flush())

    running = rooms.jobs.get(job.id)
    assert ("cpu", "graph", 0.05) == (running.device, running.loop, running.spec["optimizer"]["learning_rate"])
    assert {"loss": 0.5, "accuracy": 0.75, "val_loss": None, "val_accuracy": None} == running.metrics
    assert {"epoch": 2, "epochs": 2, "step": 4, "steps": 4, "fraction": 1.0, "eta_seconds": 0.0} == running.progress
    events = [event.document() for event in rooms.jobs.events(job.id, job.last_event, 100)]
    assert ["warning", "epoch", "epoch", "log"] == [event["type"] for event in events]
    assert ["odd", "é"] == [event["message"] for event in (events[0], events[3])]
    names = ["epoch", "epochs", *scores, "learning_rate", "elapsed_seconds", "rows_per_second"]
    assert [(name, epochs[1].figures()[name]) for name in names] == list(events[2].items())[-len(names) :]


def test_what_was_committed_is_committed_once(rooms: Rooms) -> None:
    job, claim = claimed(rooms)
    progress = JobProgress(rooms.claims, claim)
    progress.add(LogLine("once"))

    for _ in range(2):
        asyncio.run(progress.flush())

    assert ["once"] == [event.body["message"] for event in rooms.jobs.events(job.id, job.last_event, 100)]


@pytest.mark.parametrize("events", [[], [LogLine("too late")]], ids=["nothing to commit", "an event"])
def test_a_void_claim_is_noticed_at_the_next_commit(rooms: Rooms, events: list[LogLine]) -> None:
    job, claim = claimed(rooms)
    progress = JobProgress(rooms.claims, claim)
    asyncio.run(progress.flush())
    last = rooms.jobs.cancel(job.id).last_event
    for event in events:
        progress.add(event)

    with pytest.raises(ClaimVoid):
        asyncio.run(progress.flush())

    assert last == rooms.jobs.get(job.id).last_event


def test_a_commit_is_due_some_time_after_the_last_one(rooms: Rooms) -> None:
    _, claim = claimed(rooms)
    progress = JobProgress(rooms.claims, claim)

    async def flush() -> list[bool]:
        before = progress.is_due
        await progress.flush()
        after = progress.is_due
        await asyncio.sleep(1.5 * REPORT_SECONDS)
        return [before, after, progress.is_due]

    assert [True, False, True] == asyncio.run(flush())
