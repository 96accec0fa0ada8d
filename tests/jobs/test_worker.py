"""The worker on real jobs: cancels, crashes, stops, and two jobs at once. Training processes are killed by their id."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.client import Client, Conflict, Job, JobCancelled, JobFailed, NotFound
from tests.cgroup import memory_limit
from tests.conftest import Start
from tests.processes import is_alive, spawn, trainers, until
from tests.service import Service

DATA = {"x": [[i % 7 / 7, i % 3 / 3] for i in range(60)], "y": [i % 2 for i in range(60)]}
PLAIN: dict[str, Any] = {"data": DATA, "validation": None}
BRIEF: dict[str, Any] = {**PLAIN, "fit": {"epochs": 2}}
#: some seconds of training, in fewer steps than what XLA is for
SHORT: dict[str, Any] = {**PLAIN, "fit": {"epochs": 1900, "batch_size": 64}}
#: more seconds of training than another training process needs to start, under XLA
LONG: dict[str, Any] = {**PLAIN, "fit": {"epochs": 3000}}
#: XLA has no deterministic operations, so that the first epoch ends seconds sooner
ENDLESS: dict[str, Any] = {**PLAIN, "fit": {"epochs": 100_000, "deterministic": True}}
#: a network large enough for one epoch to take some seconds
SLOW_EPOCH: dict[str, Any] = {
    "data": {"x": [[i % 7 / 7] for i in range(6000)], "y": [i % 2 for i in range(6000)]},
    "validation": None,
    "network": {"layers": [{"units": 512}, {"units": 512}]},
}


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of this module alone: its tests kill the service's processes."""
    running = Service(tmp_path_factory.mktemp("worker") / "data").start()
    yield running
    running.kill_all()


@pytest.fixture(scope="module")
def own_client(own_service: Service) -> Iterator[Client]:
    with own_service.client() as connected:
        yield connected


def reach_epoch(client: Client, job: Job, attempt: int = 1) -> Job:
    """Wait until an attempt at a job has trained for an epoch, and return the job."""

    def in_training() -> Job | None:
        now = client.job(job)
        return now if now.document["attempt"] == attempt and now.progress["epoch"] else None

    return until(in_training)


def reach_attempt(client: Client, job: Job, attempt: int) -> None:
    """Wait until a worker has taken a job this often."""
    until(lambda: client.job(job).document["attempt"] == attempt)


def kill_training_process(own_service: Service, client: Client, job: Job, attempt: int) -> None:
    """Kill the process that trains in this attempt, as the kernel does when memory is short."""
    reach_epoch(client, job, attempt)
    (pid,) = trainers(own_service)
    os.kill(pid, signal.SIGKILL)


def test_a_cancel_ends_the_training_process_and_nothing_is_published(own_service: Service, own_client: Client) -> None:
    job = reach_epoch(own_client, own_client.train("cancelled", **ENDLESS))
    (process,) = trainers(own_service)

    began = time.monotonic()
    cancelled = own_client.cancel(job)
    until(lambda: not is_alive(process))
    seconds = time.monotonic() - began

    assert cancelled.status == "cancelled"
    assert cancelled.document["terminal"]
    assert seconds < 4
    with pytest.raises(JobCancelled):
        own_client.wait(job, timeout=10)
    with pytest.raises(Conflict, match="is cancelled; only"):
        own_client.cancel(job)
    with pytest.raises(NotFound):
        own_client.model("cancelled")


def test_a_cancelled_job_that_is_resumed_ends_with_one_version(own_client: Client) -> None:
    job = reach_epoch(own_client, own_client.train("resumed", **SHORT))
    own_client.cancel(job)

    resumed = own_client.resume(job)
    ended = own_client.wait(resumed, timeout=120)

    assert ("queued", 1, 2) == (resumed.status, ended.version, ended.document["attempt"])
    with pytest.raises(Conflict, match="succeeded"):
        own_client.resume(job)


