"""The room of jobs, on both databases: durable submission, fences, events, and what each state allows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import DBOSClient

from app.errors import Conflict, NotFound, Overloaded
from app.records.claims import Claim
from app.records.idempotency_keys import IDEMPOTENCY_SECONDS
from app.records.job import Job
from app.records.job_report import JobReport
from app.records.rooms import Rooms
from app.settings import Settings
from app.storage.database import Database
from app.storage.tables import idempotency_keys
from app.wiring import open_rooms
from tests.stored_rows import add_dataset, submit

pytestmark = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)


@pytest.fixture
def queue(database_url: str, rooms: Rooms) -> Iterator[Callable[[str], list[str]]]:
    """Give the ids of the engine's work in a state."""
    client = DBOSClient(system_database_url=database_url)
    yield lambda state: sorted(each.workflow_id for each in client.list_workflows(status=state))
    client.destroy()


def take(rooms: Rooms, job: Job) -> Claim:
    claim = rooms.claims.take(job.id, job.workflow_id)
    assert claim is not None
    return claim


def succeed(rooms: Rooms, claim: Claim, version: int = 1) -> None:
    with rooms.database.write() as connection:
        assert rooms.claims.hold(connection, claim)
        rooms.claims.succeed(connection, claim, version, {"loss": 0.5})


def said(rooms: Rooms, job: Job) -> list[dict[str, Any]]:
    return [{"type": event.type, **event.body} for event in rooms.jobs.events(job.id, 0, 1000)]


STATUS = [{"type": "status", "status": "queued"}, {"type": "warning", "message": "one warning"}]


def test_a_submitted_job_is_stored_and_enqueued(
    rooms: Rooms, database_url: str, queue: Callable[[str], list[str]]
) -> None:
    job = submit(rooms, "penguins", learning_rate=0.1)

    other = Database(database_url)
    with other.read() as connection:
        assert [job.id] == list(connection.execute(sa.text("SELECT id FROM jobs")).scalars())
    other.close()
    assert ("queued", False, 1, 0, None) == (
        job.status,
        job.is_terminal,
        job.queue_position,
        job.attempt,
        job.started_at,
    )
    assert {"target": "y", "tags": {}, "learning_rate": 0.1} == job.spec
    assert STATUS == said(rooms, job)
    assert [job.workflow_id] == queue("ENQUEUED")


def test_a_job_without_its_data_set_is_refused_and_leaves_nothing(
    rooms: Rooms, queue: Callable[[str], list[str]]
) -> None:
    dataset = add_dataset(rooms)
    rooms.datasets.delete(dataset.id, rooms.jobs)

    with pytest.raises(NotFound, match=dataset.id):
        submit(rooms, dataset=dataset, key="key")

    assert ({}, []) == (rooms.jobs.counts(), queue("ENQUEUED"))
    assert rooms.jobs.find_submitted("key", "body") is None


def test_an_idempotency_key_gives_the_same_job_and_refuses_another_body(rooms: Rooms) -> None:
    job = submit(rooms, key="key")

    again, other = submit(rooms, key="key"), submit(rooms, key="another key")

    assert job.id == again.id != other.id
    assert job == rooms.jobs.find_submitted("key", "body")
    with pytest.raises(Conflict, match="Idempotency-Key"):
        submit(rooms, key="key", body="another body")
    with pytest.raises(Conflict, match="Idempotency-Key"):
        rooms.jobs.find_submitted("key", "another body")
    assert {"queued": 2} == rooms.jobs.counts()


def test_one_key_at_the_same_time_is_one_job(rooms: Rooms, queue: Callable[[str], list[str]]) -> None:
    dataset, gate = add_dataset(rooms), threading.Barrier(8)

    def run(_: int) -> str:
        gate.wait()
        return submit(rooms, key="key", dataset=dataset).id

    with ThreadPoolExecutor(8) as pool:
        ids = set(pool.map(run, range(8)))

    assert 1 == len(ids)
    assert {"queued": 1} == rooms.jobs.counts()
    assert [f"{ids.pop()}.1"] == queue("ENQUEUED")


