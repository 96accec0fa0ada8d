"""What goes by itself after its time, what never does, and that nobody who looks on is hurt by it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from dbos import DBOSClient

from app.client import NotFound
from app.errors import NotFound as Gone
from app.jobs.publish import publish
from app.learning.artifact.artifact_files import write_artifact
from app.records.dataset import RawFile
from app.records.job import Job
from app.records.job_report import JobReport
from app.records.retention import Policy, sweep
from app.records.rooms import Rooms
from app.settings import Settings
from app.storage.blobs import ORPHAN_SECONDS
from app.storage.tables import events, idempotency_keys
from app.wiring import retention_policy
from tests.conftest import Start
from tests.processes import until
from tests.stored_rows import add_dataset, make_artifact, make_done, submit, train

both = pytest.mark.parametrize("database_url", ["sqlite", "postgres"], indirect=True)
NEVER = Policy(None, None, None, None, None)
DAY = Policy(1, 1, 1, 1, 1)
NOTHING = {"jobs": 0, "events": 0, "engine": 0, "datasets": 0, "checkpoints": 0}


def in_days(days: float) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


@pytest.fixture
def work(database_url: str, rooms: Rooms) -> Iterator[Callable[[], list[str]]]:
    """Give the ids of all that the engine knows of."""
    client = DBOSClient(system_database_url=database_url)
    yield lambda: sorted(each.workflow_id for each in client.list_workflows())
    client.destroy()


def cancel(rooms: Rooms, job: Job) -> Job:
    return rooms.jobs.cancel(job.id)


def ids_of_datasets(rooms: Rooms) -> set[str]:
    return {each.id for each in rooms.datasets.list(500, None)[0]}


def stored(rooms: Rooms) -> set[str]:
    return {key for prefix in ("datasets", "tables") for key in rooms.blobs.keys(prefix)}


def said(rooms: Rooms, job: Job) -> list[tuple[int, object]]:
    return [(event.id, event.body.get("status")) for event in rooms.jobs.events(job.id, 0, 1000)]


def make_version(rooms: Rooms, dataset: Any, validation: Any) -> Job:
    """Publish a version that came from one data set and was validated on another."""
    job = submit(rooms, "two", dataset=dataset)
    claim = rooms.claims.take(job.id, job.workflow_id)
    assert claim is not None
    done = make_done()
    spec = {**done.version.spec, "validation": {"fraction": None, "dataset": validation.id}}
    with rooms.blobs.staging("test") as folder:
        (folder / "version").mkdir()
        sha256 = write_artifact(make_artifact(), folder / "version")
        done = replace(done, sha256=sha256, version=replace(done.version, spec=spec))
        publish(rooms, job, claim, folder / "version", done)
    return rooms.jobs.get(job.id)


@both
def test_a_data_set_goes_unless_a_version_or_an_open_job_came_from_it(rooms: Rooms) -> None:
    source, validation, waiting, read, unused, ended = (
        add_dataset(rooms, b"a,y\n%d,x\n" % n, b"table %d" % n) for n in range(6)
    )
    make_version(rooms, source, validation)
    cancel(rooms, submit(rooms, dataset=ended))
    open_job = submit(rooms, dataset=waiting)
    # its validation table is the one of `read`
    rooms.jobs.cancel(open_job.id)
    rooms.jobs.resume(open_job.id)
    with rooms.database.write() as connection:
        change = sa.text("UPDATE jobs SET validation_table_key = :key WHERE id = :id")
        connection.execute(change, {"key": read.table_key, "id": open_job.id})

    young = sweep(rooms, Policy(1, None, None, None, None), in_days(0.9))
    before = ids_of_datasets(rooms)
    old = sweep(rooms, Policy(1, None, None, None, None), in_days(1.1))

    assert NOTHING == young
    assert 6 == len(before)
    assert {**NOTHING, "datasets": 2} == old
    assert {source.id, validation.id, waiting.id, read.id} == ids_of_datasets(rooms)
    kept = (source, validation, waiting, read)
    assert {key for each in kept for key in (each.raw_key, each.table_key)} == stored(rooms)
    for each in (unused, ended):
        with pytest.raises(Gone):
            rooms.datasets.get(each.id)


@both
def test_the_data_set_of_a_deleted_version_goes(rooms: Rooms) -> None:
    train(rooms)

    before = sweep(rooms, Policy(1, None, None, None, None), in_days(2))
    rooms.registry.delete_version("m", 1, force=True)
    after = sweep(rooms, Policy(1, None, None, None, None), in_days(2))

    assert (0, 1) == (before["datasets"], after["datasets"])
    assert set() == stored(rooms)


@both
def test_a_data_set_that_could_not_be_read_goes_and_one_that_is_being_read_stays(rooms: Rooms) -> None:
    with rooms.blobs.staging("test") as folder:
        for name in ("failed", "processing"):
            (folder / name).write_text(name)
        failed, _ = rooms.datasets.add_unread(None, RawFile.of(folder / "failed", "csv"))
        processing, _ = rooms.datasets.add_unread(None, RawFile.of(folder / "processing", "csv"))
    rooms.datasets.fail(failed.id, "invalid", "no table")

    removed = sweep(rooms, DAY, in_days(2))

    assert 1 == removed["datasets"]
    assert {processing.id} == ids_of_datasets(rooms)
    assert {processing.raw_key} == stored(rooms)
    rooms.datasets.delete(processing.id, rooms.jobs)
    assert set() == stored(rooms)
    assert rooms.blobs.root.is_dir()  # type: ignore[attr-defined]


@both
def test_events_of_an_ended_job_go_but_for_the_last(rooms: Rooms) -> None:
    ended, waiting = submit(rooms), submit(rooms)
    claim = rooms.claims.take(ended.id, ended.workflow_id)
    assert claim is not None
    rooms.claims.report(claim, JobReport([{"type": "epoch", "loss": 1.0}] * 5))
    rooms.claims.fail(claim, "timeout", "too late")
    before = rooms.jobs.get(ended.id)

    young = sweep(rooms, Policy(None, 1, None, None, None), in_days(0.9))
    old = sweep(rooms, Policy(None, 1, None, None, None), in_days(1.1))
    again = sweep(rooms, Policy(None, 1, None, None, None), in_days(1.1))

    assert [NOTHING, {**NOTHING, "events": 8}, NOTHING] == [young, old, again]
    assert [(9, "failed")] == said(rooms, ended)
    assert before == rooms.jobs.get(ended.id)
    assert [(1, "queued"), (2, None)] == said(rooms, waiting)
    resumed = rooms.jobs.resume(ended.id)
    assert [(9, "failed"), (10, "queued")] == said(rooms, resumed)


@both
def test_records_of_ended_jobs_go_with_all_that_was_theirs(rooms: Rooms, work: Callable[[], list[str]]) -> None:
    version = train(rooms)
    resumed, waiting = submit(rooms, key="resumed"), submit(rooms, key="waiting")
    cancel(rooms, resumed)
    rooms.jobs.resume(resumed.id)
    cancel(rooms, resumed)

    young = sweep(rooms, Policy(None, None, 1, None, None), in_days(0.9))
    old = sweep(rooms, Policy(None, None, 1, None, None), in_days(1.1))

    assert [0, 2] == [young["jobs"], old["jobs"]]
    assert [waiting.id] == [job.id for job in rooms.jobs.list(10, None)[0]]
    assert [waiting.workflow_id] == work()
    assert version == rooms.registry.get_version("m", 1).version
    with rooms.database.read() as connection:
        left = [
            connection.execute(sa.select(table.c.job_id).distinct()).scalars().all()
            for table in (events, idempotency_keys)
        ]
    assert [[waiting.id], [waiting.id]] == left


@both
def test_the_engines_rows_go_for_ended_jobs_and_never_for_open_ones(
    rooms: Rooms, work: Callable[[], list[str]]
) -> None:
    ended, waiting, resumed, running = (submit(rooms) for _ in range(4))
    cancel(rooms, ended)
    cancel(rooms, resumed)
    rooms.jobs.resume(resumed.id)
    assert rooms.claims.take(running.id, running.workflow_id) is not None

    young = sweep(rooms, Policy(None, None, None, 1, None), in_days(0.9))
    old = sweep(rooms, Policy(None, None, None, 1, None), in_days(1.1))
    kept = work()
    cancel(rooms, resumed)
    later = sweep(rooms, Policy(None, None, None, 1, None), in_days(1.1))

    assert [0, 1, 2] == [each["engine"] for each in (young, old, later)]
    assert sorted([waiting.workflow_id, f"{resumed.id}.1", f"{resumed.id}.2", running.workflow_id]) == kept
    assert sorted([waiting.workflow_id, running.workflow_id]) == work()
    assert "cancelled" == rooms.jobs.get(ended.id).status
    # the engine takes the same job again
    assert "queued" == rooms.jobs.resume(ended.id).status
    assert f"{ended.id}.2" in work()


@both
def test_nothing_ever_goes_where_the_settings_say_0(rooms: Rooms) -> None:
    zero = {name: 0.0 for name in Settings.model_fields if name.startswith("keep_")}
    job = cancel(rooms, submit(rooms))

    removed = sweep(rooms, retention_policy(Settings(**zero)), in_days(30_000))  # type: ignore[arg-type]

    assert retention_policy(Settings(**zero)) == NEVER  # type: ignore[arg-type]
    assert NOTHING == removed
    assert job == rooms.jobs.get(job.id)
    assert 3 == len(said(rooms, job))


def test_by_default_events_and_the_engines_rows_go_and_what_people_made_stays() -> None:
    assert Policy(datasets=None, events=90, jobs=None, engine=1, checkpoints=7) == retention_policy(Settings())


@both
def test_the_longest_time_that_can_be_set_keeps(rooms: Rooms) -> None:
    cancel(rooms, submit(rooms))

    assert NOTHING == sweep(rooms, Policy(36500, 36500, 36500, 36500, None), datetime.now(UTC))


@both
def test_one_sweep_removes_a_batch_and_the_next_goes_on(rooms: Rooms) -> None:
    # the oldest is in use, and does not keep the others from going
    waiting = submit(rooms)
    for n in range(4):
        other = add_dataset(rooms, b"a,y\n%d,z\n" % n, b"table %d" % n)
        cancel(rooms, submit(rooms, dataset=other))

    datasets = [rooms.datasets.delete_unused("9", rooms.jobs, 3) for _ in range(3)]
    said_before = [rooms.job_sweep.delete_events("9", 3) for _ in range(3)]
    engine = [rooms.job_sweep.delete_queue_rows(in_days(1), 3) for _ in range(3)]
    jobs = [rooms.job_sweep.delete_jobs("9", 3) for _ in range(3)]

    assert [[3, 1, 0], [6, 2, 0], [3, 1, 0], [3, 1, 0]] == [datasets, said_before, engine, jobs]
    assert {waiting.dataset_id} == ids_of_datasets(rooms)


def test_files_that_nothing_names_go_when_they_are_old(rooms: Rooms) -> None:
    dataset = add_dataset(rooms)
    with rooms.blobs.staging("test") as folder:
        for key in ("datasets/old.csv", "tables/young"):
            (folder / "file").write_bytes(b"orphan")
            rooms.blobs.put(key, folder / "file")
    for key in (dataset.raw_key, "datasets/old.csv"):
        then = datetime.now(UTC).timestamp() - ORPHAN_SECONDS - 10
        os.utime(rooms.blobs.local(key), (then, then))

    sweep(rooms, NEVER, datetime.now(UTC))

    assert {dataset.raw_key, dataset.table_key, "tables/young"} == stored(rooms)


DATA: dict[str, Any] = {"x": [[i % 7 / 7, i % 3 / 3] for i in range(40)], "y": [i % 2 for i in range(40)]}
BRIEF: dict[str, Any] = {"validation": None, "fit": {"epochs": 2}}
INSTANT = str(0.2 / 86400)


def test_a_service_sweeps_while_it_serves_and_versions_stay(start: Start) -> None:
    service = start(sweep_seconds="0.2", keep_unused_datasets_days=INSTANT, keep_events_days=INSTANT)
    with service.client() as client:
        unused = client.upload(b"a,y\n1,x\n2,z\n", content_type="text/csv")
        job = client.wait(client.train("kept", data=DATA, **BRIEF))
        asked = client.predict("kept", rows=DATA["x"][:3]).probabilities

        until(lambda: unused.id not in {each.id for each in client.datasets()})
        page = until(lambda: found if len(found := _events(service.url, job.id)) == 1 else None)

        assert [("status", "succeeded")] == [(event["type"], event["status"]) for event in page]
        stream = httpx.get(f"{service.url}/api/v1/jobs/{job.id}/events", headers={"Accept": "text/event-stream"})
        assert (200, 1) == (stream.status_code, stream.text.count("event: status"))
        seen: list[dict[str, Any]] = []
        assert job.version == client.wait(job, on_event=seen.append).version
        assert page == seen
        assert asked == client.predict("kept@1", rows=DATA["x"][:3]).probabilities
        assert [job.document["dataset"]] == [each.id for each in client.datasets()]


def _events(url: str, job: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = httpx.get(f"{url}/api/v1/jobs/{job}/events").raise_for_status().json()["items"]
    return items


def test_whoever_follows_a_job_whose_record_is_swept_is_told_that_it_is_gone(start: Start) -> None:
    service = start(workers="0", sweep_seconds="0.2", keep_jobs_days=INSTANT, keep_engine_days=INSTANT)
    with service.client() as client, httpx.Client(base_url=service.url, timeout=60) as http:
        job = client.train("gone", data=DATA, **BRIEF)
        path = f"/api/v1/jobs/{job.id}"
        with http.stream("GET", f"{path}/events", headers={"Accept": "text/event-stream"}) as stream:
            lines = stream.iter_lines()
            assert any(line == "event: status" for line in lines)
            client.cancel(job)
            until(lambda: http.get(path).status_code == 404)

            # the stream ends by itself
            assert not [line for line in lines if line.startswith("event: log")]

        with pytest.raises(NotFound):
            client.wait(job)
        assert 404 == http.get(path, params={"wait_seconds": 60}).status_code
        assert [] == list(client.jobs())