def test_a_cancelled_queued_job_never_runs(own_client: Client) -> None:
    first = reach_epoch(own_client, own_client.train("queued-first", **ENDLESS))
    second = own_client.train("queued-second", **BRIEF)

    cancelled = own_client.cancel(second)
    own_client.cancel(first)
    own_client.wait(own_client.train("queued-third", **BRIEF), timeout=120)

    assert ("queued", "cancelled") == (second.status, cancelled.status)
    left = own_client.job(second)
    assert ("cancelled", 0, None) == (left.status, left.document["attempt"], left.document["started_at"])


def test_a_cancel_at_any_moment_leaves_a_job_either_cancelled_or_published(own_client: Client) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    cancelled, published = [], []

    for _ in range(5):
        job = own_client.train("raced", **BRIEF)
        if moments.random() < 0.7:
            reach_attempt(own_client, job, 1)
        time.sleep(moments.uniform(0, 1.5))
        try:
            cancelled.append(own_client.cancel(job))
        except Conflict:
            published.append(job)

    own_client.wait(own_client.train("raced", **BRIEF), timeout=120)
    assert ["cancelled"] * len(cancelled) == [own_client.job(job).status for job in cancelled]
    assert list(range(1, len(published) + 1)) == [own_client.job(job).version for job in published]
    assert len(published) + 1 == own_client.model("raced")["latest_version"]


def test_a_job_whose_process_always_dies_fails_and_the_next_succeed(own_service: Service, own_client: Client) -> None:
    poison = own_client.train("poison", **ENDLESS)
    behind = [own_client.train("behind-poison", **BRIEF) for _ in range(2)]

    for attempt in (1, 2, 3):
        kill_training_process(own_service, own_client, poison, attempt)

    with pytest.raises(JobFailed) as failed:
        own_client.wait(poison, timeout=60)
    assert ("worker_crashed", 3) == (failed.value.code, own_client.job(poison).document["attempt"])
    assert [1, 2] == [own_client.wait(job, timeout=120).version for job in behind]


def test_a_job_whose_process_dies_once_starts_again_and_says_so(own_service: Service, own_client: Client) -> None:
    events: list[dict[str, Any]] = []
    job = own_client.train("once", **SHORT)

    kill_training_process(own_service, own_client, job, 1)
    ended = own_client.wait(job, on_event=events.append, timeout=120)

    assert (1, 2) == (ended.version, ended.document["attempt"])
    shown = [event.get("status", event["type"]) for event in events if event["type"] in ("status", "warning")]
    assert ["queued", "running", "warning", "running", "succeeded"] == shown
    assert list(range(1, len(events) + 1)) == [event["id"] for event in events]


def test_the_death_of_a_warm_process_is_charged_to_no_job(own_service: Service, own_client: Client) -> None:
    own_client.wait(own_client.train("warm", **BRIEF), timeout=120)
    (warm,) = until(lambda: trainers(own_service))

    os.kill(warm, signal.SIGKILL)
    ended = own_client.wait(own_client.train("warm", **BRIEF), timeout=120)

    (again,) = until(lambda: trainers(own_service))
    assert again != warm
    assert (2, 1) == (ended.version, ended.document["attempt"])


def test_progress_is_seen_within_an_epoch_and_at_the_end_of_each(own_client: Client) -> None:
    job = own_client.train("progress", **SLOW_EPOCH, fit={"epochs": 2, "batch_size": 1})

    def inside_an_epoch() -> dict[str, Any] | None:
        now = own_client.job(job).progress
        return now if now["step"] and now["step"] < now["steps"] else None

    inside = until(inside_an_epoch)
    epochs: list[dict[str, Any]] = []
    ended = own_client.wait(job, on_event=lambda event: epochs.append(event) if event["type"] == "epoch" else None)

    assert 6000 == inside["steps"]
    assert 0 < inside["fraction"] < 1
    assert inside["eta_seconds"] > 0
    assert [(1, 2), (2, 2)] == [(event["epoch"], event["epochs"]) for event in epochs]
    assert (2, 6000, 1.0) == (ended.progress["epoch"], ended.progress["step"], ended.progress["fraction"])


