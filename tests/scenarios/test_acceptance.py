"""Processes of a service killed at random moments while jobs come in: each acknowledged job ends once.

`CRASH_CYCLES=200 pytest tests/scenarios/test_acceptance.py` kills more often; `CRASH_SEED` repeats the moments of a run.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.client import Client, Job
from tests.processes import is_alive, trainers, until
from tests.service import Service

CYCLES = int(os.environ.get("CRASH_CYCLES", "5"))
SEED = int(os.environ.get("CRASH_SEED", str(random.randrange(2**32))))
CYCLE_SECONDS = 10
SUBMITTERS = 3
#: most jobs that wait or run when another is submitted
WAITING = 4
MODELS = ("left", "right")
DATA: dict[str, Any] = {"x": [[i % 7 / 7, i % 3 / 3] for i in range(60)], "y": [i % 2 for i in range(60)]}
#: deaths of its training process that a job survives
CHILD_DEATHS = 2


@dataclass
class Crowd:
    """Clients that submit jobs, whatever happens to the service, and remember what it acknowledged."""

    service: Service
    seed: int
    acknowledged: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def submitting(self) -> Iterator[None]:
        threads = [threading.Thread(target=self._submit, args=(self.seed + i,)) for i in range(SUBMITTERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _submit(self, seed: int) -> None:
        moments = random.Random(seed)
        while not self._over.wait(moments.uniform(0, 1)):
            is_tiny = moments.random() < 0.4
            # jobs that are not tiny train for some seconds
            epochs = 2 if is_tiny else moments.randint(60, 150)
            body = {"data": DATA, "validation": None, "fit": {"epochs": epochs}}
            self._submit_one(moments.choice(MODELS), body, str(uuid.UUID(int=moments.getrandbits(128))))

    def _submit_one(self, model: str, body: dict[str, Any], key: str) -> None:
        """Send one job, with the same key until there is an answer: where an answer is lost the job may be stored."""
        is_sent = False
        while is_sent or not self._over.is_set():
            try:
                if not is_sent and self._waiting() >= WAITING:
                    time.sleep(0.2)
                    continue
                is_sent = True
                answer = httpx.post(
                    f"{self.service.url}/api/v1/models/{model}/train",
                    json=body,
                    headers={"Idempotency-Key": key},
                    timeout=20,
                )
            except httpx.TransportError:
                time.sleep(0.1)
                continue
            if answer.status_code == 202:
                self.acknowledged.append(answer.json()["id"])
                return
            # while its parser dies or it stops, the service asks to try again
            if answer.status_code != 503:
                self.refused.append(answer.text)
                return

    def _waiting(self) -> int:
        queue = httpx.get(f"{self.service.url}/api/v1/system", timeout=20).json()["queue"]
        return int(queue["queued"] + queue["running"])


class Killer:
    """Kills processes of the service, most often in mid-training."""

    def __init__(self, service: Service, seed: int) -> None:
        self._service = service
        self._moments = random.Random(seed)
        self._child_deaths: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def strike(self) -> None:
        """Wait for a moment, kill, see that no training process is left over, and have the service run again."""
        job = self._find_training() if self._moments.random() < 0.8 else None
        time.sleep(self._moments.uniform(0, 1 if job else 3))
        before = trainers(self._service)
        target = self._moments.choice(["api", "worker", "everything", *(["child"] if job else [])])
        if job and target == "child" and self._child_deaths[job] == CHILD_DEATHS:
            target = "worker"
        self.done[f"{target} {'in training' if job else 'at any time'}"] += 1
        if target == "child" and job:
            self._child_deaths[job] += 1
            _kill(before)
        elif target == "worker":
            _kill(self._service.find("app work"))
            until(lambda: not any(is_alive(pid) for pid in before), 5)
        else:
            _kill([self._service.process.pid] if target == "api" else list(self._service.processes()))
            self._service.process.wait(10)
            until(lambda: not self._service.processes(), 5)
            self._service.start()

    def _find_training(self) -> str | None:
        """Return the id of a job that makes progress, or None where no job does within 30 seconds."""
        deadline = time.monotonic() + 30
        before: dict[str, int | None] = {}
        while time.monotonic() < deadline:
            running = httpx.get(f"{self._service.url}/api/v1/jobs?status=running", timeout=20).json()["items"]
            now: dict[str, int | None] = {job["id"]: job["progress"]["epoch"] for job in running}
            for job, epoch in now.items():
                if epoch and before.get(job) and epoch != before[job]:
                    return job
            before = now
            time.sleep(0.1)
        return None


def _kill(pids: list[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


@pytest.mark.timeout(300 + 2 * CYCLE_SECONDS * CYCLES)
def test_each_acknowledged_job_ends_once_whatever_is_killed(tmp_path: Path) -> None:
    print(f"CRASH_SEED={SEED} CRASH_CYCLES={CYCLES}")
    deadline = time.monotonic() + CYCLE_SECONDS * CYCLES
    service = Service(tmp_path / "data").start()
    crowd, killer = Crowd(service, SEED), Killer(service, SEED)

    try:
        with crowd.submitting():
            for _ in range(CYCLES):
                # a slow machine makes fewer cycles
                if time.monotonic() < deadline:
                    killer.strike()
        print(f"{killer.done.total()} kills: {dict(killer.done)}; {len(crowd.acknowledged)} jobs acknowledged")
        with service.client() as client:
            _check(client, crowd)
        assert 0 == service.stop()
    finally:
        service.kill_all()

    assert {} == service.processes()
    with sqlite3.connect(service.data_dir / "fitserve.db") as database:
        assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
    assert [] == list((service.data_dir / "staging").glob("train-*"))


def _check(client: Client, crowd: Crowd) -> None:
    assert [] == crowd.refused
    assert len(crowd.acknowledged) >= WAITING
    assert len(set(crowd.acknowledged)) == len(crowd.acknowledged)
    ended = [_await_end(client, job_id) for job_id in crowd.acknowledged]
    assert ["succeeded"] * len(ended) == [job.status for job in ended]
    assert set(crowd.acknowledged) == {job.id for job in client.jobs()}
    for model in {job.model for job in ended}:
        jobs = {job.version: job.id for job in ended if job.model == model}
        assert set(range(1, len(jobs) + 1)) == jobs.keys()
        assert list(range(len(jobs), 0, -1)) == [version["version"] for version in client.model(model)["versions"]]
        for version, job in jobs.items():
            assert job == client.version(f"{model}@{version}")["job"]
            assert 3 == len(client.predict(f"{model}@{version}", rows=DATA["x"][:3]).predictions)


def _await_end(client: Client, job: str) -> Job:
    def ended() -> Job | None:
        now = client.job(job)
        return now if now.is_terminal else None

    return until(ended, 240)
