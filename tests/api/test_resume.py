"""A cancelled job that is resumed goes on after its last checkpoint: its earlier epochs are not trained again."""

from __future__ import annotations

from typing import Any

import httpx

from app.client import Job
from tests.conftest import Start
from tests.processes import until

#: a few seconds of training
FIT: dict[str, Any] = {"epochs": 400, "batch_size": 64, "early_stopping": None}
DATA = {"x": [[i % 7 / 7, i % 3 / 3] for i in range(60)], "y": [i % 2 for i in range(60)]}


def epochs(http: httpx.Client, job: Job) -> list[int]:
    """Return the epochs that a job's events report, in the order of the events."""
    after: str | None = "0"
    reported: list[int] = []
    while after is not None:
        page: dict[str, Any] = http.get(f"/api/v1/jobs/{job.id}/events", params={"limit": 500, "after": after}).json()
        reported += [event["epoch"] for event in page["items"] if event["type"] == "epoch"]
        after = page["next"]
    return reported


def test_a_resumed_job_goes_on_after_its_checkpoint(start: Start) -> None:
    service = start(checkpoint_seconds="0")
    with service.client() as client, httpx.Client(base_url=service.url, timeout=60) as http:
        job = client.train("resumed", data=DATA, validation=None, fit=FIT)
        until(lambda: epochs(http, job))
        client.cancel(job)
        # a checkpoint for each epoch: their numbers are those of the epochs
        checkpoint = max(int(file.name) for file in (service.data_dir / "checkpoints" / job.id).iterdir())
        before = epochs(http, job)
        client.resume(job)
        client.wait(job, timeout=120)
        after = epochs(http, job)[len(before) :]
        history = client.version("resumed")["history"]

    assert 1 <= checkpoint < after[0]
    assert list(range(after[0], FIT["epochs"] + 1)) == after
    assert FIT["epochs"] == len(history)