def test_an_idempotency_key_ends_after_a_day_or_with_its_job(rooms: Rooms) -> None:
    job, other = submit(rooms, key="old"), submit(rooms, key="deleted")
    with rooms.database.write() as connection:
        older = idempotency_keys.c.created - IDEMPOTENCY_SECONDS - 1
        connection.execute(sa.update(idempotency_keys).where(idempotency_keys.c.job_id == job.id).values(created=older))
    rooms.jobs.cancel(other.id)
    rooms.jobs.delete(other.id)

    assert job.id != submit(rooms, key="old", body="another body").id
    assert other.id != submit(rooms, key="deleted", body="another body").id


def test_a_full_queue_refuses_and_has_room_again(
    tmp_path: Path, database_url: str, queue: Callable[[str], list[str]]
) -> None:
    small = open_rooms(Settings(data_dir=tmp_path / "data", database_url=database_url, max_queued_jobs=2))
    first, second = (submit(small, key=key) for key in ("first", "second"))

    with pytest.raises(Overloaded, match="fewer than 2 waiting jobs, got 2"):
        submit(small, key="third")

    assert sorted([first.workflow_id, second.workflow_id]) == queue("ENQUEUED")
    assert first.id == submit(small, key="first").id
    take(small, first)
    assert "queued" == submit(small, key="third").status
    small.close()


def test_jobs_wait_in_the_order_of_their_submission(rooms: Rooms) -> None:
    first, second, third = (submit(rooms) for _ in range(3))

    take(rooms, first)

    positions = [rooms.jobs.get(job.id).queue_position for job in (first, second, third)]
    assert [None, 1, 2] == positions


def test_a_claimed_job_runs(rooms: Rooms) -> None:
    job = submit(rooms)

    claim = take(rooms, job)
    rooms.claims.report(claim, JobReport(device="cpu", loop="graph"))

    running = rooms.jobs.get(job.id)
    assert ("running", 1, None, "cpu") == (running.status, running.attempt, running.queue_position, running.device)
    assert running.started_at is not None
    assert rooms.claims.is_held(claim)
    assert [*STATUS, {"type": "status", "status": "running"}] == said(rooms, job)


def test_only_one_of_many_claims_holds_and_it_is_the_last(rooms: Rooms) -> None:
    job, gate = submit(rooms), threading.Barrier(6)

    def run(_: int) -> Claim | None:
        gate.wait()
        return rooms.claims.take(job.id, job.workflow_id)

    with ThreadPoolExecutor(6) as pool:
        claims = [claim for claim in pool.map(run, range(6)) if claim is not None]

    assert 1 == sum(rooms.claims.is_held(claim) for claim in claims)
    assert len(claims) == rooms.jobs.get(job.id).attempt


def test_what_is_not_due_is_not_claimed(rooms: Rooms) -> None:
    job = submit(rooms)

    assert rooms.claims.take("job_none", "job_none.1") is None
    assert rooms.claims.take(job.id, f"{job.id}.2") is None
    rooms.jobs.cancel(job.id)
    assert rooms.claims.take(job.id, job.workflow_id) is None


VOIDED: dict[str, Callable[[Rooms, Claim], object]] = {
    "cancelled": lambda rooms, claim: rooms.jobs.cancel(claim.job_id),
    "claimed again": lambda rooms, claim: rooms.claims.take(claim.job_id, f"{claim.job_id}.1"),
    "released": lambda rooms, claim: rooms.claims.release(claim),
    "failed": lambda rooms, claim: rooms.claims.fail(claim, "internal", "it failed"),
    "succeeded": succeed,
    "cancelled and resumed": lambda rooms, claim: (rooms.jobs.cancel(claim.job_id), rooms.jobs.resume(claim.job_id)),
}


def hold(rooms: Rooms, claim: Claim) -> bool:
    with rooms.database.write() as connection:
        is_held = rooms.claims.hold(connection, claim)
        rooms.claims.succeed(connection, claim, 9, {})
    return is_held


WRITES: dict[str, Callable[[Rooms, Claim], object]] = {
    "report": lambda rooms, claim: rooms.claims.report(
        claim, JobReport([{"type": "epoch", "loss": 1.0}], {"epoch": 1})
    ),
    "report facts": lambda rooms, claim: rooms.claims.report(claim, JobReport(device="gpu:0", learning_rate=1.0)),
    "fail": lambda rooms, claim: rooms.claims.fail(claim, "timeout", "too late"),
    "charge_crash": lambda rooms, claim: rooms.claims.charge_crash(claim),
    "release": lambda rooms, claim: rooms.claims.release(claim),
    "succeed": hold,
}