def test_max_seconds_ends_training_in_time_and_keeps_the_weights(own_client: Client) -> None:
    job = own_client.train("bounded", **PLAIN, fit={"epochs": 100_000, "max_seconds": 5})

    ended = own_client.wait(job, timeout=60)

    history = own_client.version(ended.ref)["history"]
    assert 1 <= len(history) < 100_000
    assert history[-1]["elapsed_seconds"] < 10


def test_a_first_epoch_longer_than_max_seconds_is_a_timeout(own_client: Client) -> None:
    job = own_client.train("too-slow", **SLOW_EPOCH, fit={"epochs": 2, "batch_size": 1, "max_seconds": 0.2})

    with pytest.raises(JobFailed) as failed:
        own_client.wait(job, timeout=60)

    assert "timeout" == failed.value.code


def test_deaths_of_the_whole_service_are_charged_to_no_job(start: Start) -> None:
    service = start()
    with service.client() as client:
        job = client.train("survivor", **BRIEF)
    for attempt in (1, 2, 3):
        with service.client() as client:
            reach_attempt(client, job, attempt)
        service.kill_all()
        service.start()

    with service.client() as client:
        ended = client.wait(job, timeout=120)

    assert (1, 4) == (ended.version, ended.document["attempt"])


def test_a_worker_requeues_its_job_on_sigterm_and_later_takes_it_up(start: Start) -> None:
    service = start(workers="0")
    with service.client() as client:
        job = client.train("apart", **SHORT)
        worker = spawn(service.data_dir, "work")
        reach_epoch(client, job)

        worker.terminate()
        worker.communicate(timeout=30)
        stopped = client.job(job)
        again = spawn(service.data_dir, "work")
        ended = client.wait(job, timeout=120)
        again.terminate()
        again.communicate(timeout=30)

    assert ("queued", None) == (stopped.status, stopped.progress["epoch"])
    assert (1, 2) == (ended.version, ended.document["attempt"])
    assert (0, 0) == (worker.returncode, again.returncode)


@pytest.mark.memory_group
def test_a_process_killed_for_want_of_memory_fails_its_job_alone(start: Start) -> None:
    # Keras alone needs more, even where its files are in memory already
    with memory_limit(200 * 1024**2) as members:
        service = start(workers="0")
        worker = spawn(service.data_dir, "work")
        members.write_text(str(worker.pid))
        try:
            with service.client() as client:
                with pytest.raises(JobFailed, match=r"ran out of memory\. It was estimated to need \d+ MB\.") as failed:
                    client.wait(client.train("too-much", **BRIEF), timeout=120)
                workers = client.system()["workers"]
        finally:
            worker.terminate()
            worker.communicate(timeout=30)

    assert ("out_of_memory", 1) == (failed.value.code, failed.value.job.document["attempt"])
    assert ["alive"] == [worker["state"] for worker in workers]
    assert 0 == worker.returncode


def test_a_second_worker_of_one_name_is_refused(own_service: Service) -> None:
    second = spawn(own_service.data_dir, "work")

    _, errors = second.communicate(timeout=60)

    assert 1 == second.returncode
    assert (
        f"a worker named 'worker' (--worker-name) runs on the data directory {own_service.data_dir} already" in errors
    )


def test_two_slots_run_two_jobs_at_once_and_then_keep_one_process_warm(start: Start) -> None:
    service = start(workers="2")
    with service.client() as client:
        jobs = [client.train("twins", **LONG) for _ in range(2)]

        until(lambda: all(client.job(job).status == "running" and client.job(job).progress["epoch"] for job in jobs))
        versions = {client.wait(job, timeout=120).version for job in jobs}

    assert {1, 2} == versions
    until(lambda: len(trainers(service)) == 1)


def test_a_worker_leaves_the_folders_of_another_with_a_longer_name(rooms: Any, tmp_path: Path) -> None:
    with rooms.blobs.staging("train-worker-2") as theirs, rooms.blobs.staging("train-worker") as ours:
        rooms.blobs.sweep("train-worker")

        assert (True, False) == (theirs.exists(), ours.exists())
