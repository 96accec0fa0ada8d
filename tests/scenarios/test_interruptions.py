"""Training processes killed at random moments, again and again: the weights are those of a run left alone.

`make test-resume CYCLES=50` kills more often.
"""

from __future__ import annotations

import os
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.jobs.messages import MESSAGES, REQUESTS, Done, Failed, TrainRequest
from app.learning.training.events import CheckpointWritten, LoopChosen
from app.records.checkpoints import Checkpoints
from app.storage.blobs import LocalBlobs
from app.system.child_process import command
from tests.jobs.test_training_child import prepare, table
from tests.service import ROOT

CYCLES = int(os.environ.get("RESUME_CYCLES", 2))
SEED = int(os.environ.get("RESUME_SEED", 20))
#: some seconds of steps of about a millisecond each, too few of them for XLA
GRAPH: dict[str, Any] = {
    "network": {"layers": [{"units": 400, "dropout": 0.2}, {"units": 400}]},
    "fit": {"epochs": 200, "batch_size": 16, "early_stopping": None},
}
XLA: dict[str, Any] = {
    "network": {"layers": [{"units": 100, "dropout": 0.2}, {"units": 100}], "batch_norm": True},
    "fit": {"epochs": 260, "batch_size": 16, "early_stopping": {"patience": 260}, "class_weight": "balanced"},
}


def attempt(request: TrainRequest, room: Checkpoints, kill_after: float | None) -> tuple[Done | None, str, float]:
    """Run a training process as a worker does, and kill it this many seconds after it began to train.

    Returns:
        Its last message, or None where it was killed; the loop that it chose; and the seconds that it trained.
    """
    latest = room.find("job_1")
    folder = request.folder / f"attempt-{time.monotonic_ns()}"
    folder.mkdir()
    child = subprocess.Popen(
        command("app.jobs.training_child"),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    loop, began = "", time.monotonic()
    killer = threading.Timer(3600 if kill_after is None else kill_after, child.kill)
    try:
        child.stdin.write(REQUESTS.encode(replace(request, folder=folder, checkpoint=latest)))
        child.stdin.flush()
        for line in child.stdout:
            if not line.endswith(b"\n"):
                break
            message = MESSAGES.decode(line)
            if isinstance(message, LoopChosen):
                loop, began = message.loop, time.monotonic()
                killer.start()
            elif isinstance(message, CheckpointWritten):
                room.add("job_1", message.file)
            elif isinstance(message, Done):
                return message, loop, time.monotonic() - began
            assert not isinstance(message, Failed), message
    finally:
        killer.cancel()
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()
    return None, loop, time.monotonic() - began


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[None]]]:
    """The runs in each loop, both at once: each has one process at a time."""
    with ThreadPoolExecutor() as pool:
        specs = {"graph": GRAPH, "xla": XLA}
        yield {loop: pool.submit(interrupt, tmp_path_factory.mktemp(loop), loop, spec) for loop, spec in specs.items()}


@pytest.mark.parametrize("loop", ["graph", "xla"])
def test_a_job_that_is_killed_at_any_moment_ends_with_the_same_weights(
    interrupted: dict[str, Future[None]], loop: str
) -> None:
    interrupted[loop].result()


def interrupt(folder: Path, loop: str, spec: dict[str, Any]) -> None:
    """Kill runs of a job until there were enough kills, and compare each run's weights with those of one left alone."""
    request = replace(prepare(folder, spec, table(rows=160)), checkpoint_seconds=0.2)
    alone, found, seconds = attempt(request, Checkpoints(LocalBlobs(folder / "alone")), None)
    assert alone is not None
    assert loop == found
    rng = random.Random(SEED)
    kills = resumed = runs = 0

    while kills < CYCLES:
        room = Checkpoints(LocalBlobs(folder / f"run-{runs}"))
        runs += 1
        done = None
        while done is None:
            is_whole = room.find("job_1") is None
            resumed += not is_whole
            done, _, took = attempt(request, room, rng.uniform(0, seconds) if kills < CYCLES else None)
            kills += done is None
            if is_whole and done is not None:
                # the machine has become faster: a later moment would be after the end of the run
                seconds = took
        assert alone.version.weights_sha256 == done.version.weights_sha256
        losses = [[entry["loss"] for entry in each.version.history] for each in (alone, done)]
        assert losses[0] == losses[1]
    print(f"\n{loop}: {kills} kills and {resumed} resumptions in {runs} runs of {seconds:.1f} s, one SHA-256")
    assert resumed