@pytest.mark.parametrize("voided", list(VOIDED))
def test_a_void_claim_writes_nothing(rooms: Rooms, voided: str) -> None:
    job = submit(rooms)
    claim = take(rooms, job)
    VOIDED[voided](rooms, claim)
    before = rooms.jobs.get(job.id), rooms.jobs.events(job.id, 0, 100)

    answers = {name: write(rooms, claim) for name, write in WRITES.items()}

    assert not rooms.claims.is_held(claim)
    assert (False, False, False) == (answers["report"], answers["fail"], answers["succeed"])
    assert before == (rooms.jobs.get(job.id), rooms.jobs.events(job.id, 0, 100))


def test_reports_are_events_progress_and_the_latest_metrics(rooms: Rooms) -> None:
    job = submit(rooms)
    claim = take(rooms, job)
    metrics = {"loss": 0.5, "accuracy": 0.5, "val_loss": None, "val_accuracy": None}
    epochs: list[dict[str, Any]] = [{"type": "epoch", "epoch": n, "loss": 1 / n, "accuracy": 0.5} for n in (1, 2)]

    assert rooms.claims.report(claim, JobReport(epochs, {"epoch": 2, "fraction": 0.2}, metrics))
    assert rooms.claims.report(claim, JobReport([{"type": "log", "message": "é"}]))

    running = rooms.jobs.get(job.id)
    assert {"epoch": 2, "fraction": 0.2} == running.progress
    assert metrics == running.metrics
    assert [*epochs, {"type": "log", "message": "é"}] == said(rooms, job)[3:]


def test_event_ids_ascend_without_a_gap_whoever_writes(rooms: Rooms) -> None:
    job = submit(rooms)
    claim, gate = take(rooms, job), threading.Barrier(4)

    def run(n: int) -> None:
        gate.wait()
        for _ in range(5):
            rooms.claims.report(claim, JobReport([{"type": "log", "message": str(n)}] * 3))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(run, range(4)))

    ids = [event.id for event in rooms.jobs.events(job.id, 0, 1000)]
    assert list(range(1, 3 + 60 + 1)) == ids
    assert ids[10:13] == [event.id for event in rooms.jobs.events(job.id, 10, 3)]
    assert {job.id: (63, "running")} == rooms.jobs.last_events([job.id, "job_none"])


def test_a_cancelled_job_has_ended_and_left_the_queue(rooms: Rooms, queue: Callable[[str], list[str]]) -> None:
    waiting, running = submit(rooms), submit(rooms)
    take(rooms, running)

    for job in (waiting, running):
        cancelled = rooms.jobs.cancel(job.id)
        assert ("cancelled", True) == (cancelled.status, cancelled.is_terminal)
        assert cancelled.finished_at is not None
        assert {"type": "status", "status": "cancelled"} == said(rooms, job)[-1]
        with pytest.raises(Conflict, match="is cancelled; only"):
            rooms.jobs.cancel(job.id)

    assert [] == queue("ENQUEUED")


def test_a_failed_job_says_why_and_can_be_resumed(rooms: Rooms, queue: Callable[[str], list[str]]) -> None:
    job = submit(rooms)
    claim = take(rooms, job)
    assert [1, 2] == [rooms.claims.charge_crash(claim) for _ in range(2)]
    assert rooms.claims.fail(claim, "invalid_data", "m" * 5000, "target")
    failed = rooms.jobs.get(job.id)

    resumed = rooms.jobs.resume(job.id)

    assert {"code": "invalid_data", "message": "m" * 2000, "param": "target"} == failed.error
    assert ("failed", True) == (failed.status, failed.is_terminal)
    assert ("queued", None, None, {}) == (resumed.status, resumed.error, resumed.finished_at, resumed.progress)
    assert failed.last_event + 1 == resumed.last_event
    assert rooms.claims.take(job.id, job.workflow_id) is None
    assert 1 == rooms.claims.charge_crash(take(rooms, resumed))
    assert 2 == rooms.jobs.get(job.id).attempt
    assert resumed.workflow_id in queue("ENQUEUED")


def test_a_released_job_waits_for_the_same_work_to_recover(rooms: Rooms) -> None:
    job = submit(rooms)

    rooms.claims.release(take(rooms, job))

    assert "queued" == rooms.jobs.get(job.id).status
    assert rooms.claims.is_held(take(rooms, job))


def test_a_succeeded_job_has_its_version_and_stays(rooms: Rooms) -> None:
    job = submit(rooms)
    succeed(rooms, take(rooms, job), 7)

    done = rooms.jobs.get(job.id)

    assert ("succeeded", 7, {"loss": 0.5}) == (done.status, done.version, done.metrics)
    assert {"type": "status", "status": "succeeded", "version": 7} == said(rooms, job)[-1]
    with pytest.raises(Conflict, match="only a failed or cancelled job"):
        rooms.jobs.resume(job.id)
    with pytest.raises(Conflict, match="is succeeded; only"):
        rooms.jobs.cancel(job.id)


def test_what_runs_is_neither_resumed_nor_deleted(rooms: Rooms) -> None:
    job = submit(rooms)

    for _ in range(2):
        with pytest.raises(Conflict, match="only a failed or cancelled job"):
            rooms.jobs.resume(job.id)
        with pytest.raises(Conflict, match="cancel it first"):
            rooms.jobs.delete(job.id)
        take(rooms, job)


def test_a_job_whose_data_set_was_deleted_is_not_resumed(rooms: Rooms) -> None:
    job = submit(rooms)
    rooms.jobs.cancel(job.id)
    rooms.datasets.delete(job.dataset_id, rooms.jobs)

    with pytest.raises(Conflict, match="upload it and train again"):
        rooms.jobs.resume(job.id)

    assert "cancelled" == rooms.jobs.get(job.id).status


def test_a_deleted_job_leaves_nothing(rooms: Rooms, queue: Callable[[str], list[str]]) -> None:
    job = submit(rooms)
    for _ in range(2):
        rooms.jobs.cancel(job.id)
        rooms.jobs.resume(job.id)
    rooms.jobs.cancel(job.id)

    rooms.jobs.delete(job.id)

    assert [] == rooms.jobs.events(job.id, 0, 100)
    assert [] == queue("CANCELLED")
    for verb in (rooms.jobs.get, rooms.jobs.cancel, rooms.jobs.resume, rooms.jobs.delete):
        with pytest.raises(NotFound, match=job.id):
            verb(job.id)


def test_jobs_are_listed_newest_first_by_status_and_model(rooms: Rooms) -> None:
    submitted = [submit(rooms, model) for model in ("a", "b", "a", "b", "a")]
    rooms.jobs.cancel(submitted[0].id)
    newest_first = sorted((job.id for job in submitted), reverse=True)

    first, cursor = rooms.jobs.list(3, None)
    second, end = rooms.jobs.list(3, cursor)
    of_a, _ = rooms.jobs.list(10, None, model="a")
    cancelled, _ = rooms.jobs.list(10, None, status="cancelled", model="a")

    assert (newest_first, None) == ([job.id for job in (*first, *second)], end)
    assert {submitted[i].id for i in (0, 2, 4)} == {job.id for job in of_a}
    assert [submitted[0].id] == [job.id for job in cancelled]
    assert {"queued": 4, "cancelled": 1} == rooms.jobs.counts()


def test_a_job_whose_work_has_ended_without_it_fails_and_can_be_resumed(rooms: Rooms, database_url: str) -> None:
    lost, waiting, cancelled = submit(rooms), submit(rooms), submit(rooms)
    rooms.jobs.cancel(cancelled.id)
    client = DBOSClient(system_database_url=database_url)
    client.cancel_workflow(lost.workflow_id)
    client.destroy()

    failed = [rooms.job_sweep.fail_lost() for _ in range(2)]

    assert [[lost.id], []] == failed
    found = {job.id: job for job in rooms.jobs.list(10, None)[0]}
    assert ["failed", "queued", "cancelled"] == [found[job.id].status for job in (lost, waiting, cancelled)]
    error = found[lost.id].error
    assert error is not None
    assert "internal" == error["code"]
    assert said(rooms, lost)[-1] == {"type": "status", "status": "failed", "error": error}
    assert "queued" == rooms.jobs.resume(lost.id).status
    assert [] == rooms.job_sweep.fail_lost()
